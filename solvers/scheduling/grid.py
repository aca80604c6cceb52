"""What micro-batches of a replica cost, as integers that the models in CP-SAT take: rounded down."""

from cappuccino.models.replica_data import SCALE, WAYS, WHOLE, CurveData, SampleData, Way
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


def sample_data(problem: ReplicaProblem, adapter: int, number: int, unit: float) -> SampleData:
    """Return the n-th sample of an adapter, in its training order, on a grid of `unit` seconds."""
    lengths = problem.lengths[adapter]
    step, place = divmod(number, lengths.shape[1])
    tokens = int(lengths[step, place])
    costs = problem.adapter_costs
    work: dict[Way, tuple[int, ...]] = {}
    for w, curves, more in zip(WAYS, problem.pipeline.curves, (costs.forward_work, costs.backward_work), strict=True):
        own = [float(more[adapter]) * tokens, *(0.0 for _ in curves[1:])]
        work[w] = tuple(
            int((float(c.work(tokens, tokens**2)) + x) * most / unit)
            for c, x, most in zip(curves, own, _most_shares(problem), strict=True)
        )
    return SampleData(adapter, step, tokens, work)


def curves_data(problem: ReplicaProblem, unit: float) -> dict[Way, tuple[CurveData, ...]]:
    """Return the curves of a micro-batch's time on a grid of `unit` seconds."""
    return {way: _curves(problem, way, unit) for way in WAYS}


def lag_data(problem: ReplicaProblem, unit: float) -> tuple[int, int]:
    """Return what a transfer takes at least, and per `SCALE` tokens."""
    latency, per_token = problem.costs.transfer
    return int(latency / unit), int(SCALE * per_token / unit)


def _curves(problem: ReplicaProblem, way: Way, unit: float) -> tuple[CurveData, ...]:
    pipeline, k = problem.pipeline, WAYS.index(way)
    costs = problem.adapter_costs
    floors = (costs.forward_floor, costs.backward_floor)[k]
    found = []
    for c, curve in enumerate(pipeline.curves[k]):
        most = _most_shares(problem)[c]
        shares = tuple(int(WHOLE * x / most) for x in pipeline.shares[:, c])
        own = tuple(int(float(x) * most / unit) if c == 0 else 0 for x in floors)
        found.append(CurveData(int(curve.floor_s * most / unit), own, curve.power, shares))
    return tuple(found)


def _most_shares(problem: ReplicaProblem) -> list[float]:
    """Return by curve how much of it the stage takes that takes the most: times are rounded once, at that."""
    return [float(x) or 1.0 for x in problem.pipeline.shares.max(axis=0)]
