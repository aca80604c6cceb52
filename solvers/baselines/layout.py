"""How many replicas share adapters: every number that the pools admit is tried, the least GPU time wins."""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from cappuccino.errors import InfeasibleError
from cappuccino.solvers.baselines.placement import ReplicaShape
from cappuccino.solvers.baselines.replica import BaselineReplica

Layout = list[tuple[BaselineReplica, str]]
"""Replicas and their GPU types."""


def layout_cost(layout: Layout) -> tuple[float, float]:
    """Return GPU time and makespan; GPU times that differ by rounding only are equal, so that the makespan decides."""
    return float(f"{sum(r.gpu_time_s for r, _ in layout):.10g}"), max(r.makespan_s for r, _ in layout)


def best_layout(
    assignments: Iterable[Mapping[ReplicaShape, Sequence[int]]],
    schedule: Callable[[ReplicaShape, tuple[int, ...]], BaselineReplica],
    weight: Callable[[ReplicaShape, int], float],
    counts: Callable[[int], Iterable[int]],
) -> Layout:
    """Return the replicas of least GPU time.

    Raises
    ------
    InfeasibleError
        When every alternative has a replica whose adapters the memory does not hold, however many replicas there are.

    Parameters
    ----------
    assignments
        Adapters by place, in alternatives; the places of each have room side by side.
    schedule
        Schedules adapters at a place.
    weight
        How much of a replica's time an adapter takes; replicas of one place are balanced by it.
    counts
        Numbers of replicas to try where at most so many are possible, among them 1.
    """
    candidates = []
    for assignment in assignments:
        layout: Layout = []
        for gpu in dict.fromkeys(place.pool.gpu for place in assignment):
            parts = [(place, adapters) for place, adapters in assignment.items() if place.pool.gpu == gpu]
            filled = _fill(parts, schedule, weight, counts)
            if filled is None:
                break
            layout += filled
        else:
            candidates.append(layout)
    if not candidates:
        raise InfeasibleError("its replicas hold more adapters than fit the memory of their GPUs")
    return min(candidates, key=layout_cost)


def _fill(
    parts: Sequence[tuple[ReplicaShape, Sequence[int]]],
    schedule: Callable[[ReplicaShape, tuple[int, ...]], BaselineReplica],
    weight: Callable[[ReplicaShape, int], float],
    counts: Callable[[int], Iterable[int]],
) -> Layout | None:
    """Choose the number of replicas of every place of one pool: the least GPU time within the pool's GPUs.

    None where no number of them leaves the memory room for their adapters.
    """
    size = parts[0][0].pool.count
    needed = sum(place.num_stages for place, _ in parts)
    best: dict[int, Layout] = {0: []}  # by GPUs used
    for place, adapters in parts:
        weights = [weight(place, a) for a in adapters]
        most = min(len(adapters), (size - needed) // place.num_stages + 1)
        extended: dict[int, Layout] = {}
        for count in _with_the_largest(counts, most, place, adapters):
            groups = spread(weights, count)
            members = [tuple(adapters[i] for i in group) for group in groups]
            if not all(map(place.holds, members)):
                continue
            option = [(schedule(place, m), place.pool.gpu) for m in members]
            for used, layout in best.items():
                gpus = used + count * place.num_stages
                longer = layout + option
                if gpus <= size and (gpus not in extended or layout_cost(longer) < layout_cost(extended[gpus])):
                    extended[gpus] = longer
        best = extended
    return min(best.values(), key=layout_cost) if best else None


def _with_the_largest(
    counts: Callable[[int], Iterable[int]], most: int, place: ReplicaShape, adapters: Sequence[int]
) -> list[int]:
    """Return the numbers of replicas to try, and all there are where one replica cannot hold everything."""
    return sorted({*counts(most)} if place.holds(adapters) else range(1, most + 1))


def spread(weights: Sequence[float], count: int) -> list[list[int]]:
    """Spread items over at most `count` bins, heaviest item first, each into the lightest bin; the result is sorted."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0.0, b) for b in range(count)]
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        load, b = heap[0]
        bins[b].append(i)
        heapq.heapreplace(heap, (load + weights[i], b))
    return sorted(sorted(b) for b in bins if b)


def geometric_counts(most: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, ... up to `most`, and `most`."""
    counts = {1, 2, 3, most}
    value = 2
    while value <= most:
        counts |= {value, value * 3 // 2}
        value *= 2
    return sorted(c for c in counts if 1 <= c <= most)
