"""Improves the replicas that were chosen, in parallel threads: the compiled searches and CP-SAT release the lock."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.budget import Budget
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica


@dataclass(frozen=True)
class _Task:
    place: int
    """Of the replica among those of the incumbent."""
    seed: int
    gain: float
    """What is to gain there at most, GPU-seconds."""


def improve(context: Context) -> None:
    """Spend what is left of the time on the replicas of the incumbent, most on those with the most to gain.

    There are at least as many searches as cores, with different seeds where there are fewer replicas. Where the
    makespan counts, all work on the longest replica, round after round.

    Parameters
    ----------
    context
        Its incumbent takes the better schedules.
    """
    workers = os.cpu_count() or 1
    seed, incumbent = context.seed, context.incumbent
    while not context.clock.over and not incumbent.good_enough:
        before, tasks = incumbent.objective, _tasks(context, workers, seed)
        _Round(context, tasks, workers).run()
        seed += len(tasks)
        if context.iterations is not None or incumbent.objective >= before:
            break


def _tasks(context: Context, workers: int, seed: int) -> list[_Task]:
    schedules = [r.schedule for r in context.incumbent.replicas]
    if context.goal.objective is Objective.MAKESPAN:
        longest = max(range(len(schedules)), key=lambda r: schedules[r].makespan_s)
        places = [longest] * (1 if context.iterations is not None else workers)
    else:
        places = sorted(range(len(schedules)), key=lambda r: -_to_gain(schedules[r]))
        if context.iterations is None:
            places = _with_copies(places, [_to_gain(s) for s in schedules], workers)
    return [_Task(place, seed + i, max(_to_gain(schedules[place]), 1e-9)) for i, place in enumerate(places)]


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

    def __init__(self, context: Context, tasks: Sequence[_Task], workers: int) -> None:
        self.context, self.tasks, self.workers = context, tasks, workers

    def run(self) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            for done in [pool.submit(self._work, number) for number in range(len(self.tasks))]:
                done.result()

    def _work(self, number: int) -> None:
        task, context = self.tasks[number], self.context
        incumbent, iterations, settings = context.incumbent, context.iterations, context.settings
        # without a time limit, what is searched must not depend on who is done first
        if iterations is None and (context.clock.over or incumbent.good_enough):
            return
        start = incumbent.replicas[task.place].schedule
        ahead = sum(t.gain for t in self.tasks[number:])
        fraction = min(1.0, self.workers * task.gain / ahead)
        if context.goal.objective is Objective.MAKESPAN:
            fraction *= settings.round_share  # another replica may be the longest after that
        left = context.clock.part(fraction).left
        windows = 10**9 if iterations is None else iterations
        schedule_replica(
            start.problem,
            Budget(left, moves=min(10**9, settings.moves_per_iteration * windows), windows=windows),
            task.seed,
            start=start,
            target_gap=context.goal.gap / 2,
            on_better=lambda found: incumbent.offer_schedule(task.place, found),
            settings=settings.scheduling,
        )
