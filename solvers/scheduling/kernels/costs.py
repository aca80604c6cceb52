"""What a micro-batch costs on a stage: the cost model, compiled."""

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import EMPTY, BatchTable, Shape, StageCosts


@compiled
def curve_time(floor: float, work: float, power: float) -> float:
    """Return `(floor^p + work^p)^(1/p)`, seconds."""
    if floor == 0.0:
        return work
    high, low = max(work, floor), min(work, floor)
    result: float = high * (1.0 + (low / high) ** power) ** (1.0 / power)
    return result


@compiled
def add_sample(shape: Shape, length: int, padded: bool, added: np.ndarray, opens: bool) -> Shape:
    """Return a micro-batch with one more sample.

    Parameters
    ----------
    added
        What the sample's adapter adds to floors and works, in the order of `Shape`, shape (4,).
    opens
        Whether it is the first sample of its adapter there: floors are added once.
    """
    once, weight = (1.0 if opens else 0.0), (1 if padded else length)
    return Shape(
        shape.size + 1,
        shape.tokens + length,
        shape.squares + float(length) * length,
        max(shape.longest, length),
        shape.forward_floor_s + once * added[0],
        shape.forward_work_s + added[1] * weight,
        shape.backward_floor_s + once * added[2],
        shape.backward_work_s + added[3] * weight,
    )


@compiled
def batch_times(costs: StageCosts, shape: Shape) -> tuple[int, float, float, float]:
    """Return tokens (padding included), and forward, backward and transfer time of a micro-batch, seconds."""
    tokens, squares = shape.tokens, shape.squares
    forward_added, backward_added = shape.forward_work_s, shape.backward_work_s
    if costs.padded:
        tokens = shape.size * shape.longest
        squares = float(tokens) * shape.longest
        forward_added *= shape.longest
        backward_added *= shape.longest
    forward = costs.forward_token_s * tokens + costs.forward_square_s * squares + forward_added
    backward = costs.backward_token_s * tokens + costs.backward_square_s * squares + backward_added
    return (
        tokens,
        curve_time(costs.forward_floor_s + shape.forward_floor_s, forward, costs.forward_power),
        curve_time(costs.backward_floor_s + shape.backward_floor_s, backward, costs.backward_power),
        costs.transfer_s + costs.transfer_token_s * tokens,
    )


@compiled
def time_of_work(costs: StageCosts, work_s: float) -> float:
    """Return forward plus backward time of a micro-batch with this forward plus backward work, seconds."""
    total = costs.forward_token_s + costs.backward_token_s
    share = costs.forward_token_s / total if total > 0 else 0.5
    forward = curve_time(costs.forward_floor_s, work_s * share, costs.forward_power)
    return forward + curve_time(costs.backward_floor_s, work_s * (1.0 - share), costs.backward_power)


@compiled
def batch_table(
    costs: StageCosts, added: np.ndarray, begins: np.ndarray, adapter: np.ndarray, length: np.ndarray
) -> BatchTable:
    """Return what micro-batches cost.

    Parameters
    ----------
    added
        By adapter, as `Source.added`, shape (A, 4).
    begins
        Where the samples of each micro-batch begin, and the end, shape (M + 1,).
    adapter, length
        By sample, micro-batch by micro-batch, the samples of an adapter next to each other; shape (N,).
    """
    count = len(begins) - 1
    table = BatchTable(np.empty(count), np.empty(count), np.empty(count), np.empty(count, np.int64))
    for k in range(count):
        shape, last = EMPTY, -1
        for n in range(begins[k], begins[k + 1]):
            a = adapter[n]
            shape = add_sample(shape, length[n], costs.padded, added[a], a != last)
            last = a
        tokens, forward, backward, transfer = batch_times(costs, shape)
        table.tokens[k] = tokens
        table.forward_s[k], table.backward_s[k], table.transfer_s[k] = forward, backward, transfer
    return table
