"""Repacks the samples of neighbouring micro-batches with a CP-SAT model and schedules the order anew."""

from collections.abc import Sequence

import numpy as np

from cappuccino.models.packing import PackingData, PackingModel
from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem
from cappuccino.solvers.settings import DEFAULT

_TOTAL_WORK = 10**6
"""Work of the samples of one model on its integer grid."""


def repack(
    problem: ReplicaProblem,
    order: Sequence[Batch],
    makespan_s: float,
    num_batches: int,
    patience_s: float,
    rng: np.random.Generator,
    preference: float = DEFAULT.scheduling.packing_preference,
    *,
    time_limit_s: float | None,
    deterministic_limit: float = 0.5,
) -> ScheduledOrder | None:
    """Repack up to `num_batches` neighbouring micro-batches at a random place; None when that ends no earlier.

    They are chosen so that no adapter has two steps among them; then any exchange keeps the steps in order. Random
    preferences for early or late micro-batches make the packings differ.

    Parameters
    ----------
    makespan_s
        To be beaten, without the optimizer steps that end the adapters.
    patience_s
        As in `ScheduledOrder.of`.
    preference
        Standard deviation of the random preferences, relative to a sample's work and per place.
    time_limit_s
        Wall-clock limit of the model; None leaves the deterministic one.
    """
    if problem.instance.layout == "padded":
        return None  # times are not a function of the sum of the samples' work there; the local search packs these
    low = int(rng.integers(len(order)))
    high, step_of = low, dict[int, int]()
    while high < len(order) and high - low < num_batches:
        if order[high].evaluation is not None or any(step_of.get(a, j) != j for a, j in order[high].steps):
            break
        step_of.update(order[high].steps)
        high += 1
    samples = [s for b in order[low:high] for s in b.samples]
    if high - low < 2 or len(samples) < 3:
        return None
    data = _packing_data(problem, order[low:high], samples, rng, preference)
    seed = int(rng.integers(2**31 - 1))
    places = PackingModel(data).solve(time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed)
    if places is None or tuple(places) == data.current:
        return None
    groups: list[list[Sample]] = [[] for _ in range(data.num_batches)]
    for sample, b in zip(samples, places, strict=True):
        groups[b].append(sample)
    new = [*order[:low], *problem.batches([g for g in groups if g]), *order[high:]]
    found = ScheduledOrder.of(problem, new, patience_s, cutoff_s=makespan_s)
    return found if found is not None and found.makespan_s < makespan_s else None


def _packing_data(
    problem: ReplicaProblem,
    batches: Sequence[Batch],
    samples: Sequence[Sample],
    rng: np.random.Generator,
    preference: float,
) -> PackingData:
    works = [float(problem.sample_work[a].ravel()[n]) for a, n in samples]
    total = sum(works)
    scale = _TOTAL_WORK / max(total, problem.launch_bound_work)
    tangents = []
    for x in (0.0, *np.geomspace(min(works), total, 12)):
        width = 1e-4 * total
        slope = (problem.time_of_work(x + width) - problem.time_of_work(x)) / width
        offset = problem.time_of_work(x) - slope * x
        tangents.append((round(slope * 1000), round(offset * scale * 1000), 1000))
    weight = {a: float(rng.normal(0, preference)) for a in sorted({a for a, _ in samples})}
    return PackingData(
        work=tuple(max(1, round(w * scale)) for w in works),
        tokens=tuple(problem.batch_tokens([s]) for s in samples),
        current=tuple(b for b, batch in enumerate(batches) for _ in batch.samples),
        num_batches=len(batches),
        max_tokens=problem.max_tokens,
        time_tangents=tuple(tangents),
        preference=tuple(
            tuple(round(weight[a] * w * scale * b) for b in range(len(batches)))
            for (a, _), w in zip(samples, works, strict=True)
        ),
    )
