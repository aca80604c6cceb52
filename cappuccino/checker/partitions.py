"""Few adapters: every set of them, and the best way to part them among replicas.

Legend: K kinds of adapters, N sets, given by how many adapters of each kind they hold, P places.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cappuccino.checker.places import Space

MOST_SETS = 2**12
"""Sets up to which they are listed: those of 12 adapters that are all different."""
MOST_WORK = 10**8
"""Sets times ways to part them times free GPUs, up to which the best partition is looked for."""
_HAIR = 1e-9


def can_part(space: Space) -> bool:
    """Return whether the best partition is in reach."""
    ways = 1
    for n in space.counts.tolist():
        ways *= (n + 1) * (n + 2) // 2
    free = int(np.prod([count + 1 for count in space.gpus.values()]))
    sets = space.number_of_sets
    return ways * free * len(space.places) <= MOST_WORK and sets**2 * len(space.counts) <= 4 * MOST_WORK


@dataclass(frozen=True)
class ListedSets:
    """All sets of adapters in all places."""

    space: Space
    sets: np.ndarray
    """Shape (N, K), in the order of their numbers in mixed radix."""
    makespans: np.ndarray
    """Bounds, seconds, shape (P, N); infinite where memory does not hold a set."""

    @classmethod
    def of(cls, space: Space) -> "ListedSets":
        """List them."""
        sets = np.indices(tuple(space.counts + 1)).reshape(len(space.counts), -1).T[1:]
        return cls(space, sets, np.array([place.makespans(sets) for place in space.places]))

    def largest_ratio(self, place: int, limit_s: float, least: float) -> float:
        """Return the most that a set is paid at a place for a unit of its cost, and `least` where that is more.

        Infinite where a set is paid that is free.
        """
        makespans, paid = self.makespans[place], self.sets @ self.space.prices
        within = np.isfinite(makespans) & (makespans <= limit_s) & (paid > 0)
        cost = self.space.places[place].rate * makespans[within] + self.space.places[place].charge
        with np.errstate(over="ignore"):
            ratios = np.divide(paid[within], cost, out=np.full(len(cost), np.inf), where=cost > 0)
        return max(least, float(ratios.max(initial=0.0)))

    def least_objective(self, limit_s: float, makespan: bool) -> float:
        """Return the least sum of costs over all partitions, or the least longest makespan; infinite for none.

        By how many adapters are left and how many GPUs may be used: some replica holds an adapter of the first kind
        left.
        """
        free = tuple(count + 1 for count in self.space.gpus.values())
        least = np.full((len(self.sets) + 1, *free), np.inf)
        least[0] = 0.0
        within = self.makespans <= min(limit_s * (1 + _HAIR), np.finfo(float).max)
        rates = np.array([[1.0 if makespan else place.rate] for place in self.space.places])
        costs = np.where(within, rates * np.where(within, self.makespans, 0.0), np.inf)
        axes = [list(self.space.gpus).index(place.gpu) for place in self.space.places]
        for number, taken in self._choices():
            for place, cost, axis in zip(self.space.places, costs, axes, strict=True):
                rest = np.moveaxis(least[number - taken], axis + 1, -1)[..., : free[axis] - place.num_stages]
                own = cost[taken - 1].reshape(-1, *[1] * len(free))
                found = (np.maximum(rest, own) if makespan else rest + own).min(axis=0)
                here = np.moveaxis(least[number], axis, -1)[..., place.num_stages :]
                np.minimum(here, found, out=here)
        return float(least[-1].reshape(-1)[-1])

    def _choices(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of every set and those of its subsets with an adapter of its first kind, from 1."""
        for number, whole in enumerate(self.sets, start=1):
            first = int(np.flatnonzero(whole)[0])
            below = self.sets[:number]
            yield number, 1 + np.flatnonzero((below[:, first] > 0) & (below <= whole).all(axis=1))
