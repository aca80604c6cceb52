"""How long points and the start of processes will take, by what was measured so far."""

from collections.abc import Callable, Iterable

import numpy as np
from scipy.optimize import nnls

from cappuccino.runtime.profiling.grid import Point
from cappuccino.runtime.profiling.measured import Measured

START_S = 15.0
"""Starting the processes of a run, as long as none was started: mostly imports."""
MARGIN = 1.1
"""On what is expected."""


class Expectation:
    """Expects times.

    Parameters
    ----------
    measured
        What is known; it may grow.
    guess
        Seconds of a point, as long as none was measured.
    """

    def __init__(self, measured: Measured, guess: Callable[[Point], float]) -> None:
        self._measured, self._guess = measured, guess

    def is_guessed(self, stages: int) -> bool:
        """Return whether no point that tells was measured yet, not even at another stage count."""
        return self._teacher(stages) is None

    def overhead(self, stages: int) -> float:
        """Return what a run takes besides its points, seconds: the median of those at this stage count."""
        rounds = self._measured.rounds
        mine = [one.overhead_s for one in rounds if one.num_stages == stages] or [one.overhead_s for one in rounds]
        return float(np.median(mine)) if mine else START_S

    def point(self, stages: int, point: Point) -> float:
        """Return what a point takes, its mixed step included, seconds."""
        known = self._teacher(stages)
        if known is None:
            return MARGIN * self._guess(point)
        tokens = np.array([p.tokens for p in known], dtype=float)
        seconds = np.array(list(known.values()))
        if len(set(tokens)) < 2:
            return MARGIN * float(np.median(seconds)) * max(1.0, point.tokens / float(tokens[0]))
        design = np.stack([np.ones_like(tokens), tokens], axis=1) / seconds[:, None]
        (start, per_token), _ = nnls(design, np.ones_like(seconds))
        return MARGIN * float(start + per_token * point.tokens)

    def run(self, stages: int, points: Iterable[Point]) -> float:
        """Return what a run of points takes in all, seconds."""
        return self.overhead(stages) + sum(self.point(stages, point) for point in points)

    def _teacher(self, stages: int) -> dict[Point, float] | None:
        """Return seconds by point of this stage count, or else of the one measured that is nearest."""
        others = sorted(
            {g for g, _ in self._measured.points} | set(self._measured.layers), key=lambda g: abs(g - stages)
        )
        return next((known for known in map(self._measured.seconds, others) if known), None)
