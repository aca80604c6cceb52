"""Partitions made by filling replicas one adapter after the other: good columns to begin with, and plans that exist."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linprog

from cappuccino.compiled import compiled
from cappuccino.solvers.allocation.pricing import Place
from cappuccino.solvers.settings import DEFAULT, AllocationSettings

_INFEASIBLE = 2
"""`linprog`'s word for it."""
Partition = list[tuple[int, np.ndarray]]
"""Replicas: place, and how many adapters of each kind."""


def fill_replicas(
    places: Sequence[Place],
    counts: np.ndarray,
    pools: Mapping[str, int],
    level_s: float,
    preferred: int | None = None,
    by_memory: bool = False,
) -> Partition | None:
    """Put adapters into replicas that end within a level by their additive bounds; None where the pools are too small.

    Adapters with long paths come first, each into the replica whose cost grows least; a new replica is opened where
    none can take it.

    Parameters
    ----------
    counts
        Adapters of each kind, shape (K,).
    pools
        GPUs by type.
    preferred
        Place of new replicas wherever it admits the adapter; otherwise that where the adapter's work costs least.
    by_memory
        Adapters that take much memory come first instead, as where that is what is scarce.
    """
    admitted = np.array([p.admits(level_s) for p in places])
    if not admitted.any(axis=0).all():
        return None
    shares = np.array([np.where(a, p.shares, np.inf) for a, p in zip(admitted, places, strict=True)])
    paths = np.array([p.paths for p in places])
    depths = np.array([p.num_stages for p in places])
    rates = np.array([p.rate for p in places], dtype=float)
    weights = rates if rates.any() else depths.astype(float)
    gpus = list(pools)
    work_costs = np.where(admitted, weights[:, None] * np.where(admitted, shares, 0.0), np.inf)
    ranking = np.lexsort((np.broadcast_to(depths[:, None], shares.shape), work_costs), axis=0)
    if preferred is not None:
        others = ranking.T[preferred != ranking.T].reshape(len(counts), -1).T
        ranking = np.concatenate([np.full((1, len(counts)), preferred), others])
    reference = paths.min(axis=0) if preferred is None else np.minimum(paths[preferred], np.finfo(float).max)
    if by_memory:
        reference = np.max([p.room.parts() for p in places if p.room is not None], axis=0)
    nothing, rooms = np.zeros(len(counts)), [p.room for p in places]
    place, numbers = _fill(
        np.argsort(-reference, kind="stable"),
        counts,
        shares,
        paths,
        weights,
        np.array([p.ramp_s for p in places]),
        depths,
        np.array([gpus.index(p.gpu) for p in places]),
        np.array(list(pools.values())),
        ranking,
        level_s,
        np.array([np.inf if r is None else r.capacity_gib for r in rooms]),
        np.array([0.0 if r is None else r.token_gib for r in rooms]),
        np.array([nothing if r is None else r.adapters_gib for r in rooms]),
        np.array([nothing if r is None else r.masks_gib for r in rooms]),
        np.array([nothing if r is None else r.longest for r in rooms], dtype=float),
    )
    return None if len(numbers) == 0 else [(int(p), n) for p, n in zip(place, numbers, strict=True)]


