"""Schedules one replica: construct, anneal, improve windows with CP-SAT, small ones whole, until target or limit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cappuccino.plan import rounded_bound
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling.annealing import anneal
from cappuccino.solvers.scheduling.construction import construct
from cappuccino.solvers.scheduling.neighbourhoods import AdaptiveChoice
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import FoundBy, ReplicaSchedule
from cappuccino.solvers.scheduling.schedule_graph import ScheduleGraph, is_better, schedule_graph
from cappuccino.solvers.scheduling.whole import solve_whole
from cappuccino.solvers.scheduling.windows import improve_window
from cappuccino.solvers.settings import DEFAULT, Method, SchedulingSettings


def schedule_replica(
    problem: ReplicaProblem,
    budget: Budget,
    seed: int,
    *,
    start: ReplicaSchedule | None = None,
    target_gap: float = 0.0,
    target_s: float = 0.0,
    on_better: Callable[[ReplicaSchedule], object] | None = None,
    settings: SchedulingSettings = DEFAULT.scheduling,
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
    report = on_better or (lambda _: None)
    rng = np.random.default_rng(seed)
    clock = Clock(budget.seconds)
    target = max(target_s, problem.lower_bound_s / (1 - target_gap) if target_gap < 1 else float("inf"))
    part = clock.part(settings.construction_share)
    constructions = 1 if settings.method is Method.CP_SAT else budget.constructions
    best, patience = construct(problem, constructions, part, target, rng, settings)
    if start is not None and start.makespan_s < best.makespan_s:
        best = start
    report(best)
    if best.makespan_s > target and budget.moves and settings.method is not Method.CP_SAT:
        best = _annealed(problem, best, patience, clock, budget, target, rng, report, settings)
    if settings.method is Method.SEARCH:
        return best
    if best.makespan_s > target and budget.windows:
        best = _solved_whole(best, clock, seed, settings, report)
        target = max(target, best.problem.lower_bound_s)
    part = clock.part(settings.windows_share)
    return _through_windows(best, part, budget.windows, target, rng, report, settings)


def _solved_whole(
    best: ReplicaSchedule,
    clock: Clock,
    seed: int,
    settings: SchedulingSettings,
    report: Callable[[ReplicaSchedule], object],
) -> ReplicaSchedule:
    """Return what the model of the whole replica makes of a schedule, with its bound; of large ones nothing."""
    problem = best.problem
    samples = sum(x.size for x in problem.lengths)
    if problem.instance.layout == "padded" or samples > settings.whole_samples:
        return best
    part = clock.part(settings.whole_share).left
    limit = settings.whole_effort if part is None else None
    found = solve_whole(best, seed, time_limit_s=part, deterministic_limit=limit)
    best = best if found.schedule is None else replace(found.schedule, found_by=FoundBy.WHOLE_REPLICA)
    if found.bound_s > problem.lower_bound_s:
        bound = rounded_bound(found.bound_s, best.makespan_s)
        best = replace(best, problem=replace(problem, known_bound_s=bound))
    report(best)
    return best


def _annealed(
    problem: ReplicaProblem,
    best: ReplicaSchedule,
    patience_s: float,
    clock: Clock,
    budget: Budget,
    target_s: float,
    rng: np.random.Generator,
    report: Callable[[ReplicaSchedule], object],
    settings: SchedulingSettings,
) -> ReplicaSchedule:
    """Return what the annealing makes of a schedule, if that is better."""
    reported = Clock(None)

    def report_now_and_then(state: ScheduledOrder) -> None:
        nonlocal reported
        if reported.elapsed >= settings.least_pause_s:
            report(replace(state.schedule(), found_by=FoundBy.ANNEALING))
            reported = Clock(None)

    limit = target_s - problem.costs.optimizer_s
    part = clock.part(settings.annealing_share)
    found = anneal(problem, best, patience_s, part, budget.moves, limit, rng, report_now_and_then, settings)
    if found is None:
        return best
    new = replace(found.schedule(), found_by=FoundBy.ANNEALING)
    if not is_better(new, best):
        return best
    report(new)
    return new


def _through_windows(
    best: ReplicaSchedule,
    clock: Clock,
    count: int,
    target_s: float,
    rng: np.random.Generator,
    report: Callable[[ReplicaSchedule], object],
    settings: SchedulingSettings,
) -> ReplicaSchedule:
    """Return what CP-SAT makes of one window of the schedule after the other."""
    packable = best.problem.instance.layout != "padded"
    choice = AdaptiveChoice(settings.packed_batches if packable else (0,), settings.window_operations, rng)
    graph: ScheduleGraph | None = None
    for _ in range(count):
        if clock.over or best.makespan_s <= target_s:
            break
        neighbourhood, packed, size = choice.choose()
        graph = graph or schedule_graph(best)
        new = improve_window(best, size, neighbourhood, packed, rng, time_limit_s=clock.left, graph=graph)
        choice.learn(better=new is not None)
        if new is not None:
            alike = {b.samples for b in new.order} == {b.samples for b in best.order}
            best, graph = replace(new, found_by=FoundBy.ORDER_WINDOW if alike else FoundBy.PACKING_WINDOW), None
            report(best)
    return best
