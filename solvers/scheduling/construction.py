"""Constructs schedules from nothing: list schedules with micro-batches formed on the way, by many settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Sample
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.kernels.arrays import Jobs, empty_jobs, empty_state
from cappuccino.solvers.scheduling.kernels.list_schedule import run_pipeline
from cappuccino.solvers.scheduling.kernels.packing import open_first_steps
from cappuccino.solvers.scheduling.kernels.source import Evaluations, PackingRule, Source, new_source
from cappuccino.solvers.scheduling.order import without_empty_backwards
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule, build_schedule
from cappuccino.solvers.settings import DEFAULT, SchedulingSettings

INFINITY = float("inf")


@dataclass
class _Trial:
    """How a schedule is constructed."""

    numbers: list[float]
    """Target, load, critical urgency, critical target, fill, patience."""
    fastest: bool
    """Whether the steps of the adapter with the longest path are packed as they pass fastest alone."""
    noise: float = 0.0


def _trials(
    settings: SchedulingSettings, passes: Sequence[bool], best: dict[bool, tuple[float, list[float]]]
) -> Iterator[_Trial]:
    """Yield trials: each number is varied alone around the best of its pass, then all are disturbed around the best.

    Parameters
    ----------
    passes
        What `fastest` is tried with.
    best
        Least makespan and its numbers by pass: kept up to date by the caller.
    """
    s = settings
    choices = (s.targets, s.loads, s.critical_urgencies, s.critical_targets, s.fills, s.patiences)
    for fastest in passes:
        for place, values in enumerate(choices):
            for value in values if place == 0 else values[1:]:
                tried = list(best[fastest][1]) if fastest in best else [x[0] for x in choices]
                tried[place] = value
                yield _Trial(tried, fastest)
    while True:
        for factor in s.noisy_targets:
            fastest = min(best, key=lambda key: best[key][0])
            numbers = best[fastest][1]
            yield _Trial([numbers[0] * factor, *numbers[1:]], fastest, s.noise)


def construct(
    problem: ReplicaProblem,
    count: int,
    clock: Clock,
    target_s: float,
    rng: np.random.Generator,
    settings: SchedulingSettings = DEFAULT.scheduling,
) -> tuple[ReplicaSchedule, float]:
    """Return the best of up to `count` list schedules with packing on the fly, and its patience (seconds).

    The first schedule is always finished, however little time there is; one that ends by `target_s` is the last.
    """
    launch_bound = problem.launch_bound_work
    chosen: tuple[ReplicaSchedule, float] | None = None
    best: dict[bool, tuple[float, list[float]]] = {}
    passes = (False,) if problem.fastest is None else (False, True)
    for i, trial in enumerate(_trials(settings, passes, best)):
        if chosen is not None and (i >= count or clock.over or chosen[0].makespan_s <= target_s):
            break
        target, load, urgency, critical, fill, patience = trial.numbers
        cutoff = best[trial.fastest][0] if trial.fastest in best else INFINITY
        rule = PackingRule(target * launch_bound, fill, load, critical, urgency * launch_bound, settings.overshoot)
        given = problem.fastest if trial.fastest else None
        found = list_schedule(problem, rule, patience * launch_bound, cutoff, trial.noise, rng, given)
        if found is not None and found.makespan_s < cutoff:
            best[trial.fastest] = found.makespan_s, trial.numbers
            if chosen is None or found.makespan_s < chosen[0].makespan_s:
                chosen = found, patience * launch_bound
    assert chosen is not None  # a micro-batch of one sample fits, so packing on the fly always gets through
    return chosen


def list_schedule(
    problem: ReplicaProblem,
    rule: PackingRule,
    patience_s: float = 0.0,
    cutoff_s: float = INFINITY,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    fastest: tuple[int, np.ndarray] | None = None,
) -> ReplicaSchedule | None:
    """Schedule a replica, packing on the fly.

    Parameters
    ----------
    patience_s
        How long a stage that could start an F waits for a B instead.
    noise
        Largest relative deviation of the priorities, drawn from `rng`.
    fastest
        Parts of one adapter's first steps that are given, as `ReplicaProblem.fastest`.

    Returns
    -------
    ReplicaSchedule or None
        None as soon as `cutoff_s` is exceeded.
    """
    source = source_of(problem, rule)
    first = source.first_sample.tolist()
    if noise:
        assert rng is not None  # noise is drawn from it
        source.bias[:] = 1 + noise * rng.uniform(-1, 1, source.bias.shape)
    if fastest is not None:
        a, places = fastest
        source.place[first[a] : first[a] + places.size] = places.ravel()
    found = run_source(problem, source, patience_s, cutoff_s)
    if found is None:
        return None
    operations, jobs = found
    groups: dict[int, list[Sample]] = {}
    for a, (begin, end) in enumerate(zip(first, [*first[1:], len(source.length)], strict=True)):
        for n, rank in enumerate(source.batch_of[begin:end].tolist()):
            groups.setdefault(rank, []).append((a, n))
    trained = sorted(groups)
    made = problem.batches([groups[rank] for rank in trained], jobs.urgency_s[trained].tolist())
    by_rank = dict(zip(trained, made, strict=True))
    order = [by_rank[rank] if e < 0 else problem.evaluations[e] for rank, e in enumerate(jobs.evaluation.tolist())]
    return build_schedule(problem, order, operations)


def source_of(problem: ReplicaProblem, rule: PackingRule) -> Source:
    """Return what forms the micro-batches of a replica, nothing being given."""
    sizes, steps = np.array([x.shape[1] for x in problem.lengths]), np.array(problem.num_steps)
    first = np.concatenate([[0], np.cumsum([x.size for x in problem.lengths])])
    return new_source(
        rule,
        problem.busiest,
        problem.stage_costs,
        problem.added,
        problem.costs.optimizer_s,
        problem.num_stages,
        first[:-1],
        sizes,
        steps,
        np.concatenate([x.ravel() for x in problem.lengths]).astype(np.int64),
        np.concatenate([x.ravel() for x in problem.sample_work]),
        np.concatenate([np.argsort(-x, axis=1, kind="stable").ravel() for x in problem.sample_work]),
        np.full(first[-1], -1, np.int64),
        np.ones((len(sizes), int(steps.max()))),
        _evaluations(problem),
    )


def _evaluations(problem: ReplicaProblem) -> Evaluations:
    """Return what is evaluated as the kernels read it."""
    batches, steps = problem.evaluations, max(problem.num_steps)
    numbers = np.zeros((len(problem.adapters), steps), np.int64)
    for batch in batches:
        assert batch.evaluation is not None
        numbers[batch.evaluation[:2]] += 1
    ends = np.cumsum(numbers.ravel()).reshape(numbers.shape)
    return Evaluations(
        np.concatenate([(ends - numbers)[:, :1], ends], axis=1),
        np.array([b.forward_s for b in batches]).reshape(len(batches), len(problem.pipeline.kind_shares)),
        np.array([b.tokens for b in batches], np.int64),
        np.array([b.transfer_s for b in batches]),
    )


def run_source(
    problem: ReplicaProblem, source: Source, patience_s: float = 0.0, cutoff_s: float = INFINITY
) -> tuple[tuple[tuple[int, ...], ...], Jobs] | None:
    """List-schedule the micro-batches that a source forms; None as soon as the cutoff is exceeded.

    Returns
    -------
    operations
        By stage: rank k for the F of a micro-batch, ~k for its B; who is in them is in the source.
    jobs
        The micro-batches by rank.
    """
    count = len(source.length) + len(source.evaluation_tokens)
    open_first_steps(source)
    state, jobs = empty_state(problem.num_stages, count), empty_jobs(count, len(problem.pipeline.kind_shares))
    if run_pipeline(problem.machine(patience_s), jobs, count, count, cutoff_s, state, source) == INFINITY:
        return None
    formed = int(state.forwards[0])
    jobs = Jobs(*(x[:formed] for x in jobs))
    return without_empty_backwards(state.operations[:, : 2 * formed], jobs.evaluation), jobs
