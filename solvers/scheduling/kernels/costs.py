"""What a micro-batch costs on stages: the cost model, compiled.

Legend: D kinds of stages.
"""

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import EMPTY, BatchTable, BusiestStage, Shape, StageCosts


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
def batch_times(costs: StageCosts, shape: Shape, forward_s: np.ndarray, backward_s: np.ndarray) -> tuple[int, float]:
    """Return tokens (padding included) and transfer time of a micro-batch, seconds.

    Parameters
    ----------
    forward_s, backward_s
        Where its times by kind of stage are written, shape (D,).
    """
    tokens, squares = shape.tokens, shape.squares
    forward_added, backward_added = shape.forward_work_s, shape.backward_work_s
    if costs.padded:
        tokens = shape.size * shape.longest
        squares = float(tokens) * shape.longest
        forward_added *= shape.longest
        backward_added *= shape.longest
    _stage_times(costs, 0, tokens, squares, shape.forward_floor_s, forward_added, forward_s)
    _stage_times(costs, 1, tokens, squares, shape.backward_floor_s, backward_added, backward_s)
    return tokens, costs.transfer_s + costs.transfer_token_s * tokens


@compiled
def _stage_times(
    costs: StageCosts, way: int, tokens: int, squares: float, more_floor: float, more_work: float, seconds: np.ndarray
) -> None:
    """Write the times of a micro-batch by kind of stage: forward (0) or backward (1)."""
    curves, shares = costs.curves, costs.shares
    for j in range(curves.shape[1]):
        floor, work = curves[way, j, 0], curves[way, j, 1] * tokens + curves[way, j, 2] * squares
        if j == 0:
            floor += more_floor
            work += more_work
        time = curve_time(floor, work, curves[way, j, 3])
        for kind in range(shares.shape[0]):
            seconds[kind] = (seconds[kind] if j else 0.0) + shares[kind, j] * time


@compiled
def time_of_work(busiest: BusiestStage, work_s: float) -> float:
    """Return about the forward plus backward time of a micro-batch with this forward plus backward work, seconds."""
    part = busiest.forward_part
    forward = curve_time(busiest.forward_floor_s, work_s * part, busiest.forward_power)
    return forward + curve_time(busiest.backward_floor_s, work_s * (1.0 - part), busiest.backward_power)


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
    kinds = len(costs.shares)
    table = BatchTable(np.empty((count, kinds)), np.empty((count, kinds)), np.empty(count), np.empty(count, np.int64))
    for k in range(count):
        shape, last = EMPTY, -1
        for n in range(begins[k], begins[k + 1]):
            a = adapter[n]
            shape = add_sample(shape, length[n], costs.padded, added[a], a != last)
            last = a
        table.tokens[k], table.transfer_s[k] = batch_times(costs, shape, table.forward_s[k], table.backward_s[k])
    return table
