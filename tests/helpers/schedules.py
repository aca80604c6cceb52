"""Random replicas, orders and schedules, and the checker's word on them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cappuccino.checker import Violation, check
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum
from cappuccino.instance import Instance
from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.replica_problem import Batch, Evaluation, ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule, build_schedule
from helpers.builders import (
    BACKWARD,
    FORWARD,
    changed,
    make_costs,
    make_instance,
    make_plan,
    make_problem,
    with_adapters,
    with_evaluations,
    with_unlike_stages,
)
from helpers.plans import random_plan


def violations(schedule: ReplicaSchedule) -> tuple[Violation, ...]:
    """Return what the checker finds in a plan of this one replica, the times being the schedule's own."""
    problem = schedule.problem
    plan = make_plan(problem.instance, schedule.replica(0, "x"))
    plan = changed(plan, gpu_time_s=schedule.gpu_time_s, makespan_s=schedule.makespan_s)
    return check(plan, problem.instance, {"x": problem.costs}).violations


def built(problem: ReplicaProblem, found: ScheduledOrder) -> ReplicaSchedule:
    """Return a list schedule as the simulator sees it."""
    return build_schedule(problem, found.order, found.operations)


def one_by_one(problem: ReplicaProblem, order: Sequence[Batch]) -> ReplicaSchedule:
    """Return the schedule with one micro-batch in flight at a time: valid where they fit, and as bad as it gets."""
    program = tuple(op for k in range(len(order)) for op in (k, ~k))
    return build_schedule(problem, order, (program,) * problem.num_stages)


def contents(order: Sequence[Batch]) -> list[tuple[tuple[Sample, ...], float]]:
    """Return what can be compared of micro-batches: their samples and urgency."""
    return [(b.samples, b.urgency_s) for b in order]


def random_replica(
    seed: int, *, tight: bool = False, layout: str = "packed", clip: bool = False, linear: bool = False
) -> ReplicaProblem:
    """Return 1 to 4 adapters on 1 to 3 stages.

    `tight` memory holds little more than the longest sample; `linear` times are sums that no library rounds its own
    way, so that schedules can be compared to the last bit.
    """
    rng = np.random.default_rng(seed)
    jobs = []
    for _ in range(int(rng.integers(1, 5))):
        batch = int(rng.integers(1, 5))
        jobs.append((rng.integers(1, 20, size=3 * batch).tolist(), batch, int(rng.integers(1, 4))))
    clipped = range(0, len(jobs), 2) if clip else ()
    instance = make_instance(*jobs, gpus=3, layout=layout, clipped=clipped)
    costs = random_costs(instance, rng, tight)
    if linear:
        stages = dict.fromkeys(costs.memory, FORWARD), dict.fromkeys(costs.memory, BACKWARD)
        costs = replace(costs, forward=FORWARD, backward=BACKWARD, stage_forward=stages[0], stage_backward=stages[1])
    elif seed % 3 == 1:
        instance, costs = with_adapters(instance, costs, seed)
    if seed % 5 == 3:
        instance = with_evaluations(instance, seed)
    if not linear and seed % 4 >= 2:
        costs = with_unlike_stages(costs, seed)
    problem = make_problem(instance, costs, 1 + seed % 3)
    if costs.usable_memory_gib is not None:  # what is tight is so beside the adapters
        longest = max(int(lengths.max()) for lengths in problem.lengths)
        beside = problem.adapter_costs.beside(MemoryModel(0.0, 0.0, 0.0))
        usable = costs.usable_memory_gib + float(beside.peak(longest, longest))
        problem = replace(problem, costs=replace(costs, usable_memory_gib=usable))
    return problem


def random_costs(instance: Instance, rng: np.random.Generator, tight: bool) -> CostModel:
    longest = max(int(x.max()) for x in instance.step_lengths)
    return make_costs(
        usable=10.0 + 2.0 * longest + float(rng.integers(0, 20)) if tight else None,
        optimizer_s=float(rng.choice([0.0, 2.0])),
        transfer=(float(rng.choice([0.0, 1.0])), 0.05),
        forward=SmoothMaximum(12.0, 1.0, 0.01, 4.0),
        backward=SmoothMaximum(24.0, 2.0, 0.02, 4.0),
    )


def random_order(problem: ReplicaProblem, seed: int, *, urgent: bool = False) -> list[Batch]:
    """Return micro-batches of random packing that fit, in an order that respects the steps.

    `urgent` ones have an urgency of up to a passage through a stage.
    """
    rng = np.random.default_rng(seed)
    groups: list[list[Sample]] = []
    for batch in random_plan(problem.instance, problem.num_stages, seed).replicas[0].micro_batches:
        samples = list(batch.samples)
        groups += [samples] if problem.batch_tokens(samples) <= problem.max_tokens else [[s] for s in samples]
    urgency = [float(rng.choice([0.0, 10.0, 30.0])) if urgent else 0.0 for _ in groups]
    order = [problem.batch(samples, u) for samples, u in zip(groups, urgency, strict=True)]
    for batch in problem.evaluations:
        a, j, _ = batch.evaluation
        low = max(k for k, b in enumerate(order) if (a, j) in b.steps) + 1
        high = min([k for k, b in enumerate(order) if (a, j + 1) in b.steps] or [len(order)])
        order.insert(int(rng.integers(low, high + 1)), batch)
    return order


def schedule_of_random_plan(problem: ReplicaProblem, seed: int) -> ReplicaSchedule:
    """Return a schedule as bad as a random plan; its B's need not follow the order of its F's. Ignores the memory."""
    replica = random_plan(problem.instance, problem.num_stages, seed).replicas[0]
    first = [op for op in replica.programs[0] if op[0] in ("F", "E")]
    rank = {op: k for k, op in enumerate(first)}
    order = [
        problem.batch(replica.micro_batches[m].samples)
        if kind == "F"
        else problem.evaluation(Evaluation(**replica.evaluations[m].model_dump()))
        for kind, m in first
    ]
    operations = [
        [~rank["F", op[1]] if op[0] == "B" else rank[op] for op in program if op[0] != "S"]
        for program in replica.programs
    ]
    return build_schedule(problem, order, operations)
