"""Improves the replicas that were chosen, in parallel threads: the compiled searches and CP-SAT release the lock."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.allocator import Allocation
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica

MOVES_PER_ITERATION = 2000
"""Moves of the local search for each iteration of a search without a time limit."""
ROUND_SHARE = 0.3
"""Of the time left, what a round may take where the makespan counts."""


@dataclass(frozen=True)
class SearchLimits:
    """When the search may end."""

    gap: float
    """Relative distance between objective and bound that is good enough."""
    seed: int
    iterations: int | None
    """CP-SAT windows per replica where no time limits the search; None where one does."""
    target: float = 0.0
    """Objective that is good enough."""


@dataclass(frozen=True)
class _Task:
    place: int
    """Of the replica among those chosen."""
    seed: int
    gain: float
    """What is to gain there at most, GPU-seconds."""


def improve(
    state: Allocation, limits: SearchLimits, clock: Clock, report: Callable[[Allocation], None] | None = None
) -> None:
    """Spend what is left of the time on the chosen replicas, most on those with the most to gain.

    There are at least as many searches as cores, with different seeds where there are fewer replicas. Where the
    makespan counts, all work on the longest replica, round after round.

    Parameters
    ----------
    state
        Takes the better schedules.
    report
        Called with the state whenever it has become better.
    """
    workers = os.cpu_count() or 1
    seed = limits.seed
    while not clock.over and not _good_enough(state, limits):
        before, tasks = state.best, _tasks(state, workers, seed, limits)
        _Round(state, limits, clock, report, tasks, workers).run()
        seed += len(tasks)
        if limits.iterations is not None or state.best >= before:
            break


def _good_enough(state: Allocation, limits: SearchLimits) -> bool:
    return state.best <= limits.target or state.best * (1 - limits.gap) <= state.bound


def _tasks(state: Allocation, workers: int, seed: int, limits: SearchLimits) -> list[_Task]:
    chosen = state.chosen
    if state.objective is Objective.MAKESPAN:
        longest = max(range(len(chosen)), key=lambda r: chosen[r].makespan_s)
        places = [longest] * (1 if limits.iterations is not None else workers)
    else:
        places = sorted(range(len(chosen)), key=lambda r: -_to_gain(chosen[r]))
        if limits.iterations is None:
            places = _with_copies(places, [_to_gain(s) for s in chosen], workers)
    return [_Task(place, seed + i, max(_to_gain(chosen[place]), 1e-9)) for i, place in enumerate(places)]


def _with_copies(places: list[int], gains: list[float], workers: int) -> list[int]:
    """Return the replicas in the order in which they are worked on, where all workers begin with the most to gain.

    One may be worked on by several at once, with different seeds: then each has its part of what is to gain there.
    """
    first: list[int] = []
    for _ in range(workers):
        first.append(max(places, key=lambda place: gains[place] / (1 + first.count(place))))
    return [*first, *(place for place in places if place not in first)]


def _to_gain(schedule: ReplicaSchedule) -> float:
    return max(0.0, schedule.gpu_time_s - schedule.problem.num_stages * schedule.problem.lower_bound_s)


class _Round:
    """Works on every task once."""

    def __init__(
        self,
        state: Allocation,
        limits: SearchLimits,
        clock: Clock,
        report: Callable[[Allocation], None] | None,
        tasks: Sequence[_Task],
        workers: int,
    ) -> None:
        self.state, self.limits, self.clock, self.report = state, limits, clock, report
        self.tasks, self.workers = tasks, workers
        self._lock = threading.Lock()

    def run(self) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            for done in [pool.submit(self._work, number) for number in range(len(self.tasks))]:
                done.result()

    def _work(self, number: int) -> None:
        task, limits = self.tasks[number], self.limits
        timed = limits.iterations is None
        with self._lock:
            # without a time limit, what is searched must not depend on who is done first
            if timed and (self.clock.over or _good_enough(self.state, limits)):
                return
            start = self.state.chosen[task.place]
        ahead = sum(t.gain for t in self.tasks[number:])
        fraction = min(1.0, self.workers * task.gain / ahead)
        if self.state.objective is Objective.MAKESPAN:
            fraction *= ROUND_SHARE  # another replica may be the longest after that
        part = self.clock.part(fraction)
        iterations = 10**9 if limits.iterations is None else limits.iterations
        budget = Budget(part.left, moves=min(10**9, MOVES_PER_ITERATION * iterations), windows=iterations)
        schedule_replica(
            start.problem,
            budget,
            task.seed,
            start=start,
            target_gap=limits.gap / 2,
            on_better=lambda found: self._offer(task.place, found),
        )

    def _offer(self, place: int, found: ReplicaSchedule) -> None:
        with self._lock:
            chosen = self.state.chosen
            if found.makespan_s >= chosen[place].makespan_s:
                return
            better = [*chosen[:place], found, *chosen[place + 1 :]]
            if self.state.offer(better, self.state.chosen_gpus) and self.report:
                self.report(self.state)
