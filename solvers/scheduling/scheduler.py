"""Schedules one replica: construct, anneal, then repack and reorder with CP-SAT, until the target or the limit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling.annealing_search import WHOLE, anneal
from cappuccino.solvers.scheduling.list_scheduling import ListSchedule, list_schedule
from cappuccino.solvers.scheduling.order_windows import accepted, improve_order
from cappuccino.solvers.scheduling.packing import PackingRule
from cappuccino.solvers.scheduling.packing_windows import repack
from cappuccino.solvers.scheduling.programs import ReplicaSchedule, build_schedule
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem

TARGETS = (2.0, 4.0, 1.0, 3.0, 1.5, 2.5, 6.0, 0.7, 5.0, 1.25, 3.5, 1.75)
"""Work aimed at per micro-batch, in multiples of the launch-bound work, in the order they are tried."""
LOADS, FILLS, PATIENCES = (1.0, 2.0, 4.0, 0.0, 0.5), (0.75, 0.9, 0.5), (0.0, 0.25)
"""Other settings of the packing rule, and the patience likewise; the first ones with every target."""
CRITICAL_TARGETS, CRITICAL_URGENCIES = (1.0, 0.5, 0.3, 0.75), (0.0, 0.7, 1.5, 0.3)
"""Settings for the adapter with the longest path: target relative to that of the others, urgency likewise."""
NOISE = 0.25
"""Largest deviation of the priorities in repeated constructions."""
CONSTRUCTION_SHARE, ANNEALING_SHARE, REPACKING_SHARE = 0.15, 0.8, 0.3
"""Of the time left at the beginning of each phase; the CP-SAT windows get the rest."""
REPACKED_BATCHES = (2, 4)
"""Fewest and most micro-batches repacked together."""
LEAST_PAUSE_S = 1.0
"""Least time between two reports of the annealing, seconds."""
WINDOW_OPERATIONS = (24, 64)
"""Fewest and most operations in a CP-SAT window."""
_SETTINGS = (TARGETS, LOADS, CRITICAL_URGENCIES, CRITICAL_TARGETS, FILLS, PATIENCES)


@dataclass
class _Trial:
    """How a schedule is constructed."""

    settings: list[float]
    """One of each of `_SETTINGS`."""
    fastest: bool
    """Whether the steps of the adapter with the longest path are packed as they pass fastest alone."""
    noise: float = 0.0


def _trials(passes: Sequence[bool], best: dict[bool, tuple[float, list[float]]]) -> Iterator[_Trial]:
    """Yield settings: each is varied alone around the best of its pass, then all are disturbed around the best of all.

    Parameters
    ----------
    passes
        What `fastest` is tried with.
    best
        Least makespan and its settings by pass: kept up to date by the caller.
    """
    for fastest in passes:
        for place, values in enumerate(_SETTINGS):
            for value in values if place == 0 else values[1:]:
                tried = list(best[fastest][1]) if fastest in best else [x[0] for x in _SETTINGS]
                tried[place] = value
                yield _Trial(tried, fastest)
    while True:
        for factor in (0.9, 1.1, 1.0, 0.95, 1.05):
            fastest = min(best, key=lambda key: best[key][0])
            settings = best[fastest][1]
            yield _Trial([settings[0] * factor, *settings[1:]], fastest, NOISE)


def construct(
    problem: ReplicaProblem, count: int, clock: Clock, target_s: float, rng: np.random.Generator
) -> tuple[ListSchedule, float]:
    """Return the best of up to `count` list schedules with packing on the fly, and its patience (seconds).

    The first schedule is always finished, however little time there is; one that ends by `target_s` is the last.
    """
    launch_bound = problem.launch_bound_work
    chosen: tuple[ListSchedule, float] | None = None
    best: dict[bool, tuple[float, list[float]]] = {}
    passes = (False,) if problem.fastest is None else (False, True)
    for i, trial in enumerate(_trials(passes, best)):
        if chosen is not None and (i >= count or clock.over or chosen[0].makespan_s <= target_s):
            break
        target, load, urgency, critical, fill, patience = trial.settings
        cutoff = best[trial.fastest][0] if trial.fastest in best else float("inf")
        rule = PackingRule(target * launch_bound, fill, load, critical, urgency * launch_bound)
        given = problem.fastest if trial.fastest else None
        found = list_schedule(problem, rule, patience * launch_bound, cutoff, trial.noise, rng, given)
        if found is not None and found.makespan_s < cutoff:
            best[trial.fastest] = found.makespan_s, trial.settings
            if chosen is None or found.makespan_s < chosen[0].makespan_s:
                chosen = found, patience * launch_bound
    assert chosen is not None  # a micro-batch of one sample fits, so packing on the fly always gets through
    return chosen


def schedule_replica(
    problem: ReplicaProblem,
    budget: Budget,
    seed: int,
    *,
    start: ReplicaSchedule | None = None,
    target_gap: float = 0.0,
    target_s: float = 0.0,
    on_better: Callable[[ReplicaSchedule], None] | None = None,
) -> ReplicaSchedule:
    """Schedule a replica whose samples all fit.

    Parameters
    ----------
    start
        A schedule of the same problem to begin with.
    target_gap
        Relative distance to the proven bound that ends the search.
    target_s
        Makespan that ends the search, seconds.
    on_better
        Called with every better schedule.
    """
    rng = np.random.default_rng(seed)
    clock = Clock(budget.seconds)
    target = max(target_s, problem.lower_bound_s / (1 - target_gap) if target_gap < 1 else float("inf"))
    part, last_steps = clock.part(CONSTRUCTION_SHARE), problem.costs.optimizer_s
    found, patience = construct(problem, budget.constructions, part, target - last_steps, rng)
    best = build_schedule(problem, found.order, found.operations)
    if start is not None and start.makespan_s < best.makespan_s:
        best, found = start, ListSchedule(start.order, start.operations, start.makespan_s - last_steps)
    if on_better:
        on_better(best)
    if best.makespan_s > target and budget.moves:
        reported = Clock(None)

        def report(state: ListSchedule) -> None:
            nonlocal reported
            if on_better and reported.elapsed >= LEAST_PAUSE_S:  # to build a long schedule takes its time
                on_better(build_schedule(problem, state.order, state.operations))
                reported = Clock(None)

        # first what schedules an order anew, last what changes single operations: that would be lost again
        part, limit = clock.part(ANNEALING_SHARE), target - last_steps
        found = anneal(problem, found, patience, part, budget.moves, limit, rng, report)
        if found.makespan_s > limit:
            found = _repacked(problem, found, patience, clock.part(REPACKING_SHARE), budget.windows, rng)
        better = accepted(best, found)
        best = better or best
        if better and on_better:
            on_better(best)
    for _ in range(budget.windows):
        if clock.over or best.makespan_s <= target:
            break
        size = int(rng.integers(WINDOW_OPERATIONS[0], WINDOW_OPERATIONS[1] + 1))
        new = improve_order(best, size, rng, time_limit_s=clock.left)
        if new is not None:
            best = new
            if on_better:
                on_better(best)
    return best


def _repacked(
    problem: ReplicaProblem,
    found: ListSchedule,
    patience_s: float,
    clock: Clock,
    count: int,
    rng: np.random.Generator,
) -> ListSchedule:
    few, many = len(found.order) < REPACKED_BATCHES[0], len(found.order) > WHOLE
    if problem.instance.layout == "padded" or few or many:
        return found  # nothing that `repack` could do, or could do soon enough
    for _ in range(count):
        if clock.over:
            break
        size = int(rng.integers(REPACKED_BATCHES[0], REPACKED_BATCHES[1] + 1))
        found = repack(problem, found, size, patience_s, rng, time_limit_s=clock.left) or found
    return found
