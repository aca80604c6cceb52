"""Allocator and scheduler in one loop: bounds choose replicas, scheduled makespans replace the bounds that mattered."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from cappuccino.errors import NoPlanFoundError
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.candidates import find_candidates, why_no_partition
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.milp import TimeUpError
from cappuccino.solvers.allocation.selection import GAINS, ChosenColumn, ColumnKey, Selection
from cappuccino.solvers.budget import Budget, Clock, InterruptedSearchError, interrupted
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica

FIRST_ATTEMPT = Budget(seconds=None, constructions=64, moves=8000, windows=0)
"""Search on a column that the allocator proposes for the first time; no moves where there are too many columns."""
FIRST_MOVES_S = 1.0
"""Time for the moves of a first attempt where time is limited, seconds."""
MOVES_SHARE = 0.3
"""Of the time left, what moves may take, or they are left out."""
FIRST_ATTEMPT_SHARE, PACE_S = 0.5, 5e-5
"""Of the time left, what first attempts at all columns of a choice may take; one construction takes this a sample."""
FURTHER_ATTEMPTS = (
    (0.04, Budget(seconds=None, constructions=1, moves=20000, windows=0)),
    (0.1, Budget(seconds=None, constructions=1, moves=60000, windows=0)),
    (0.25, Budget(seconds=None, constructions=1, moves=150000, windows=0)),
)
"""Further attempts where makespans bind: the part of the allocator's time they take, and their limits without one."""
EFFORT_S = 0.1
"""Time per sample and core in which effort brings what `GAINS` says."""
ALL_ATTEMPTS = len(GAINS)
"""A replica that was looked at so often is left to the improvement of the whole plan."""
BOUND_SHARE, SELECTION_SHARE = 0.3, 0.1
"""What bounds and candidates may take of the allocator's time, and one choice of columns of what is left."""
MOST_ALONE = 32
"""Kinds of adapters up to which each is scheduled on its own, to see what sharing saves."""


@dataclass
class Allocation:
    """The state of the loop."""

    space: ReplicaSpace
    objective: Objective
    deadline_s: float | None
    bound: float
    """Proven bound on the objective."""
    schedules: dict[ColumnKey, ReplicaSchedule] = field(default_factory=dict)
    """By place and number of adapters of each kind; of the first adapters of each kind."""
    chosen: list[ReplicaSchedule] = field(default_factory=list)
    """The best set of scheduled replicas, GPU types in `chosen_gpus`."""
    chosen_gpus: list[str] = field(default_factory=list)

    def value(self, schedules: Sequence[ReplicaSchedule], gpus: Sequence[str]) -> float:
        """Return the objective of scheduled replicas; infinite for none, or past the deadline."""
        if not schedules:
            return float("inf")
        longest = max(s.makespan_s for s in schedules)
        if self.deadline_s is not None and longest > self.deadline_s:
            return float("inf")
        if self.objective is Objective.MAKESPAN:
            return longest
        if self.objective is Objective.GPU_TIME:
            return sum(s.gpu_time_s for s in schedules)
        prices = {gpu: self.space.price_per_second(gpu) for gpu in self.space.pools}
        return sum(s.gpu_time_s * prices[gpu] for s, gpu in zip(schedules, gpus, strict=True))

    @property
    def best(self) -> float:
        """Objective of the best plan so far."""
        return self.value(self.chosen, self.chosen_gpus)

    def offer(self, schedules: list[ReplicaSchedule], gpus: list[str]) -> bool:
        """Keep scheduled replicas that cover everything if they beat the best so far, by GPU time where it ties."""
        value, best = self.value(schedules, gpus), self.best
        saved = sum(s.gpu_time_s for s in self.chosen) - sum(s.gpu_time_s for s in schedules)
        if value > best or (value == best and saved <= 0):
            return False
        self.chosen, self.chosen_gpus = schedules, gpus
        return True