@compiled
def _fill(
    order: np.ndarray,
    counts: np.ndarray,
    shares: np.ndarray,
    paths: np.ndarray,
    weights: np.ndarray,
    ramps: np.ndarray,
    depths: np.ndarray,
    pool_of: np.ndarray,
    left: np.ndarray,
    ranking: np.ndarray,
    level_s: float,
    capacity_gib: np.ndarray,
    token_gib: np.ndarray,
    adapter_gib: np.ndarray,
    mask_gib: np.ndarray,
    sample: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Fill replicas; see `fill_replicas`.

    Parameters
    ----------
    order
        Kinds as they are placed.
    shares, paths
        By place and kind, seconds; infinite where not admitted.
    weights, ramps, depths, pool_of
        By place: cost per second, bound's constant, GPUs, index of the pool.
    left
        GPUs of every pool; used up.
    ranking
        Places in the order in which new replicas of a kind are tried, shape (places, K).
    capacity_gib, token_gib
        By place, as `Room` has them.
    adapter_gib, mask_gib, sample
        By place and kind: memory of an adapter, of its masks a token, tokens of its longest sample.

    Returns
    -------
    place
        Of every replica.
    numbers
        Adapters of each kind in every replica; no rows where the pools are too small.
    """
    most = min(counts.sum(), left.sum())
    place = np.zeros(most, dtype=np.int64)
    loads, longest = np.zeros(most), np.zeros(most)
    held_gib, masks_gib, longest_sample = np.zeros(most), np.zeros(most), np.zeros(most)
    numbers = np.zeros((most, len(counts)), dtype=np.int64)
    size = 0
    for kind in order:
        for _ in range(counts[kind]):
            best, least = -1, np.inf
            for r in range(size):
                p = place[r]
                load = loads[r] + shares[p, kind]
                makespan = max(load, longest[r], paths[p, kind])
                room = (capacity_gib[p] - held_gib[r] - adapter_gib[p, kind]) * (1 + 1e-9)
                token = token_gib[p] + max(masks_gib[r], mask_gib[p, kind])
                if makespan > level_s or max(longest_sample[r], sample[p, kind]) * token > room:
                    continue
                growth = weights[p] * (makespan - max(loads[r], longest[r]))
                # of equals the fullest
                if growth < least * (1 - 1e-9) - 1e-12 or (growth <= least * (1 + 1e-9) and loads[r] > loads[best]):
                    best, least = r, growth
            if best < 0:
                for p in ranking[:, kind]:
                    if shares[p, kind] < np.inf and depths[p] <= left[pool_of[p]]:
                        left[pool_of[p]] -= depths[p]
                        best = size
                        place[best], loads[best] = p, ramps[p]
                        size += 1
                        break
            if best < 0:
                return place[:0], numbers[:0]
            p = place[best]
            loads[best] += shares[p, kind]
            longest[best] = max(longest[best], paths[p, kind])
            held_gib[best] += adapter_gib[p, kind]
            masks_gib[best] = max(masks_gib[best], mask_gib[p, kind])
            longest_sample[best] = max(longest_sample[best], sample[p, kind])
            numbers[best, kind] += 1
    return place[:size], numbers[:size]


def filled_partitions(
    places: Sequence[Place],
    counts: np.ndarray,
    pools: Mapping[str, int],
    deadline_s: float | None,
    settings: AllocationSettings = DEFAULT.allocation,
) -> list[Partition]:
    """Return partitions of every preferred depth, filled up to several levels, and such that deal adapters out."""
    result = []
    for preferred in range(len(places)):
        for level in _levels(places, counts, pools, preferred, deadline_s, settings):
            for found in (
                fill_replicas(places, counts, pools, level, preferred),
                deal_adapters(places, counts, pools, level, preferred, settings),
            ):
                if found is not None:
                    result.append(found)
        if any(p.room is not None for p in places):
            level = np.finfo(float).max if deadline_s is None else deadline_s
            found = fill_replicas(places, counts, pools, level, preferred, by_memory=True)
            result += [found] if found is not None else []
    return result


def deal_adapters(
    places: Sequence[Place],
    counts: np.ndarray,
    pools: Mapping[str, int],
    level_s: float,
    place: int,
    settings: AllocationSettings = DEFAULT.allocation,
) -> Partition | None:
    """Deal adapters out like cards to as many replicas of a place as a level asks for, kind after kind.

    Of adapters that are alike, all replicas get equally many or one more. So there are few different replicas, and few
    schedules to make. None where one would not end within the level, or the pool is too small.
    """
    where = places[place]
    if not where.admits(level_s).all():
        return None
    kinds = np.repeat(np.arange(len(counts)), counts)
    kinds = kinds[np.argsort(-where.shares[kinds], kind="stable")]
    least = math.ceil(float(counts @ where.shares) / max(level_s - where.ramp_s, 1e-12) - 1e-9)
    least = max(least, 0 if where.room is None else where.room.fewest_replicas(counts))
    most = min(pools[where.gpu] // where.num_stages, len(kinds))
    for size in range(max(1, least), min(most, math.ceil(settings.spare_replicas * least)) + 1):
        numbers = np.zeros((size, len(counts)), dtype=np.int64)
        np.add.at(numbers, (np.arange(len(kinds)) % size, kinds), 1)
        if where.makespans(numbers).max() <= level_s:
            return [(place, row) for row in numbers]
    return None


def _levels(
    places: Sequence[Place],
    counts: np.ndarray,
    pools: Mapping[str, int],
    preferred: int,
    deadline_s: float | None,
    settings: AllocationSettings,
) -> list[float]:
    place = places[preferred]
    admitted = place.admits(deadline_s)
    if not admitted.any():
        return []
    work = float(counts[admitted] @ place.shares[admitted])
    replicas = max(1, pools[place.gpu] // place.num_stages)
    # an adapter that another depth must take has its path there
    path = float(np.min([p.paths for p in places], axis=0).max())
    least = max(place.ramp_s + work / replicas, float(place.paths[admitted].max()), path)
    everything = least + max(float(counts @ np.where(p.fits, p.shares, 0.0)) for p in places)
    levels = [least * x for x in settings.fill_levels if least * x < everything] + [everything]
    if deadline_s is not None:
        levels = [x for x in levels if x < deadline_s] + [deadline_s * x for x in settings.room_to_deadline]
    return levels


def shortest_partition(
    places: Sequence[Place],
    counts: np.ndarray,
    pools: Mapping[str, int],
    low_s: float,
    high_s: float,
    settings: AllocationSettings = DEFAULT.allocation,
) -> Partition | None:
    """Return the partition of the least level that filling succeeds at, by bisection between two makespans."""
    best = fill_replicas(places, counts, pools, high_s)
    for _ in range(settings.bisections if best is not None else 0):
        middle = (low_s + high_s) / 2
        found = fill_replicas(places, counts, pools, middle)
        if found is None:
            low_s = middle
        else:
            best, high_s = found, middle
    return best


def memory_suffices(places: Sequence[Place], counts: np.ndarray, pools: Mapping[str, int]) -> bool:
    """Return whether all adapters' memory fits the GPUs if adapters and replicas were divisible.

    A linear program: how many adapters of each kind run at each place, where a replica's adapters take parts of its
    memory that add up to 1 at most.
    """
    parts = np.array([np.zeros(len(counts)) if p.room is None else p.room.parts() for p in places])
    allowed = np.array([p.fits for p in places]) & np.isfinite(parts)
    gpus = np.array([p.num_stages for p in places])[:, None] * np.where(allowed, parts, 0.0)
    used = np.array([[(p.gpu == gpu) * row for p, row in zip(places, gpus, strict=True)] for gpu in pools])
    covered = np.tile(np.eye(len(counts)), len(places))
    limits = [(0.0, None if ok else 0.0) for ok in allowed.ravel()]
    found = linprog(
        np.zeros(allowed.size),
        A_ub=used.reshape(len(pools), -1),
        b_ub=np.array(list(pools.values()), dtype=float) * (1 + 1e-9),
        A_eq=covered,
        b_eq=counts.astype(float),
        bounds=limits,
    )
    return bool(found.status != _INFEASIBLE)
