"""What a micro-batch costs on a stage, compiled: the cost model as numbers."""

from typing import NamedTuple

from cappuccino.compiled import compiled


class Added(NamedTuple):
    """What the adapters of a micro-batch add to its floors and its works, seconds."""

    forward_floor_s: float
    forward_work_s: float
    backward_floor_s: float
    backward_work_s: float


class BatchCosts(NamedTuple):
    """Curves, transfer and limits of one stage."""

    forward_floor_s: float
    forward_token_s: float
    forward_square_s: float
    forward_power: float
    backward_floor_s: float
    backward_token_s: float
    backward_square_s: float
    backward_power: float
    transfer_s: float
    transfer_token_s: float
    max_tokens: int
    padded: bool


@compiled
def curve_time(floor: float, work: float, power: float) -> float:
    """Return `(floor^p + work^p)^(1/p)`, seconds."""
    if floor == 0.0:
        return work
    high, low = max(work, floor), min(work, floor)
    return high * (1.0 + (low / high) ** power) ** (1.0 / power)


@compiled
def batch_times(costs: BatchCosts, tokens: int, squares: float, added: Added) -> tuple[float, float, float]:
    """Return forward, backward and transfer time of a micro-batch, seconds."""
    forward = costs.forward_token_s * tokens + costs.forward_square_s * squares + added.forward_work_s
    backward = costs.backward_token_s * tokens + costs.backward_square_s * squares + added.backward_work_s
    return (
        curve_time(costs.forward_floor_s + added.forward_floor_s, forward, costs.forward_power),
        curve_time(costs.backward_floor_s + added.backward_floor_s, backward, costs.backward_power),
        costs.transfer_s + costs.transfer_token_s * tokens,
    )


@compiled
def time_of_work(costs: BatchCosts, work_s: float) -> float:
    """Return forward plus backward time of a micro-batch with this forward plus backward work, seconds."""
    total = costs.forward_token_s + costs.backward_token_s
    share = costs.forward_token_s / total if total > 0 else 0.5
    forward = curve_time(costs.forward_floor_s, work_s * share, costs.forward_power)
    return forward + curve_time(costs.backward_floor_s, work_s * (1.0 - share), costs.backward_power)
