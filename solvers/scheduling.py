"""Schedules one replica: construct, anneal, then improve windows with CP-SAT, until the bound is met or time is up."""

from collections.abc import Callable

import numpy as np

from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.list_scheduling import ListSchedule, list_schedule
from cappuccino.solvers.local_search import anneal
from cappuccino.solvers.packing import DynamicPacking, PackingRule
from cappuccino.solvers.programs import ReplicaSchedule, build_schedule
from cappuccino.solvers.repacking import repack
from cappuccino.solvers.replica_problem import ReplicaProblem
from cappuccino.solvers.windows import accepted, improve_order

TARGETS = np.geomspace(0.6, 6.0, 12)
"""Work aimed at per micro-batch, in multiples of the knee."""
PATIENCE = (0.0, 0.25)
"""How long a stage waits for a B, in multiples of the knee."""
CONSTRUCTION_SHARE, ANNEALING_SHARE, REPACKING_SHARE = 0.15, 0.75, 0.3
"""Of the time left at the beginning of each phase; the CP-SAT windows get the rest."""
REPACKED_BATCHES = (2, 4)
"""Fewest and most micro-batches repacked together."""
WINDOW_OPERATIONS = (24, 64)
"""Fewest and most operations in a CP-SAT window."""


def construct(
    problem: ReplicaProblem, count: int, clock: Clock, rng: np.random.Generator
) -> tuple[ListSchedule, float]:
    """Return the best of `count` list schedules with packing on the fly, and the patience (seconds) it was made with.

    The first schedule is always finished, however little time there is.
    """
    rules = [(float(t), fill, p) for fill in (0.75, 0.5) for p in PATIENCE for t in TARGETS]
    best: tuple[ListSchedule, float] | None = None
    for i in range(count):
        # a coarse pass over all targets first, then repetitions with noise
        target, fill, patience = rules[(i * 5) % len(rules)]
        noise = 0.0 if i < len(rules) else 0.15
        rule = PackingRule(target * problem.knee_work, fill, noise)
        cutoff = best[0].makespan_s if best else float("inf")
        wait = patience * problem.knee_work
        found = list_schedule(problem, DynamicPacking(problem, rule, rng), wait, cutoff)
        if found is not None and found.makespan_s < cutoff:
            best = found, wait
        if best is not None and clock.over:
            break
    assert best is not None  # a micro-batch of one sample fits, so packing on the fly always gets through
    return best


def schedule_replica(
    problem: ReplicaProblem,
    budget: Budget,
    seed: int,
    *,
    start: ReplicaSchedule | None = None,
    target_gap: float = 0.0,
    on_better: Callable[[ReplicaSchedule], None] | None = None,
) -> ReplicaSchedule:
    """Schedule a replica whose samples all fit.

    Parameters
    ----------
    start
        A schedule of the same problem to begin with.
    target_gap
        Relative distance to the proven bound that ends the search.
    on_better
        Called with every better schedule.
    """
    rng = np.random.default_rng(seed)
    clock = Clock(budget.seconds)
    target = problem.lower_bound_s / (1 - target_gap) if target_gap < 1 else float("inf")
    found, patience = construct(problem, budget.constructions, clock.part(CONSTRUCTION_SHARE), rng)
    best = build_schedule(problem, found.order, found.operations)
    if start is not None and start.makespan_s < best.makespan_s:
        best, found = start, ListSchedule(start.order, start.operations, start.makespan_s)
    if on_better:
        on_better(best)
    if best.makespan_s > target:
        # first what schedules an order anew, last what changes single operations: that would be lost again
        found = anneal(problem, found, patience, clock.part(ANNEALING_SHARE), budget.moves, target, rng)
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
    if problem.instance.layout == "padded" or len(found.order) < REPACKED_BATCHES[0]:
        return found  # nothing that `repack` could do
    for _ in range(count):
        if clock.over:
            break
        size = int(rng.integers(REPACKED_BATCHES[0], REPACKED_BATCHES[1] + 1))
        found = repack(problem, found, size, patience_s, rng, time_limit_s=clock.left) or found
    return found
