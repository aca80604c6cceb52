"""Which columns to choose when makespans are scheduled where there are schedules, and expected elsewhere."""

import math
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.candidates import Candidates
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.expectation import Expectation
from cappuccino.solvers.allocation.milp import PartitionProblem
from cappuccino.solvers.budget import Clock

MOST_COLUMNS = 2500
"""Columns that a set partitioning is solved over: the most promising ones."""
GAINS = (0.35, 0.25, 0.15, 0.05)
"""Part of the distance between a schedule and its bound that more effort closes, about: after the first attempt and so
on to the last one, from which on a deadline that was missed counts as missed. With less effort it is less."""
OPTIMISM, CAUTION, MORE_CAUTION = 0.9, 1.3, 1.25
"""Factors on the expected excess of columns that nobody has scheduled: once there is a plan, so that columns are tried;
before there is one that meets the deadline; and on the latter whenever a choice has missed it."""
TIE_PRICE = 1e-6
"""What a second of a free replica counts where replicas are compared one by one, relative to the cheapest other."""
NEARLY_EQUAL = 2e-3
"""Partitions whose objectives differ relatively by less are equally good: the shorter one is taken."""

ColumnKey = tuple[int, bytes]
"""Place, and how many adapters of each kind."""


@dataclass(frozen=True)
class ChosenColumn:
    """A column that was chosen."""

    place: int
    numbers: np.ndarray
    """Adapters of each kind, shape (K,)."""

    @property
    def key(self) -> ColumnKey:
        """What tells columns apart."""
        return self.place, self.numbers.tobytes()


@dataclass(frozen=True)
class Attempt:
    """A schedule of a column."""

    makespan_s: float
    number: int = 1
    """How often it was worked on."""


