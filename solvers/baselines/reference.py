"""Baseline `reference`: the heuristics of the system that this project started from.

Adapters whose micro-batches have similar lengths share a replica (`clustering.py`). A replica begins with the
shallowest pipeline that fits its adapters; then single GPUs go where they save the most GPU time, as long as any saves
some. Every batch of a replica is packed on its own and followed by a flush (`packed_batches.py`).

In its favour: GPU time saved is judged by simulated times instead of the heuristics' own estimate, and where the
pools have no room for the best number of clusters the next best is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.solvers.baselines.clustering import LengthFeatures, clusterings, distances
from cappuccino.solvers.baselines.layout import Layout
from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.packed_batches import packed_batches
from cappuccino.solvers.baselines.placement import ReplicaShape, places_of

MakeReplica = Callable[[ReplicaShape, tuple[int, ...]], OneFOneB]


def reference(instance: Instance, costs: Mapping[str, CostModel]) -> Layout:
    """Return one replica per cluster.

    Raises
    ------
    InfeasibleError
        When an adapter fits nowhere, or no clustering fits the memory.
    """
    places = places_of(instance, costs)

    @cache
    def replica(place: ReplicaShape, adapters: tuple[int, ...]) -> OneFOneB:
        return packed_batches(place.problem(adapters))

    for clusters in clusterings(distances(LengthFeatures.of(instance))):
        chosen = _least_depths(places, clusters, replica)
        if chosen is not None:
            _grow(places, clusters, chosen, replica)
            return [(replica(p, tuple(c)), p.pool.gpu) for p, c in zip(chosen, clusters, strict=True)]
    raise InfeasibleError("its clusters hold more adapters than fit the memory of the GPUs there are")


def _least_depths(
    places: Sequence[ReplicaShape], clusters: Sequence[Sequence[int]], replica: MakeReplica
) -> list[ReplicaShape] | None:
    """Return the shallowest place of each cluster, in the pool where that costs the least GPU time.

    Clusters that take the most GPU time choose first. None when the pools have no room for all.
    """
    options: list[list[tuple[float, ReplicaShape]]] = []
    for cluster in clusters:
        shallowest: dict[str, ReplicaShape] = {}
        for place in places:
            if place.holds(cluster):
                shallowest.setdefault(place.pool.gpu, place)
        gpu_times = [(replica(place, tuple(cluster)).gpu_time_s, place) for place in shallowest.values()]
        options.append(sorted(gpu_times, key=lambda o: o[0]))
    if not all(options):
        return None
    free = {place.pool.gpu: place.pool.count for place in places}
    chosen: dict[int, ReplicaShape] = {}
    for c in sorted(range(len(clusters)), key=lambda c: -options[c][0][0]):
        with_room = [place for _, place in options[c] if place.num_stages <= free[place.pool.gpu]]
        if not with_room:
            return None
        chosen[c] = with_room[0]
        free[chosen[c].pool.gpu] -= chosen[c].num_stages
    return [chosen[c] for c in range(len(clusters))]


def _grow(
    places: Sequence[ReplicaShape], clusters: Sequence[Sequence[int]], chosen: list[ReplicaShape], replica: MakeReplica
) -> None:
    """Give single GPUs to the replica that saves the most GPU time by one, while one saves some, in place."""
    free = {place.pool.gpu: place.pool.count for place in places}
    for place in chosen:
        free[place.pool.gpu] -= place.num_stages
    deeper = {(p.pool.gpu, p.costs.recompute, p.num_stages - 1): p for p in places}
    while True:
        savings = []
        for c, cluster in enumerate(clusters):
            more = deeper.get((chosen[c].pool.gpu, chosen[c].costs.recompute, chosen[c].num_stages))
            if more is not None and free[more.pool.gpu] and more.holds(cluster):
                saved = replica(chosen[c], tuple(cluster)).gpu_time_s - replica(more, tuple(cluster)).gpu_time_s
                savings.append((saved, c, more))
        saved, c, place = max(savings, key=lambda s: s[0], default=(0.0, 0, chosen[0]))
        if saved <= 0:
            return
        chosen[c] = place
        free[place.pool.gpu] -= 1
