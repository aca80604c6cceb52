"""What makespan to expect of a replica that nobody has scheduled yet.

A schedule ends above its bound the more, the deeper the pipeline is and the closer the longest path comes to the work,
which is then too little to fill the bubbles. A rule of thumb says how much; schedules made since correct it, most for
replicas that are alike in depth, in that closeness and in the adapter with the longest path, on GPUs of one type and
with one recomputation: where memory is scarce, others end far nearer to their bounds.
"""

from collections.abc import Sequence

import numpy as np

from cappuccino.solvers.allocation.pricing import Place
from cappuccino.solvers.settings import DEFAULT, AllocationSettings


class Expectation:
    """Learns from schedules how far above their bounds replicas end.

    Parameters
    ----------
    places
        Pools and depths.
    """

    def __init__(self, places: Sequence[Place], settings: AllocationSettings = DEFAULT.allocation) -> None:
        self.places, self.settings = places, settings
        self._seen: list[tuple[float, int, int, float]] = []

    def observe(self, place: int, numbers: np.ndarray, bound_s: float, makespan_s: float) -> None:
        """Take note of a schedule: its bound and its makespan."""
        tightness, critical = self._features(place, numbers[None])
        excess = makespan_s / bound_s - 1 if bound_s > 0 else 0.0
        factor = excess / float(self._rule(place, tightness)[0])
        self._seen.append((float(tightness[0]), place, int(critical[0]), factor))

    def makespans(self, place: int, sets: np.ndarray, bounds_s: np.ndarray) -> np.ndarray:
        """Return expected makespans, seconds, shape (N,).

        Parameters
        ----------
        place
            Index of the place.
        sets
            How many adapters of each kind, shape (N, K).
        bounds_s
            Proven bounds, shape (N,).
        """
        tightness, critical = self._features(place, sets)
        total, weight = np.full((2, len(sets)), self.settings.prior_weight)
        s = self.settings
        for seen_tightness, seen_place, seen_critical, factor in self._seen:
            apart = (tightness - seen_tightness) / s.alike_tightness
            near = np.exp(-(apart**2)) * np.where(critical == seen_critical, 1.0, s.other_path)
            near *= self._likeness(place, seen_place)
            total += near * factor
            weight += near
        return np.asarray(bounds_s * (1 + total / weight * self._rule(place, tightness)))

    def _likeness(self, place: int, other: int) -> float:
        """Return what a schedule at one place says of replicas at another, 1 for the same."""
        s, (here, there) = self.settings, (self.places[place], self.places[other])
        deeper = np.log(here.num_stages / there.num_stages) / s.alike_depth
        same = (here.gpu, here.recompute) == (there.gpu, there.recompute)
        return float(np.exp(-(deeper**2))) * (1.0 if same else s.other_costs)

    def _features(self, place: int, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longest path over work, and the kind with the longest path."""
        where = self.places[place]
        busy = where.ramp_s + sets @ np.where(where.fits, where.shares, 0.0)
        paths = np.where(sets > 0, np.where(where.fits, where.paths, 0.0), 0.0)
        return paths.max(axis=1) / np.maximum(busy, 1e-300), paths.argmax(axis=1)

    def _rule(self, place: int, tightness: np.ndarray) -> np.ndarray:
        s, stages = self.settings, self.places[place].num_stages
        bubble = np.minimum(tightness, 1.0) ** s.slack_power / np.maximum(tightness, 1.0) ** s.path_power
        return np.asarray(s.friction * stages + s.bubble * (stages - 1) * bubble)