class Selection:
    """Chooses partitions among candidates, again and again as schedules come in.

    Where makespans bind, under a deadline or as the objective, effort decides: the selection reckons with what
    schedules are worth after it. Before there is a plan that meets the deadline it is cautious instead.

    Parameters
    ----------
    gap
        Relative gap to which the set partitioning is solved.
    effort
        Part of `GAINS` that there is time for, 0 to 1.
    """

    def __init__(
        self,
        space: ReplicaSpace,
        objective: Objective,
        deadline_s: float | None,
        candidates: Candidates,
        gap: float,
        seed: int,
        effort: float = 1.0,
    ) -> None:
        self.space, self.objective, self.candidates = space, objective, candidates
        self.deadline_s = np.inf if deadline_s is None else deadline_s
        self.places = space.places(objective)
        self.expectation = Expectation(self.places)
        self.rates = np.array([p.rate for p in self.places])
        paid = self.rates[self.rates > 0]
        self._tie_rate = TIE_PRICE * float(paid.min()) if len(paid) else 1.0
        self.problem = PartitionProblem(
            space.kinds.of_adapter.tolist(), space.pools, objective, gap, seed, not space.enumerates_all
        )
        self.known: dict[ColumnKey, Attempt] = {}
        self._binding = deadline_s is not None or objective is Objective.MAKESPAN
        self._optimistic = deadline_s is None
        self._careful_turn = False
        self._caution = CAUTION
        self._gains = [effort * gain for gain in GAINS]
        self._index = {
            (int(p), n.tobytes()): c for c, (p, n) in enumerate(zip(candidates.place, candidates.numbers, strict=True))
        }

    def bound(self, replica: ChosenColumn) -> float:
        """Return the proven bound on a replica's makespan, seconds."""
        return float(self.space.bounds[replica.place][1].lower_bounds(replica.numbers[None])[0])

    def observe(self, replica: ChosenColumn, makespan_s: float) -> None:
        """Take note of a first schedule."""
        self.known[replica.key] = Attempt(makespan_s)
        self.expectation.observe(replica.place, replica.numbers, self.bound(replica), makespan_s)

    def observe_again(self, replica: ChosenColumn, makespan_s: float, attempts: int) -> None:
        """Take note of a schedule that was worked on more than once."""
        self.known[replica.key] = Attempt(makespan_s, attempts)

    def judge(self, met_deadline: bool) -> None:
        """Take note of whether a choice has met the deadline by now."""
        if met_deadline:
            self._optimistic = True
        else:
            self._caution *= MORE_CAUTION

    def allow_optimism(self) -> bool:
        """Reckon with effort, though no choice has met the deadline; return whether that is new."""
        new, self._optimistic = not self._optimistic, True
        return new

    def alternate(self) -> None:
        """Reckon by turns with what effort may bring, which finds better plans, and without, which has a plan soon."""
        self._careful_turn = not self._careful_turn

    def to_gain(self, replica: ChosenColumn) -> float:
        """Return what more effort on a scheduled replica gains, about, seconds of its makespan."""
        attempt = self.known[replica.key]
        return self._gains[attempt.number - 1] * (attempt.makespan_s - self.bound(replica))

    def expected(self) -> np.ndarray:
        """Return the makespans to reckon with, seconds, shape (C,): infinite where the deadline is missed."""
        found = self.candidates
        result = np.empty(len(found.place))
        for place in range(len(self.places)):
            here = found.place == place
            result[here] = self.expectation.makespans(place, found.numbers[here], found.bounds_s[here])
        factor = OPTIMISM if self._optimistic else self._caution
        reckons = self._binding and self._optimistic and not self._careful_turn
        result = found.bounds_s + factor * (1 - self._gains[0] * reckons) * (result - found.bounds_s)
        for key, attempt in self.known.items():
            c = self._index.get(key)
            if c is None:
                continue
            gain = reckons * self._gains[attempt.number - 1]
            result[c] = attempt.makespan_s - gain * (attempt.makespan_s - found.bounds_s[c])
            if attempt.number >= len(GAINS) and attempt.makespan_s > self.deadline_s:
                result[c] = np.inf
        return np.where(result <= self.deadline_s, result, np.inf)

    def first(self) -> list[ChosenColumn]:
        """Return the best partition at hand; empty where there is none."""
        partition = self._best_partition(self.expected())
        return [self._replica(c) for c in partition]

    def next(self, clock: Clock) -> list[ChosenColumn] | None:
        """Return the partition of the best expected objective among the most promising columns; None for none.

        Raises
        ------
        TimeUpError
            When none was found in time.
        """
        found, expected = self.candidates, self.expected()
        start = self._best_partition(expected)
        useful = self._promising(expected, start)
        columns = [self.space.column(found.place[c], found.numbers[c], expected[c]) for c in useful]
        position = {int(c): k for k, c in enumerate(useful)}
        begin = [position[c] for c in start if c in position]
        solved = self.problem.solve(columns, clock, begin if len(begin) == len(start) else ())
        if solved is None:
            return None
        return self._without_surplus([self._replica(int(useful[c])) for c in solved.chosen])

    def alone(self) -> list[ChosenColumn]:
        """Return the replica of least expected cost for one adapter of each kind."""
        single = np.eye(len(self.space.kinds.counts), dtype=np.int64)
        costs = np.full((len(self.places), len(single)), np.inf)
        for number, (_, bounds) in enumerate(self.space.bounds):
            bound = bounds.lower_bounds(single)
            makespans = self.expectation.makespans(number, single, bound)
            costs[number] = np.where(bound <= self.deadline_s, self._weight(number) * makespans, np.inf)
        best = costs.argmin(axis=0)
        return [ChosenColumn(int(best[k]), single[k]) for k in range(len(single)) if costs[best[k], k] < np.inf]

    def _best_partition(self, expected: np.ndarray) -> tuple[int, ...]:
        """Return the partition of the best expected objective, the shortest of those nearly equal.

        Where none is expected to meet the deadline, the one whose bounds leave most room.
        """
        partitions = self.candidates.partitions
        if not partitions:
            return ()
        ends = np.array([expected[list(p)].max() for p in partitions])
        late = ~np.isfinite(ends)
        if late.all():  # the one that bounds leave most room
            bounds = [self.candidates.bounds_s[list(p)].max() for p in partitions]
            return partitions[int(np.argmin(bounds))]
        pairs = zip(partitions, late, strict=True)
        values = np.array([np.inf if missed else self._value(expected, p) for p, missed in pairs])
        equal = np.flatnonzero(values <= values.min() * (1 + NEARLY_EQUAL))
        return partitions[int(equal[ends[equal].argmin()])]

    def _value(self, expected: np.ndarray, partition: tuple[int, ...]) -> float:
        chosen = list(partition)
        if self.objective is Objective.MAKESPAN:
            return float(expected[chosen].max())
        return float((self.rates[self.candidates.place[chosen]] * expected[chosen]).sum())

    def _promising(self, expected: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
        """Return the columns of least reduced cost at expected makespans, those of the start and scheduled ones."""
        found = self.candidates
        allowed = np.isfinite(expected)
        scale = 1.0
        if start and np.isfinite(expected[list(start)]).all():
            # longer replicas than those of a partition that is good enough only take longer to schedule
            allowed &= expected <= max(expected[list(start)].max(), float(self._alone(expected).max()))
            if self.objective is not Objective.MAKESPAN and self.candidates.bound > 0:
                scale = self._value(expected, start) / self.candidates.bound
        reduced = self.rates[found.place] * np.where(allowed, expected, 0.0) + found.charge - scale * found.paid
        kept = [self._index[key] for key in self.known if key in self._index]
        kept += np.flatnonzero(found.numbers.sum(axis=1) == 1).tolist()  # with these there is a partition if any
        reduced[[c for c in (*start, *kept) if np.isfinite(expected[c])]] = -np.inf
        reduced[~allowed] = np.inf
        order = np.argsort(reduced, kind="stable")[:MOST_COLUMNS]
        return order[reduced[order] < np.inf]

    def _alone(self, expected: np.ndarray) -> np.ndarray:
        """Return the least expected makespan of any column that holds each kind, shape (K,)."""
        held = self.candidates.numbers > 0
        return np.array([expected[held[:, k]].min(initial=np.inf) for k in range(held.shape[1])])

    def _without_surplus(self, replicas: list[ChosenColumn]) -> list[ChosenColumn]:
        """Take adapters that are covered more than once out of the replicas that gain most by it."""
        surplus = np.sum([r.numbers for r in replicas], axis=0) - self.space.kinds.counts
        for kind in np.flatnonzero(surplus > 0):
            for _ in range(int(surplus[kind])):
                savings = [(self._saving(r, int(kind)), k) for k, r in enumerate(replicas) if r.numbers[kind]]
                _, k = max(savings)
                numbers = replicas[k].numbers.copy()
                numbers[kind] -= 1
                replicas[k] = ChosenColumn(replicas[k].place, numbers)
        return [r for r in replicas if r.numbers.any()]

    def _saving(self, replica: ChosenColumn, kind: int) -> float:
        less = replica.numbers.copy()
        less[kind] -= 1
        place = self.places[replica.place]
        before, after = place.makespans(np.array([replica.numbers, less])) if less.any() else (math.inf, 0.0)
        return float(before - after) * self._weight(replica.place)

    def _weight(self, place: int) -> float:
        """Return what a second of a replica counts where replicas are compared one by one, ties by GPU time."""
        return float(self.rates[place]) or self._tie_rate * self.places[place].num_stages

    def _replica(self, column: int) -> ChosenColumn:
        return ChosenColumn(int(self.candidates.place[column]), self.candidates.numbers[column])
