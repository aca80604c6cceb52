"""Where replicas may stand, and which adapters go where.

Legend: A adapters of the instance, P places.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cappuccino.bounds.room import Room
from cappuccino.costs import CostModel
from cappuccino.instance import GpuPool, Instance
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


@dataclass(frozen=True, eq=False)
class ReplicaShape:
    """Replicas of one depth on one GPU type."""

    instance: Instance = field(repr=False)
    pool: GpuPool
    costs: CostModel = field(repr=False)
    num_stages: int
    fits: np.ndarray = field(repr=False)
    """Whether each adapter's longest sample fits a stage, bool, shape (A,)."""
    room: Room = field(repr=False)
    """What memory leaves for adapters and samples."""

    def holds(self, adapters: Sequence[int]) -> bool:
        """Return whether a replica of these adapters fits its GPUs' memory."""
        members = np.bincount(list(adapters), minlength=len(self.fits))
        return bool(self.room.holds(members[None])[0])

    def problem(self, adapters: Sequence[int]) -> ReplicaProblem:
        """Return the replica of these adapters of the instance."""
        return ReplicaProblem(self.instance, self.costs, tuple(adapters), self.num_stages, self.pool.memory_gib)


def places_of(instance: Instance, costs: Mapping[str, CostModel]) -> list[ReplicaShape]:
    """Return all places of an instance, pool by pool, shallow ones first.

    Raises
    ------
    InfeasibleError
        When an adapter fits nowhere.
    """
    ReplicaSpace.of(instance, costs)  # says what an adapter that fits nowhere needs
    result = []
    for pool in instance.gpu_pools:
        choices = [(model, g) for model in costs[pool.gpu].choices for g in model.stage_counts(pool.count)]
        for model, g in sorted(choices, key=lambda choice: choice[1]):  # of one depth without recomputation first
            room = Room.of(instance, model, g, pool.memory_gib)
            fits = room.longest <= room.most_tokens()
            if fits.any():
                result.append(ReplicaShape(instance, pool, model, g, fits, room))
    return result


def least_places(places: Sequence[ReplicaShape]) -> list[ReplicaShape]:
    """Return, of each pool, the shallowest place that fits every adapter; none of a pool without one."""
    found: dict[str, ReplicaShape] = {}
    for place in places:
        if place.fits.all():
            found.setdefault(place.pool.gpu, place)
    return list(found.values())


def own_places(
    places: Sequence[ReplicaShape], gpu_time: Callable[[ReplicaShape, int], float]
) -> dict[ReplicaShape, list[int]]:
    """Assign each adapter to the shallowest place that fits it, in the pool where that costs the least GPU time.

    Replicas of all places used must stand side by side. Where the pools are too small for that, places are given up,
    those whose adapters lose least by going deeper or to another pool first. The place that fits the longest sample
    fits every adapter, so that room is found in the end.

    Parameters
    ----------
    gpu_time
        GPU time of an adapter alone at a place that fits it.

    Returns
    -------
    dict
        Adapters by place.
    """
    count = len(places[0].fits)
    fits = np.array([place.fits for place in places])
    pools = np.array([place.pool.gpu for place in places])
    kept = {p for gpu in set(pools) for p in _shallowest(fits, np.flatnonzero(pools == gpu)) if p >= 0}
    cost = np.full(fits.shape, np.inf)
    for p in kept:
        for a in np.flatnonzero(fits[p]):
            cost[p, a] = gpu_time(places[p], int(a))

    def assign(open_places: set[int]) -> tuple[float, np.ndarray]:
        by_pool = [[p for p in sorted(open_places) if pools[p] == gpu] for gpu in sorted(set(pools))]
        options = np.stack([_shallowest(fits, np.array(candidates)) for candidates in by_pool])
        costs = np.where(options >= 0, cost[options, np.arange(count)], np.inf)
        return float(costs.min(axis=0).sum()), options[costs.argmin(axis=0), np.arange(count)]

    _, chosen = assign(kept)
    while True:
        used = set(chosen.tolist())
        over = list(_overdrawn([places[p] for p in used]))
        if not over:
            break
        trials = [(assign(used - {p}), p) for p in sorted(used) if places[p].pool.gpu in over and len(used) > 1]
        trials = [t for t in trials if np.isfinite(t[0][0])]
        (_, chosen), _ = min(trials, key=lambda t: (t[0][0], t[1]))
    return {places[p]: np.flatnonzero(chosen == p).tolist() for p in sorted(used)}


def _shallowest(fits: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the first of the candidate places that fits each adapter, -1 where none does, shape (A,)."""
    if not len(candidates):
        return np.full(fits.shape[1], -1)
    some = fits[candidates]
    return np.where(some.any(axis=0), candidates[some.argmax(axis=0)], -1)


def _overdrawn(places: Sequence[ReplicaShape]) -> Iterator[str]:
    used: Counter[str] = Counter()
    for place in places:
        used[place.pool.gpu] += place.num_stages
    for place in places:
        if used[place.pool.gpu] > place.pool.count:
            yield place.pool.gpu
