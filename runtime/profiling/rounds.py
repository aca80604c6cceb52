"""Rounds of measuring: what is run next, until the fit is good enough, the budget is spent or the grid is complete."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from cappuccino.costs.fit import FEWEST_ROWS
from cappuccino.errors import counted
from cappuccino.runtime.profiling.budget import Budget
from cappuccino.runtime.profiling.choice import most_uncertain, spanning_points
from cappuccino.runtime.profiling.expectation import Expectation
from cappuccino.runtime.profiling.grid import Point
from cappuccino.runtime.profiling.measured import Measured

_STARTS_A_ROUND = 4.0
"""Starts of processes that a round takes at least, so that most of the time is spent measuring."""
_SHARE_OF_FIRST = 0.35
"""Of a stage count's share of the time, for its first points besides the fewest: they tell how long others take."""
_SHARE_OF_LARGEST = 0.7
"""Of a stage count's share of the time that is left, for its largest micro-batch."""


class Ended(StrEnum):
    """What ended a profile."""

    TARGET = "target reached"
    BUDGET = "budget spent"
    COMPLETE = "grid complete"


@dataclass(frozen=True)
class Round:
    """Points that one run of processes measures, ended when `over` says so."""

    num_stages: int
    points: tuple[Point, ...]
    over: Callable[[], bool]


@dataclass(frozen=True)
class Certainty:
    """What is known of the fit."""

    error: float | None
    """On rows left out, of time or memory, whichever is larger; None where the rows are too few."""
    covariances: dict[int, np.ndarray]
    """By stage count, of the logarithms of the times of the points left."""

    @property
    def largest(self) -> float:
        """Standard error of the point left that the fit is least certain of, relative to its time."""
        return max((float(np.sqrt(c.diagonal().max())) for c in self.covariances.values() if c.size), default=0.0)


@dataclass(frozen=True)
class Shortage:
    """Stage counts that the time was too little for."""

    num_stages: tuple[int, ...]
    """Those with fewer rows than a fit needs."""
    num_rows: int
    """That they have in all."""
    problem: str
    remedy: str
    """How to go on."""


class Judge(Protocol):
    """Judges the fit to what was measured so far."""

    def certainty(self, left: Mapping[int, Sequence[Point]]) -> Certainty:
        """Return how good it is, and how sure of the points that are left, by stage count."""


