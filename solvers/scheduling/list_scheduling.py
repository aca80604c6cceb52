"""List schedules of a replica with micro-batches formed on the way."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.batch_costs import BatchCosts
from cappuccino.solvers.scheduling.list_schedule_kernel import Jobs, Machine, empty_state, run_pipeline
from cappuccino.solvers.scheduling.packing import PackingRule, Source, open_first_steps
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem


@dataclass(frozen=True)
class ListSchedule:
    """A schedule: micro-batches in the order of their F's, and what every stage does in which order."""

    order: tuple[Batch, ...]
    operations: tuple[tuple[int, ...], ...]
    """By stage: rank k for the F of the k-th micro-batch, ~k for its B."""
    makespan_s: float
    """Without the optimizer steps that end the adapters."""


def machine_of(problem: ReplicaProblem, patience_s: float) -> Machine:
    """Return the stages of a replica."""
    memory = problem.memory
    room = problem.held_room_gib * (1 + 1e-9)
    return Machine(problem.num_stages, memory.working_gib, memory.held_gib, room, patience_s)


def costs_of(problem: ReplicaProblem) -> BatchCosts:
    """Return what micro-batches cost on a stage of a replica."""
    curves = problem.costs.forward_curve(problem.num_stages), problem.costs.backward_curve(problem.num_stages)
    numbers = [x for c in curves for x in (c.floor_s, c.per_token_s, c.per_square_s, c.power)]
    limits = problem.max_tokens, problem.instance.layout == "padded"
    return BatchCosts._make((*numbers, *problem.costs.transfer, *limits))


def added_by_adapter(problem: ReplicaProblem) -> np.ndarray:
    """Return what each adapter adds to its micro-batches, seconds, in the order of `Added`, shape (A, 4)."""
    found = problem.adapter_costs
    return np.stack([found.forward_floor, found.forward_work, found.backward_floor, found.backward_work], axis=1)


def empty_jobs(count: int) -> Jobs:
    """Return room for micro-batches by rank."""
    reals, integers = (np.zeros(count) for _ in range(5)), (np.zeros(count, np.int64) for _ in range(2))
    return Jobs(*(next(reals) for _ in range(3)), *integers, *reals)


@lru_cache(maxsize=1)
def no_source() -> Source:
    """Return the source of schedules whose micro-batches are known."""
    costs = BatchCosts(*(0.0,) * 10, 0, False)
    integers, reals = np.zeros(0, np.int64), np.zeros(0)
    nothing = np.zeros((0, 4))
    return _source(
        False, PackingRule(1.0), costs, nothing, 0, 0.0, integers, integers, integers, integers, reals, integers
    )


def _source(
    active: bool,
    rule: PackingRule,
    costs: BatchCosts,
    added: np.ndarray,
    stages: int,
    optimizer_s: float,
    first_sample: np.ndarray,
    batch_size: np.ndarray,
    num_steps: np.ndarray,
    length: np.ndarray,
    work_s: np.ndarray,
    heaviest: np.ndarray,
) -> Source:
    adapters, samples = len(batch_size), len(length)
    steps, parts = int(num_steps.max(initial=0)), int(batch_size.max(initial=0))
    by_adapter = [np.zeros(adapters, np.int64) for _ in range(4)]
    by_part = [np.zeros((adapters, parts), np.int64) for _ in range(4)]
    return Source._make(
        (
            active,
            rule,
            costs,
            added,
            optimizer_s,
            stages,
            first_sample,
            batch_size,
            num_steps,
            length,
            work_s,
            heaviest,
            np.zeros((adapters, steps + 1)),
            np.zeros(1, np.int64),
            np.full(samples, -1, np.int64),
            np.ones((adapters, steps)),
            *by_adapter,
            np.zeros(samples, np.int64),
            np.zeros((adapters, parts)),
            *by_part,
            np.zeros(adapters),
            np.zeros(adapters, np.int64),
            np.zeros(1, np.int64),
            np.zeros(samples, np.int64),
        )
    )


def list_schedule(
    problem: ReplicaProblem,
    rule: PackingRule,
    patience_s: float = 0.0,
    cutoff_s: float = float("inf"),
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    fastest: tuple[int, np.ndarray] | None = None,
) -> ListSchedule | None:
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
    ListSchedule or None
        None as soon as `cutoff_s` is exceeded.
    """
    sizes = np.array([x.shape[1] for x in problem.lengths])
    first = np.concatenate([[0], np.cumsum([x.size for x in problem.lengths])])
    source = _source(
        True,
        rule,
        costs_of(problem),
        added_by_adapter(problem),
        problem.num_stages,
        problem.costs.optimizer_s,
        first[:-1],
        sizes,
        np.array(problem.num_steps),
        np.concatenate([x.ravel() for x in problem.lengths]).astype(np.int64),
        np.concatenate([x.ravel() for x in problem.sample_work]),
        np.concatenate([np.argsort(-x, axis=1, kind="stable").ravel() for x in problem.sample_work]),
    )
    if noise:
        assert rng is not None  # noise is drawn from it
        source.bias[:] = 1 + noise * rng.uniform(-1, 1, source.bias.shape)
    if fastest is not None:
        a, places = fastest
        source.place[first[a] : first[a] + places.size] = places.ravel()
    open_first_steps(source)
    count = int(first[-1])
    state, jobs = empty_state(problem.num_stages, count), empty_jobs(count)
    makespan = run_pipeline(machine_of(problem, patience_s), jobs, count, count, cutoff_s, state, source)
    if makespan == float("inf"):
        return None
    groups: list[list[Sample]] = [[] for _ in range(int(state.forwards[0]))]
    for a, begin in enumerate(first[:-1].tolist()):
        for n, rank in enumerate(source.batch_of[begin : first[a + 1]].tolist()):
            groups[rank].append((a, n))
    operations = state.operations[:, : 2 * len(groups)].tolist()
    order = [problem.batch(group, float(jobs.urgency_s[k])) for k, group in enumerate(groups)]
    return ListSchedule(tuple(order), tuple(map(tuple, operations)), makespan)
