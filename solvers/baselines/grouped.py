"""Baseline `grouped`: groups of adapters whose batches alternate, bin-packed (LoRAFusion, arXiv 2510.00206).

Adapters are dealt into groups, long samples with short ones. Step j of every group follows in turn, then step j + 1:
while one group's micro-batches run, those of the others separate its steps. A step of a group is packed into the fewest
micro-batches that first fit finds under a token capacity (longest samples first); what the last one of them has room
for is taken from the next group's last one, unless that brought two steps of that group within g - 1 micro-batches.
1F1B without flush; where too few micro-batches separate two steps, the pipeline waits.

All in its favour: LoRAFusion takes pairs of adapters and one capacity; here numbers of groups and capacities are
searched for every replica, and every depth that fits all adapters is tried as well as each adapter at its own. Where
that gives the least GPU time with few replicas, numbers of replicas up to what the pools admit are tried; the least GPU
time counts.

Legend: N samples of a replica.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property

import numpy as np

from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.solvers.baselines.bin_packing import pack_steps
from cappuccino.solvers.baselines.layout import Layout, best_layout, geometric_counts, layout_cost
from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.placement import ReplicaShape, own_places, places_of
from cappuccino.solvers.baselines.samples import Samples
from cappuccino.solvers.baselines.sequential import alone_gpu_time
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem

CAPACITIES = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Token capacities tried, in multiples of the tokens where a micro-batch leaves the launch-bound floor (or of the mean
sample, if that is longer); besides, all that the memory holds."""

MOST_PROMISING = 2
"""Choices of depths for which numbers of replicas are tried."""


def grouped(instance: Instance, costs: Mapping[str, CostModel]) -> Layout:
    """Return the replicas.

    Raises
    ------
    InfeasibleError
        When an adapter fits nowhere, or no replicas of one depth hold them all.
    """
    places = places_of(instance, costs)
    everyone = list(range(len(instance.adapters)))
    assignments: list[dict[ReplicaShape, list[int]]] = [{place: everyone} for place in places if place.fits.all()]
    assignments.append(own_places(places, alone_gpu_time))

    @cache
    def replica(place: ReplicaShape, adapters: tuple[int, ...]) -> OneFOneB:
        return _Search(place.problem(adapters)).best()

    def best(candidates: list[dict[ReplicaShape, list[int]]], counts: Callable[[int], Iterable[int]]) -> Layout:
        return best_layout(candidates, replica, _work_s, counts)

    def cost(assignment: dict[ReplicaShape, list[int]]) -> tuple[float, float]:
        try:
            return layout_cost(best([assignment], lambda _: [1]))
        except InfeasibleError:
            return float("inf"), float("inf")

    assignments.sort(key=cost)
    return best(assignments[:MOST_PROMISING], geometric_counts)


def _work_s(place: ReplicaShape, adapter: int) -> float:
    """Return the time that an adapter's samples take on a stage in the fullest micro-batches."""
    return float(place.problem([adapter]).sample_work[0].sum())


def deal(mean_length: np.ndarray, groups: int) -> np.ndarray:
    """Return the group of each adapter: dealt from the longest mean length to the shortest, to and fro.

    With half as many groups as adapters, these are the pairs of the longest with the shortest, and so on.
    """
    turn, place = np.divmod(np.arange(len(mean_length)), groups)
    result = np.empty(len(mean_length), np.int64)
    result[np.argsort(-mean_length, kind="stable")] = np.where(turn % 2 == 0, place, groups - 1 - place)
    return result


class _Search:
    """Looks for the number of groups and the capacity of one replica."""

    def __init__(self, problem: ReplicaProblem) -> None:
        self._problem, self._samples = problem, Samples.of(problem)
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._tried: dict[tuple[int, int], OneFOneB] = {}

    def best(self) -> OneFOneB:
        """Return the best replica found: capacities for pairs, numbers of groups for the best, capacities again."""
        adapters = len(self._problem.adapters)
        groups, capacities = (adapters + 1) // 2, self._capacities
        capacity = min(capacities, key=lambda c: self._try(groups, c).makespan_s)
        groups = min({*geometric_counts(adapters), groups}, key=lambda n: self._try(n, capacity).makespan_s)
        return min((self._try(groups, c) for c in capacities), key=lambda replica: replica.makespan_s)

    @cached_property
    def _capacities(self) -> list[int]:
        problem, length = self._problem, self._samples.length
        work = sum(float(w.sum()) for w in problem.sample_work)
        launch_bound = problem.launch_bound_work / work * float(length.sum()) if work > 0 else 0.0
        unit = max(launch_bound, float(length.mean()))
        return sorted({min(int(f * unit), problem.max_tokens) for f in CAPACITIES} | {problem.max_tokens})

    def _try(self, groups: int, capacity: int) -> OneFOneB:
        if (groups, capacity) not in self._tried:
            by_step, group = self._order(groups)
            samples, problem = self._samples, self._problem
            rank = np.empty(len(by_step), np.int64)
            rank[by_step] = pack_steps(
                samples.length[by_step],
                samples.step[by_step],
                group[by_step],
                min(capacity, problem.max_tokens),
                problem.num_stages,
                problem.instance.layout == "padded",
            )
            self._tried[groups, capacity] = OneFOneB(problem, samples, rank)
        return self._tried[groups, capacity]

    def _order(self, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples sorted by step, group and falling length, and the group of each sample."""
        if groups not in self._sorted:
            samples = self._samples
            mean = np.array([x.mean() for x in self._problem.lengths])
            group = deal(mean, groups)[samples.position]
            self._sorted[groups] = np.lexsort((-samples.length, group, samples.step)), group
        return self._sorted[groups]
