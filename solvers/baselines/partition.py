"""How the seed packs a batch: micro-batches sorted by length are cut into contiguous groups, each of which runs as one.

The cut minimises `((g - 1) max t + sum t) (m + g - 1) / m` over the number of groups m and the groups, t a group's time
on one of g stages.

Legend: N micro-batches of a batch, W most micro-batches in a group.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cappuccino.compiled import compiled

_GREEDY_CUTS = 16
"""Cuts made by filling up groups, for a first value to beat."""


@dataclass(frozen=True)
class Partition:
    """A cut of N sorted micro-batches into groups."""

    sizes: tuple[int, ...]
    """Micro-batches in each group."""
    value_s: float
    """The objective, seconds."""


def best_partition(times: np.ndarray, stages: int, tolerance: float = 0.0) -> Partition:
    """Return the best cut.

    For every number of groups the sums are least by dynamic programming, under a limit on the longest group that sinks
    until no number of groups can beat the best value found.

    Parameters
    ----------
    times
        Time of the group that begins at a micro-batch and holds 1, 2, ... of them, seconds, shape (N, W); grows along a
        row, infinite where it does not fit the memory or reaches beyond the end. Groups of one are finite.
    stages
        Pipeline stages g.
    tolerance
        Relative distance to the least value that is good enough.
    """
    count = len(times)
    factor = (np.arange(1, count + 1) + stages - 1) / np.arange(1, count + 1)
    shortest, longest_alone = float(times[:, 0].min()), float(times[:, 0].max())
    best = _Found(np.inf, 0, np.inf)
    for limit in np.geomspace(longest_alone, float(times[np.isfinite(times)].max()), _GREEDY_CUTS):
        total, peak, groups = _filled(times, limit)
        best = min(best, _Found(((stages - 1) * peak + total) * factor[groups - 1], groups, peak))
    # so many groups cost more even if all were as short as the shortest
    at_least = ((stages - 1) * longest_alone + np.arange(1, count + 1) * shortest) * factor
    most = max(best.groups, int(np.flatnonzero(at_least < best.value_s).max(initial=0)) + 1)
    limit = np.inf
    while True:
        sums, longest = _least_sums(times, limit, most)
        found = np.flatnonzero(np.isfinite(sums))
        if not len(found):
            break
        sums, longest, weight = sums[found], longest[found], factor[found]
        values = ((stages - 1) * longest + sums) * weight
        k = int(values.argmin())
        best = min(best, _Found(float(values[k]), int(found[k]) + 1, float(longest[k])))
        at_least_longest = np.maximum(longest_alone, sums / (found + 1))
        active = ((stages - 1) * at_least_longest + sums) * weight < best.value_s * (1 - tolerance)
        if not active.any():
            break
        most = int(found[active].max()) + 1
        # what the limit jumps over is better than what was found by less than the tolerance
        skipped = tolerance * best.value_s / (max(stages - 1, 1) * float(weight[active].max()))
        limit = min(float(np.nextafter(longest[active].max(), 0)), limit - skipped)
    sizes = _sizes(times, best.limit_s, best.groups)
    chosen = times[np.cumsum(sizes) - sizes, sizes - 1]
    value = ((stages - 1) * float(chosen.max()) + float(chosen.sum())) * factor[best.groups - 1]
    return Partition(tuple(sizes.tolist()), float(value))


class _Found(NamedTuple):
    """The least value so far, and the number and the limit of the groups that reach it."""

    value_s: float
    groups: int
    limit_s: float


@compiled
def _filled(times: np.ndarray, limit: float) -> tuple[float, float, int]:
    """Return the sum of times, the longest group and the number of groups where each is filled up to the limit."""
    count, width = times.shape
    total, longest, groups, i = 0.0, 0.0, 0, 0
    while i < count:
        w = 0
        while w + 1 < width and times[i, w + 1] <= limit:
            w += 1
        total += times[i, w]
        longest = max(longest, times[i, w])
        groups += 1
        i += w + 1
    return total, longest, groups


@compiled
def _least_sums(times: np.ndarray, limit: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for 1 to `most` groups of at most `limit` seconds, the least sum of times and the longest group of it."""
    count, width = times.shape
    sums, longest = np.full(most, np.inf), np.full(most, np.inf)
    value, peak = np.full(count + 1, np.inf), np.zeros(count + 1)
    value[0] = 0.0
    for m in range(most):
        new_value, new_peak = np.full(count + 1, np.inf), np.zeros(count + 1)
        for i in range(m, count):
            if value[i] == np.inf:
                continue
            for w in range(min(width, count - i)):
                t = times[i, w]
                if t > limit:
                    break
                if value[i] + t < new_value[i + w + 1]:
                    new_value[i + w + 1] = value[i] + t
                    new_peak[i + w + 1] = max(peak[i], t)
        value, peak = new_value, new_peak
        sums[m], longest[m] = value[count], peak[count]
    return sums, longest


@compiled
def _sizes(times: np.ndarray, limit: float, groups: int) -> np.ndarray:
    """Return the sizes of the groups that `_least_sums` found."""
    count, width = times.shape
    value = np.full(count + 1, np.inf)
    value[0] = 0.0
    chosen = np.zeros((groups, count + 1), np.int64)
    for m in range(groups):
        new_value = np.full(count + 1, np.inf)
        for i in range(m, count):
            if value[i] == np.inf:
                continue
            for w in range(min(width, count - i)):
                t = times[i, w]
                if t > limit:
                    break
                if value[i] + t < new_value[i + w + 1]:
                    new_value[i + w + 1] = value[i] + t
                    chosen[m, i + w + 1] = w + 1
        value = new_value
    result = np.zeros(groups, np.int64)
    end = count
    for m in range(groups - 1, -1, -1):
        result[m] = chosen[m, end]
        end -= result[m]
    return result
