"""Which columns to choose when makespans are scheduled where there are schedules, and expected elsewhere."""

import math
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Objective, Recompute
from cappuccino.solvers.allocation.candidates import Candidates
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.allocation.known_columns import ChosenColumn, KnownColumns
from cappuccino.solvers.allocation.milp import PartitionProblem
from cappuccino.solvers.budget import Clock


@dataclass(frozen=True)
class OfferedColumn:
    """A column that could be chosen, with the best that is known of its makespan."""

    place: int
    numbers: np.ndarray
    """Adapters of each kind, shape (K,)."""
    makespan_s: float
    """Of its schedule, or the proven bound where it has none, seconds."""
    scheduled: bool


class Selection:
    """Chooses partitions among candidates, again and again as schedules come in.

    Where makespans bind, under a deadline or as the objective, effort decides: the selection reckons with what
    schedules are worth after it. Before there is a plan that meets the deadline it is cautious instead.

    Parameters
    ----------
    candidates
        Columns to choose from.
    known
        Those that have been scheduled, and what to expect of the others.
    """

    def __init__(self, context: Context, candidates: Candidates, known: KnownColumns) -> None:
        self.space, self.goal, self.candidates, self.known = context.space, context.goal, candidates, known
        self.settings = context.settings.allocation
        self.deadline_s = np.inf if self.goal.deadline_s is None else self.goal.deadline_s
        self.places = known.places
        self.rates = np.array([p.rate for p in self.places])
        paid = self.rates[self.rates > 0]
        self._tie_rate = self.settings.tie_price * float(paid.min()) if len(paid) else 1.0
        self.problem = PartitionProblem(
            self.space.kinds.of_adapter.tolist(),
            self.space.pools,
            self.goal.objective,
            min(self.goal.gap / 4, 1e-3),
            context.seed,
            not self.space.enumerates_all,
            self.settings.tie_gap,
        )
        self._optimistic = self.goal.deadline_s is None
        self._careful_turn = False
        self._caution = self.settings.caution
        self._offered: np.ndarray | None = None
        self._index = {
            (int(p), n.tobytes()): c for c, (p, n) in enumerate(zip(candidates.place, candidates.numbers, strict=True))
        }

    def judge(self, met_deadline: bool) -> None:
        """Take note of whether a choice has met the deadline by now."""
        if met_deadline:
            self._optimistic = True
        else:
            self._caution *= self.settings.more_caution

    def alternate(self) -> None:
        """Reckon by turns with what effort may bring, which finds better plans, and without, which has a plan soon."""
        self._careful_turn = not self._careful_turn

    def expected(self) -> np.ndarray:
        """Return the makespans to reckon with, seconds, shape (C,): infinite where the deadline is missed."""
        found = self.candidates
        result = np.empty(len(found.place))
        for place in range(len(self.places)):
            here = found.place == place
            result[here] = self.known.expectation.makespans(place, found.numbers[here], found.bounds_s[here])
        factor = self.settings.optimism if self._optimistic else self._caution
        reckons = self.goal.binding and self._optimistic and not self._careful_turn
        result = found.bounds_s + factor * (1 - self.known.gains[0] * reckons) * (result - found.bounds_s)
        for key, known in self.known.items():
            c = self._index.get(key)
            if c is None:
                continue
            gain = reckons * self.known.gains[known.attempts - 1]
            result[c] = known.makespan_s - gain * (known.makespan_s - found.bounds_s[c])
            if known.attempts >= self.settings.all_attempts and known.makespan_s > self.deadline_s:
                result[c] = np.inf
        return np.where(result <= self.deadline_s, result, np.inf)

    def first(self) -> list[ChosenColumn]:
        """Return the best partition at hand; empty where there is none."""
        partition = self._best_partition(self.expected())
        return [self._replica(c) for c in partition]

    def next(self, clock: Clock) -> list[ChosenColumn] | None:
        """Return the partition of the best expected objective among the most promising columns; None for none.

        Where none is expected to meet the deadline, the choice reckons with effort, though none has met it so far.

        Raises
        ------
        TimeUpError
            When none was found in time.
        """
        chosen = self._next(clock)
        if chosen is None and not self._optimistic:
            self._optimistic = True
            chosen = self._next(clock)
        return chosen

    def held_to(self, recompute: Recompute | None, clock: Clock) -> list[ChosenColumn]:
        """Return the partition of the best expected objective whose replicas all recompute alike; empty for none.

        Raises
        ------
        TimeUpError
            When none was found in time.
        """
        alike = np.array([place.recompute == recompute for place in self.places])
        expected, offered = np.where(alike[self.candidates.place], self.expected(), np.inf), self._offered
        try:
            return self._next(clock, expected) or []
        finally:
            self._offered = offered

    def _next(self, clock: Clock, expected: np.ndarray | None = None) -> list[ChosenColumn] | None:
        found, expected = self.candidates, self.expected() if expected is None else expected
        start = self._best_partition(expected)
        useful = self._offered = self._promising(expected, start)
        columns = [self.space.column(found.place[c], found.numbers[c], expected[c]) for c in useful]
        position = {int(c): k for k, c in enumerate(useful)}
        begin = [position[c] for c in start if c in position]
        solved = self.problem.solve(columns, clock, begin if len(begin) == len(start) else ())
        if solved is None:
            return None
        return self._without_surplus([self._replica(int(useful[c])) for c in solved.chosen])

    def offered(self) -> list[OfferedColumn]:
        """Return the columns that were chosen from last; where a partition at hand did, those that would have been."""
        offered = self._offered
        if offered is None:
            expected = self.expected()
            offered = self._promising(expected, self._best_partition(expected))
        known, found = dict(self.known.items()), self.candidates
        result = []
        for c in offered.tolist():
            schedule = known.get((int(found.place[c]), found.numbers[c].tobytes()))
            makespan_s = float(found.bounds_s[c]) if schedule is None else schedule.makespan_s
            result.append(OfferedColumn(int(found.place[c]), found.numbers[c], makespan_s, schedule is not None))
        return result

    def alone(self) -> list[ChosenColumn]:
        """Return the replica of least expected cost for one adapter of each kind; none where there are many kinds."""
        if len(self.space.kinds.counts) > self.settings.most_alone:
            return []
        single = np.eye(len(self.space.kinds.counts), dtype=np.int64)
        costs = np.full((len(self.places), len(single)), np.inf)
        for number, (_, bounds) in enumerate(self.space.bounds):
            bound = bounds.lower_bounds(single)
            makespans = self.known.expectation.makespans(number, single, bound)
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
        equal = np.flatnonzero(values <= values.min() * (1 + self.settings.nearly_equal))
        return partitions[int(equal[ends[equal].argmin()])]

    def _value(self, expected: np.ndarray, partition: tuple[int, ...]) -> float:
        chosen = list(partition)
        if self.goal.objective is Objective.MAKESPAN:
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
            if self.goal.objective is not Objective.MAKESPAN and self.candidates.bound > 0:
                scale = self._value(expected, start) / self.candidates.bound
        reduced = self.rates[found.place] * np.where(allowed, expected, 0.0) + found.charge - scale * found.paid
        kept = [self._index[key] for key, _ in self.known.items() if key in self._index]
        kept += np.flatnonzero(found.numbers.sum(axis=1) == 1).tolist()  # with these there is a partition if any
        reduced[[c for c in (*start, *kept) if np.isfinite(expected[c])]] = -np.inf
        reduced[~allowed] = np.inf
        order = np.argsort(reduced, kind="stable")[: self.settings.most_columns]
        return np.asarray(order[reduced[order] < np.inf])

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
