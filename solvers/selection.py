"""Which columns to choose when makespans are scheduled where there are schedules, and expected elsewhere."""

import math
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Objective
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.candidates import Candidates
from cappuccino.solvers.columns import ReplicaSpace
from cappuccino.solvers.expectation import Expectation
from cappuccino.solvers.milp import PartitionProblem

MOST_COLUMNS = 2500
"""Columns that a set partitioning is solved over: the most promising ones."""
EFFORT_GAIN = 0.3
"""Part of the distance between a first schedule and the bound that more effort closes, about."""
EFFORT_STEP = 0.1
"""How much more of that is reckoned with after a choice has met the deadline; after a miss it is half as much."""
OPTIMISM, CAUTION, MORE_CAUTION = 0.9, 1.3, 1.2
"""Factors on the expected excess of columns that nobody has scheduled: the least, so that columns are tried; that
before anything has been scheduled under a deadline; and by how much it grows with a choice that misses it, or falls."""
NEARLY_EQUAL = 2e-3
"""Partitions whose objectives differ relatively by less are equally good: the shorter one is taken."""

ColumnKey = tuple[int, bytes]
"""Place, and how many adapters of each kind."""


@dataclass(frozen=True)
class Replica:
    """A column that was chosen."""

    place: int
    numbers: np.ndarray
    """Adapters of each kind, shape (K,)."""

    @property
    def key(self) -> ColumnKey:
        """What tells columns apart."""
        return self.place, self.numbers.tobytes()


def within_reach(
    makespans_s: np.ndarray, bounds_s: np.ndarray, deadline_s: float, gain: float = EFFORT_GAIN
) -> np.ndarray:
    """Return whether closing part of the distance to the bounds brings makespans down to the deadline."""
    return np.asarray(makespans_s - gain * (makespans_s - bounds_s) <= deadline_s)


class Selection:
    """Chooses partitions among candidates, again and again as schedules come in.

    Parameters
    ----------
    gap
        Relative gap to which the set partitioning is solved.
    """

    def __init__(
        self,
        space: ReplicaSpace,
        objective: Objective,
        deadline_s: float | None,
        candidates: Candidates,
        gap: float,
        seed: int,
    ) -> None:
        self.space, self.objective, self.candidates = space, objective, candidates
        self.deadline_s = np.inf if deadline_s is None else deadline_s
        self.places = space.places(objective)
        self.expectation = Expectation(self.places)
        self.rates = np.array([p.rate for p in self.places])
        self.problem = PartitionProblem(
            space.kinds.of_adapter.tolist(), space.pools, objective, gap, seed, not space.enumerates_all
        )
        self.known: dict[ColumnKey, float] = {}
        self._caution = OPTIMISM if deadline_s is None else CAUTION
        self._effort = 0.0
        self._index = {
            (int(p), n.tobytes()): c for c, (p, n) in enumerate(zip(candidates.place, candidates.numbers, strict=True))
        }

    def bound(self, replica: Replica) -> float:
        """Return the proven bound on a replica's makespan, seconds."""
        return float(self.space.bounds[replica.place][1].lower_bounds(replica.numbers[None])[0])

    def observe(self, replica: Replica, makespan_s: float) -> None:
        """Take note of a schedule."""
        self.known[replica.key] = makespan_s
        self.expectation.observe(replica.place, replica.numbers, self.bound(replica), makespan_s)

    def judge(self, met_deadline: bool) -> None:
        """Take note of whether the last choice met the deadline, and become bolder or more cautious."""
        if met_deadline:
            self._caution = max(OPTIMISM, self._caution / MORE_CAUTION)
            self._effort = min(EFFORT_GAIN, self._effort + EFFORT_STEP)
        else:
            self._caution *= MORE_CAUTION
            self._effort /= 2

    def expected(self) -> np.ndarray:
        """Return the makespans to reckon with, seconds, shape (C,): infinite where the deadline is missed.

        That is where a schedule misses it, or where even more effort is not expected to meet it.
        """
        found = self.candidates
        result = np.empty(len(found.place))
        for place in range(len(self.places)):
            here = found.place == place
            result[here] = self.expectation.makespans(place, found.numbers[here], found.bounds_s[here])
        result = found.bounds_s + self._caution * (result - found.bounds_s)
        in_reach = within_reach(result, found.bounds_s, self.deadline_s, self._effort)
        result = np.where(result <= self.deadline_s, result, np.where(in_reach, self.deadline_s, np.inf))
        for key, makespan in self.known.items():
            if key in self._index:
                result[self._index[key]] = makespan if makespan <= self.deadline_s else np.inf
        return result

    def first(self) -> list[Replica]:
        """Return the best partition at hand; empty where there is none."""
        partition = self._best_partition(self.expected())
        return [self._replica(c) for c in partition]

    def next(self, clock: Clock) -> list[Replica] | None:
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

    def alone(self) -> list[Replica]:
        """Return the replica of least expected cost for one adapter of each kind."""
        single = np.eye(len(self.space.kinds.counts), dtype=np.int64)
        costs = np.full((len(self.places), len(single)), np.inf)
        for number, (_, bounds) in enumerate(self.space.bounds):
            bound = bounds.lower_bounds(single)
            makespans = self.expectation.makespans(number, single, bound)
            rate = self.rates[number] or self.places[number].num_stages
            costs[number] = np.where(bound <= self.deadline_s, rate * makespans, np.inf)
        best = costs.argmin(axis=0)
        return [Replica(int(best[k]), single[k]) for k in range(len(single)) if costs[best[k], k] < np.inf]

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
        values = np.array([self._value(expected, p) for p in partitions])
        values = np.where(late, np.inf, values)
        equal = np.flatnonzero(values <= values.min() * (1 + NEARLY_EQUAL))
        return partitions[int(equal[ends[equal].argmin()])]

    def _value(self, expected: np.ndarray, partition: tuple[int, ...]) -> float:
        chosen = list(partition)
        if self.objective is Objective.MAKESPAN:
            return float(expected[chosen].max())
        return float((self.rates[self.candidates.place] * expected)[chosen].sum())

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

    def _without_surplus(self, replicas: list[Replica]) -> list[Replica]:
        """Take adapters that are covered more than once out of the replicas that gain most by it."""
        surplus = np.sum([r.numbers for r in replicas], axis=0) - self.space.kinds.counts
        for kind in np.flatnonzero(surplus > 0):
            for _ in range(int(surplus[kind])):
                savings = [(self._saving(r, int(kind)), k) for k, r in enumerate(replicas) if r.numbers[kind]]
                _, k = max(savings)
                numbers = replicas[k].numbers.copy()
                numbers[kind] -= 1
                replicas[k] = Replica(replicas[k].place, numbers)
        return [r for r in replicas if r.numbers.any()]

    def _saving(self, replica: Replica, kind: int) -> float:
        less = replica.numbers.copy()
        less[kind] -= 1
        place = self.places[replica.place]
        before, after = place.makespans(np.array([replica.numbers, less])) if less.any() else (math.inf, 0.0)
        return float(before - after) * max(place.rate, place.num_stages)

    def _replica(self, column: int) -> Replica:
        return Replica(int(self.candidates.place[column]), self.candidates.numbers[column])
