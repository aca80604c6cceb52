"""Schedules columns, several at once: the compiled searches release the lock."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.allocation.known_columns import ChosenColumn, KnownColumns
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica

T = TypeVar("T")


class ColumnScheduler:
    """Schedules the columns that matter, as well as the time allows.

    Parameters
    ----------
    context
        Its clock is all the time there is for columns.
    known
        Takes the schedules.
    """

    def __init__(self, context: Context, known: KnownColumns) -> None:
        self.space, self.goal, self.seed = context.space, context.goal, context.seed
        self.settings, self.scheduling = context.settings.allocation, context.settings.scheduling
        self.known = known
        self._time_s, self._pace_s = context.clock.left, self.settings.pace_s

    def schedule_new(self, columns: Sequence[ChosenColumn], clock: Clock) -> bool:
        """Schedule those that have not been scheduled; return whether there were any."""
        fresh = [c for c in {c.key: c for c in columns}.values() if c not in self.known]
        if not fresh:
            return False
        constructions = self._affordable_constructions(fresh, clock)
        moves = clock.left is None or self.settings.first_moves_s * len(fresh) <= self.settings.moves_share * clock.left
        found = _in_threads(lambda c: self._first_schedule(c, constructions, moves, clock), fresh)
        samples = sum(map(self._num_samples, fresh)) * constructions
        taken = sum(seconds for _, seconds in found) / min(_cores(), len(found))
        self._pace_s = 0.5 * self._pace_s + 0.5 * taken / samples
        for column, (schedule, _) in zip(fresh, found, strict=True):
            self.known.add(column, schedule)
        return True

    def schedule_further(self, columns: Sequence[ChosenColumn]) -> bool:
        """Where makespans count, work on those with most to gain, late ones first; return whether there were any."""
        if not self.goal.binding:
            return False
        known, most = self.known, self.settings.all_attempts
        loose = [c for c in columns if known[c].attempts < most and known.to_gain(c) > 0]
        loose.sort(key=self._urgency, reverse=True)
        chosen = list({c.key: c for c in loose}.values())[: _cores()]
        found = _in_threads(self._further_schedule, chosen)
        for column, schedule in zip(chosen, found, strict=True):
            known.update(column, schedule, known[column].attempts + 1)
        return bool(chosen)

    def _affordable_constructions(self, columns: Sequence[ChosenColumn], clock: Clock) -> int:
        """Return how many schedules of each column fit into the time: at least one of each."""
        most = self.settings.first_attempt.constructions
        if clock.left is None:
            return most
        one_each = self._pace_s * sum(map(self._num_samples, columns))
        return max(1, min(most, int(self.settings.first_attempt_share * clock.left / max(one_each, 1e-9))))

    def _num_samples(self, column: ChosenColumn) -> int:
        lengths = self.space.instance.step_lengths
        return sum(lengths[i].size for i in self.space.kinds.adapters(column.numbers))

    def _first_schedule(
        self, column: ChosenColumn, constructions: int, moves: bool, clock: Clock
    ) -> tuple[ReplicaSchedule, float]:
        """Schedule a column; return the seconds that the constructions took as well."""
        begin = time.monotonic()
        problem, budget = self._problem(column), self.settings.first_attempt
        schedule = self._search(problem, replace(budget, constructions=constructions, moves=0), self.seed)
        taken = time.monotonic() - begin
        if moves:
            seconds = None if clock.left is None else self.settings.first_moves_s
            schedule = self._search(problem, replace(budget, constructions=1, seconds=seconds), self.seed, schedule)
        return schedule, taken

    def _further_schedule(self, column: ChosenColumn) -> ReplicaSchedule:
        known = self.known[column]
        share, budget = self.settings.further_attempts[known.attempts - 1]
        if self._time_s is not None:
            budget = Budget(share * self._time_s, constructions=1, windows=0)
        return self._search(known.schedule.problem, budget, self.seed + known.attempts, known.schedule)

    def _search(
        self, problem: ReplicaProblem, budget: Budget, seed: int, start: ReplicaSchedule | None = None
    ) -> ReplicaSchedule:
        gap = 0.0 if start is None else self.goal.gap / 2
        return schedule_replica(problem, budget, seed, start=start, target_gap=gap, settings=self.scheduling)

    def _urgency(self, column: ChosenColumn) -> tuple[bool, float]:
        makespan = self.known[column].makespan_s
        if self.goal.objective is Objective.MAKESPAN:
            return False, makespan
        late = self.goal.deadline_s is not None and makespan > self.goal.deadline_s
        return late, self.known.places[column.place].rate * self.known.to_gain(column)

    def _problem(self, column: ChosenColumn) -> ReplicaProblem:
        pool, bounds = self.space.bounds[column.place]
        adapters = self.space.kinds.adapters(column.numbers)
        problem = ReplicaProblem(
            self.space.instance,
            bounds.costs,
            adapters,
            bounds.num_stages,
            pool.memory_gib,
            self.known.bound(column),
        )
        critical = int(np.where(column.numbers > 0, bounds.paths, 0.0).argmax())
        places = bounds.fastest_places(critical)
        if places is None:
            return problem
        position = [self.space.kinds.of_adapter[i] for i in adapters].index(critical)
        # they are of the adapter alone: beside others its micro-batches may be too large
        fits = problem.largest_micro_batch(position, places) <= problem.max_tokens
        return replace(problem, fastest=(position, places)) if fits else problem


def _cores() -> int:
    return os.cpu_count() or 1


def _in_threads(search: Callable[[ChosenColumn], T], columns: Sequence[ChosenColumn]) -> list[T]:
    with ThreadPoolExecutor(max_workers=_cores()) as executor:
        return list(executor.map(search, columns))