class Rounds:
    """Chooses rounds one after the other.

    Parameters
    ----------
    stage_counts
        Wanted.
    points
        Candidates at every stage count.
    measured
        What is known; whoever runs the rounds adds to it.
    budget
        For all of them.
    expectation
        Of times.
    target_error
        At which the fit is good enough; without a limit of time everything is measured.
    judge
        Tells how good the fit to what is known is.
    """

    def __init__(
        self,
        stage_counts: Sequence[int],
        points: Sequence[Point],
        measured: Measured,
        budget: Budget,
        expectation: Expectation,
        target_error: float,
        judge: "Judge",
    ) -> None:
        self._stage_counts, self._points = stage_counts, list(points)
        self._measured, self._budget, self._expectation = measured, budget, expectation
        self._target, self._judge = target_error, judge
        self._spanning = spanning_points(points)
        self._in_vain: set[int] = set()
        self.ended: Ended | None = None
        """Set once there is no further round."""
        self.error: float | None = None
        """Of the last fit."""
        self.shortage: Shortage | None = None
        """Set where the budget is spent before every stage count has enough rows to fit."""

    def next(self) -> Round | None:
        """Return the next round; None once there is none."""
        left = {g: self.left(g) for g in self._stage_counts}
        if not any(left.values()):
            self.ended = Ended.COMPLETE
            return None
        if not self._budget.is_limited:
            stages = next(g for g, points in left.items() if points)
            return Round(stages, tuple(left[stages]), lambda: False)
        lacking = [g for g, points in left.items() if points and self._rows(g) < FEWEST_ROWS]
        if lacking:
            first = self._first_round([g for g in lacking if g not in self._in_vain])
            if first is None:
                self.shortage, self.ended = self._shortage(lacking), Ended.BUDGET
            return first
        by_time = sorted((g for g, points in left.items() if points), key=self._seconds)
        for stages in by_time:
            wanted = [p for p in self._spanning if p in left[stages]]
            share = self._budget.left / len(by_time)
            largest = self._largest(stages, left[stages], share)
            if largest is not None:
                wanted = [largest, *(p for p in wanted if p != largest)]
            needed = self._that_fit(stages, wanted, share)
            needed = needed or self._that_fit(stages, wanted, self._budget.left)[:1]
            if needed:
                return self._round(stages, needed)
        known = self._judge.certainty(left)
        self.error = known.error
        if known.error is not None and known.error <= self._target and known.largest <= self._target:
            self.ended = Ended.TARGET
            return None
        for stages in by_time:
            overhead = self._expectation.overhead(stages)
            share = self._budget.left / len(by_time)
            # as long as all before: few rounds, and no more than about twice what the target needs
            usual = max(_STARTS_A_ROUND * overhead, min(share / 2, self._seconds(stages)))
            room = min(self._budget.left, usual) - overhead
            seconds = [self._expectation.point(stages, p) for p in left[stages]]
            chosen = most_uncertain(known.covariances[stages], seconds, room)
            if not chosen:  # the last round may take all that is left
                chosen = most_uncertain(known.covariances[stages], seconds, self._budget.left - overhead)[:1]
            if chosen:
                return self._round(stages, [left[stages][c] for c in chosen])
        self.ended = Ended.BUDGET
        return None

    def _largest(self, stages: int, left: Sequence[Point], share_s: float) -> Point | None:
        """Return the largest micro-batch that a part of a stage count's time is enough for, if larger than all known.

        Plans make micro-batches as large as memory allows, and nothing tells how an extrapolation ends but its end.
        """
        known = max((point.tokens for point, fits in self._measured.known(stages).items() if fits), default=0)
        larger = [
            p for p in left if p.tokens > known and self._expectation.run(stages, [p]) <= _SHARE_OF_LARGEST * share_s
        ]
        return max(larger, key=lambda p: (p.tokens, p.length), default=None)

    def left(self, stages: int) -> list[Point]:
        """Return the candidates that were not measured yet."""
        known = self._measured.known(stages)
        return [point for point in self._points if point not in known]

    def in_vain(self, stages: int) -> None:
        """Note that a round was ended before its first point was done: it is not tried again."""
        self._in_vain.add(stages)

    def _rows(self, stages: int) -> int:
        return sum(self._measured.known(stages).values())

    def _seconds(self, stages: int) -> float:
        """Return the time spent on a stage count so far."""
        return sum(one.seconds for one in self._measured.rounds if one.num_stages == stages)

    def _round(self, stages: int, points: Sequence[Point]) -> Round:
        ordered = sorted(points, key=self._points.index)  # memory only grows on the way
        return Round(stages, tuple(ordered), lambda: self._budget.left <= 0)

    def _that_fit(self, stages: int, points: Sequence[Point], room_s: float) -> list[Point]:
        """Return as many of the points, in their order, as are expected to be done in time."""
        chosen: list[Point] = []
        for point in points:
            if self._expectation.run(stages, [*chosen, point]) <= room_s:
                chosen.append(point)
        return chosen

    def _first_round(self, lacking: list[int]) -> Round | None:
        """Return the round that gives the first of the stage counts enough rows, in its share of the time."""
        for stages in lacking:
            fewest = FEWEST_ROWS - self._rows(stages)
            wanted = [p for p in self._spanning if p in self.left(stages)]
            wanted += [p for p in self.left(stages) if p not in wanted]
            others = [g for g in lacking if g != stages]
            room = self._budget.left - sum(self._least(g) for g in others)
            share = self._budget.left / len(lacking)
            needed = wanted[:fewest]
            if self._expectation.run(stages, needed) > room and not self._expectation.is_guessed(stages):
                cheap = sorted(wanted, key=lambda p: self._expectation.point(stages, p))[:fewest]
                needed = self._that_fit(stages, cheap, self._budget.left)
            if not needed or self._budget.left <= 0:
                continue
            spanning = [p for p in wanted if p in self._spanning and p not in needed]
            for point in spanning:
                if self._expectation.run(stages, [*needed, point]) <= _SHARE_OF_FIRST * share:
                    needed.append(point)
            soft = self._budget.spent + share

            def over(stages: int = stages, others: Sequence[int] = others, soft: float = soft) -> bool:
                if self._budget.left <= 0 or self._budget.spent <= soft:
                    return self._budget.left <= 0
                if self._rows(stages) >= FEWEST_ROWS:
                    return True
                # what the others need is known better once something was measured
                return bool(others) and self._budget.left <= sum(self._least(g) for g in others)

            return Round(stages, tuple(sorted(needed, key=self._points.index)), over)
        return None

    def _least(self, stages: int) -> float:
        """Return what the fewest rows that a stage count still needs take, seconds; nothing while that is a guess."""
        if self._expectation.is_guessed(stages):
            return 0.0
        points = sorted(self.left(stages), key=lambda p: p.tokens)[: FEWEST_ROWS - self._rows(stages)]
        return self._expectation.run(stages, points)

    def _shortage(self, lacking: Sequence[int]) -> Shortage:
        """Return what to say when the time was too little for the fewest rows of these stage counts."""
        minutes = (self._budget.seconds or 0.0) / 60
        more = sum(self._least(g) for g in lacking)
        enough = f"about {np.ceil(more / 6) / 10 + 0.1:.1f} minutes more" if more else "a longer --time-budget"
        found = [f"{self._rows(g)} at {counted(g, 'stage')}" for g in lacking]
        problem = f"the {minutes:.3g} min are spent, and of the {FEWEST_ROWS} rows that a fit needs there are "
        problem += " and ".join(found)
        remedy = f"call again to go on ({enough}), or give fewer --num-stages or smaller --tokens"
        return Shortage(tuple(lacking), sum(map(self._rows, lacking)), problem, remedy)