class Allocator:
    """Chooses replicas and schedules those that matter.

    The bound is proven before anything is scheduled. The plan comes from the set partitioning with scheduled makespans
    where there are some, and expected ones elsewhere, until it chooses scheduled columns only, the gap is reached or
    the time is up.

    Parameters
    ----------
    clock
        Time for the first run.
    last_clock
        Time for finding a first plan where the other is not enough.
    target
        Objective that is good enough.

    Raises
    ------
    InfeasibleError
        When the pools, or the deadline, admit no partition.
    """

    def __init__(
        self,
        space: ReplicaSpace,
        objective: Objective,
        deadline_s: float | None,
        clock: Clock,
        last_clock: Clock,
        gap: float,
        seed: int,
        on_better: Callable[[Allocation], None] | None = None,
        target: float = 0.0,
    ) -> None:
        self.target = target
        self.space, self.deadline_s, self.clock, self.gap, self.seed = space, deadline_s, clock, gap, seed
        self.last_clock = last_clock
        self.on_better = on_better
        self._binding = deadline_s is not None or objective is Objective.MAKESPAN
        self.pace_s, self.time_s = PACE_S, clock.left
        found = find_candidates(space, objective, deadline_s, clock.part(BOUND_SHARE), gap, seed)
        self.state = Allocation(space, objective, deadline_s, found.bound)
        effort = 1.0
        if last_clock.left is not None:
            samples = sum(lengths.size for lengths in space.instance.step_lengths)
            effort = min(1.0, last_clock.left * (os.cpu_count() or 1) / (EFFORT_S * samples))
        self.selection = Selection(space, objective, deadline_s, found, min(gap / 4, 1e-3), seed, effort)

    def run(self) -> Allocation:
        """Return the best allocation found.

        Raises
        ------
        NoPlanFoundError
            When none was found that meets the deadline.
        InterruptedSearchError
            When the user has ended the search before there was one.
        TimeUpError
            When not even a first allocation was found in time.
        """
        self._go_on(self.selection.first() or self._next(None))
        if not self.state.chosen and interrupted():
            raise InterruptedSearchError()
        if not self.state.chosen:
            raise NoPlanFoundError(
                f"{self.space.instance.source}: no schedule found that meets the deadline of {self.deadline_s:g} s "
                "(bounds do not exclude one); give a longer deadline or more --time-limit"
            )
        return self.state

    def resume(self, clock: Clock) -> bool:
        """Choose again, knowing what the replicas that were improved have come to; return whether that was better."""
        self.clock = clock
        before = self.state.best
        kinds = self.space.kinds
        places = {(pool.gpu, bounds.num_stages): k for k, (pool, bounds) in enumerate(self.space.bounds)}
        for schedule, gpu in zip(self.state.chosen, self.state.chosen_gpus, strict=True):
            of_kind = [kinds.of_adapter[i] for i in schedule.problem.adapters]
            numbers = np.bincount(of_kind, minlength=len(kinds.counts))
            replica = ChosenColumn(places[gpu, schedule.problem.num_stages], numbers)
            known = self.state.schedules.get(replica.key)
            if known is None or schedule.makespan_s < known.makespan_s:
                problem = replace(schedule.problem, adapters=kinds.adapters(numbers))
                if [kinds.of_adapter[i] for i in problem.adapters] != of_kind:
                    continue  # in another order of kinds it is another schedule
                self.state.schedules[replica.key] = replace(schedule, problem=problem)
                self.selection.observe_again(replica, schedule.makespan_s, ALL_ATTEMPTS)
        self._go_on(self._next(clock.part(SELECTION_SHARE)))
        return self.state.best < before

    def _go_on(self, picked: list[ChosenColumn]) -> None:
        """Schedule what was picked and pick again, until there is nothing to work on or the time is up."""
        idle = 0
        while picked:
            fresh = [r for r in {r.key: r for r in picked}.values() if r.key not in self.state.schedules]
            self._schedule(fresh)
            worked = bool(fresh) or self._schedule_further(picked) or self._schedule_alone()
            self._offer(picked)
            self.selection.judge(met_deadline=bool(self.state.chosen))
            if self.clock.over and not self.state.chosen:
                self.clock = self.last_clock  # late is better than none
            # what one way of choosing has nothing left to work on, the other may have
            idle = 0 if worked else idle + 1
            if self._done or idle > self._binding:
                break
            if self.state.chosen:
                self.selection.alternate()
            picked = self._next(self.clock.part(SELECTION_SHARE))

    @property
    def _done(self) -> bool:
        good_enough = self.state.best <= self.target or self.state.best * (1 - self.gap) <= self.state.bound
        return self.clock.over or good_enough

    def _next(self, clock: Clock | None) -> list[ChosenColumn]:
        """Return the next partition to schedule; empty when there is none or it was not found in time."""
        try:
            found = self.selection.next(clock or Clock(None))
            if found is None and self.selection.allow_optimism():
                found = self.selection.next(clock or Clock(None))
        except TimeUpError:
            if clock is None:
                raise
            return []
        if found is None and not self.state.schedules and not self.state.chosen:
            # what was found in the way of bounds would have been told before
            raise NoPlanFoundError(why_no_partition(self.space, self.deadline_s, proven=False))
        return found or []

    def _schedule(self, replicas: Sequence[ChosenColumn]) -> None:
        """Schedule replicas, several at once: the compiled searches release the lock."""
        constructions = self._affordable_constructions(replicas)
        moves = self.clock.left is None or FIRST_MOVES_S * len(replicas) <= MOVES_SHARE * self.clock.left
        workers = os.cpu_count() or 1
        with ThreadPoolExecutor(max_workers=workers) as executor:
            found = list(executor.map(lambda r: self._first_schedule(r, constructions, moves), replicas))
        if found:
            samples = sum(map(self._num_samples, replicas)) * constructions
            taken = sum(seconds for _, seconds in found) / min(workers, len(found))
            self.pace_s = 0.5 * self.pace_s + 0.5 * taken / samples
        for replica, (schedule, _) in zip(replicas, found, strict=True):
            self.state.schedules[replica.key] = schedule
            self.selection.observe(replica, schedule.makespan_s)

    def _affordable_constructions(self, replicas: Sequence[ChosenColumn]) -> int:
        """Return how many schedules of each replica fit into the time: at least one of each."""
        if self.clock.left is None:
            return FIRST_ATTEMPT.constructions
        one_each = self.pace_s * sum(map(self._num_samples, replicas))
        return max(
            1, min(FIRST_ATTEMPT.constructions, int(FIRST_ATTEMPT_SHARE * self.clock.left / max(one_each, 1e-9)))
        )

    def _num_samples(self, replica: ChosenColumn) -> int:
        lengths = self.space.instance.step_lengths
        return sum(lengths[i].size for i in self.space.kinds.adapters(replica.numbers))

    def _first_schedule(self, replica: ChosenColumn, constructions: int, moves: bool) -> tuple[ReplicaSchedule, float]:
        """Schedule a replica; return the seconds that the constructions took as well."""
        begin = time.monotonic()
        problem = self._problem(replica)
        schedule = schedule_replica(problem, replace(FIRST_ATTEMPT, constructions=constructions, moves=0), self.seed)
        taken = time.monotonic() - begin
        if moves:
            budget = replace(FIRST_ATTEMPT, constructions=1, seconds=None if self.clock.left is None else FIRST_MOVES_S)
            schedule = schedule_replica(problem, budget, self.seed, start=schedule, target_gap=self.gap / 2)
        return schedule, taken

    def _schedule_further(self, picked: Sequence[ChosenColumn]) -> bool:
        """Work on the picked replicas with most to gain, late ones first; return whether there were any."""
        if not self._binding:
            return False
        attempts = self.selection.known
        loose = [r for r in picked if attempts[r.key].number < ALL_ATTEMPTS and self.selection.to_gain(r) > 0]
        loose.sort(key=self._urgency, reverse=True)
        workers = os.cpu_count() or 1
        chosen = list({r.key: r for r in loose}.values())[:workers]
        with ThreadPoolExecutor(max_workers=workers) as executor:
            found = list(executor.map(self._further_schedule, chosen))
        for replica, schedule in zip(chosen, found, strict=True):
            self.state.schedules[replica.key] = schedule
            self.selection.observe_again(replica, schedule.makespan_s, attempts[replica.key].number + 1)
        return bool(chosen)

    def _urgency(self, replica: ChosenColumn) -> tuple[bool, float]:
        makespan = self.state.schedules[replica.key].makespan_s
        if self.state.objective is Objective.MAKESPAN:
            return False, makespan
        late = self.deadline_s is not None and makespan > self.deadline_s
        return late, self.selection.rates[replica.place] * self.selection.to_gain(replica)

    def _further_schedule(self, replica: ChosenColumn) -> ReplicaSchedule:
        attempts = self.selection.known[replica.key].number
        share, budget = FURTHER_ATTEMPTS[attempts - 1]
        if self.time_s is not None:
            budget = Budget(share * self.time_s, constructions=1, windows=0)
        start = self.state.schedules[replica.key]
        return schedule_replica(start.problem, budget, self.seed + attempts, start=start, target_gap=self.gap / 2)

    def _schedule_alone(self) -> bool:
        """Schedule every adapter on its own where that is expected to be best, unless done; whether any was fresh."""
        counts = self.space.kinds.counts
        if len(counts) > MOST_ALONE:
            return False
        fresh = [r for r in self.selection.alone() if r.key not in self.state.schedules]
        self._schedule(fresh)
        return bool(fresh)

    def _problem(self, replica: ChosenColumn) -> ReplicaProblem:
        pool, bounds = self.space.bounds[replica.place]
        adapters, bound = self.space.kinds.adapters(replica.numbers), self.selection.bound(replica)
        critical = int(np.where(replica.numbers > 0, bounds.paths, 0.0).argmax())
        places = bounds.fastest_places(critical)
        fastest = None
        if places is not None:
            position = [self.space.kinds.of_adapter[i] for i in adapters].index(critical)
            fastest = (position, places)
        return ReplicaProblem(
            self.space.instance,
            self.space.costs[pool.gpu],
            adapters,
            bounds.num_stages,
            pool.memory_gib,
            bound,
            fastest,
        )

    def _offer(self, picked: list[ChosenColumn]) -> None:
        """Offer scheduled replicas, each for adapters of its own."""
        kinds = self.space.kinds
        unused = [list(members) for members in kinds.members]
        schedules = []
        for replica in picked:
            schedule = self.state.schedules[replica.key]
            adapters = tuple(unused[kinds.of_adapter[i]].pop(0) for i in schedule.problem.adapters)
            schedules.append(replace(schedule, problem=replace(schedule.problem, adapters=adapters)))
        gpus = [self.space.bounds[r.place][0].gpu for r in picked]
        if self.state.offer(schedules, gpus) and self.on_better:
            self.on_better(self.state)
