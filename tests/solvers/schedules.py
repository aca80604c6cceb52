"""Random replicas and schedules, and the checker's word on them."""

import numpy as np
from builders import changed, make_costs, make_instance, make_plan, make_problem
from plans import random_plan

from cappuccino.checker import Violation, check
from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.instance import Instance
from cappuccino.solvers.programs import ReplicaSchedule, build_schedule
from cappuccino.solvers.replica_problem import Batch, ReplicaProblem, StepKey


def violations(schedule: ReplicaSchedule) -> tuple[Violation, ...]:
    """Return what the checker finds in a plan of this one replica, the times being the schedule's own."""
    problem = schedule.problem
    plan = make_plan(problem.instance, schedule.replica(0, "x", None))
    plan = changed(plan, gpu_time_s=schedule.gpu_time_s, makespan_s=schedule.makespan_s)
    return check(plan, problem.instance, {"x": problem.costs}).violations


def random_replica(seed: int, *, tight: bool = False, layout: str = "packed", clip: bool = False) -> ReplicaProblem:
    """Return 1 to 4 adapters on 1 to 3 stages; `tight` memory holds little more than the longest sample."""
    rng = np.random.default_rng(seed)
    jobs = []
    for _ in range(int(rng.integers(1, 5))):
        batch = int(rng.integers(1, 5))
        jobs.append((rng.integers(1, 20, size=3 * batch).tolist(), batch, int(rng.integers(1, 4))))
    clipped = range(0, len(jobs), 2) if clip else ()
    instance = make_instance(*jobs, gpus=3, layout=layout, clipped=clipped)
    return make_problem(instance, random_costs(instance, rng, tight), 1 + seed % 3)


def random_costs(instance: Instance, rng: np.random.Generator, tight: bool) -> CostModel:
    longest = max(int(x.max()) for x in instance.step_lengths)
    return make_costs(
        usable=10.0 + 2.0 * longest + float(rng.integers(0, 20)) if tight else None,
        optimizer_s=float(rng.choice([0.0, 2.0])),
        transfer=(float(rng.choice([0.0, 1.0])), 0.05),
        forward=SmoothMaximum(12.0, 1.0, 0.01, 4.0),
        backward=SmoothMaximum(24.0, 2.0, 0.02, 4.0),
    )


def schedule_of_random_plan(problem: ReplicaProblem, seed: int) -> ReplicaSchedule:
    """Return a schedule as bad as a random plan; its B's need not follow the order of its F's. Ignores the memory."""
    replica = random_plan(problem.instance, problem.num_stages, seed).replicas[0]
    first = [op[1] for op in replica.programs[0] if op[0] == "F"]
    rank = {m: k for k, m in enumerate(first)}
    order = problem.batches([replica.micro_batches[m].samples for m in first])
    operations = [
        [rank[op[1]] if op[0] == "F" else ~rank[op[1]] for op in program if op[0] != "S"]
        for program in replica.programs
    ]
    return build_schedule(problem, order, operations)


class FixedOrder:
    """Forwards given micro-batches in the given order, each as soon as the steps before it are done."""

    def __init__(self, order: list[Batch]) -> None:
        self._order = order
        self._next = 0
        self._open: dict[StepKey, int] = {}
        for batch in order:
            for step in batch.steps:
                self._open[step] = self._open.get(step, 0) + 1

    def peek(self) -> Batch | None:
        """Return the next micro-batch once the steps before it are done."""
        if self._next == len(self._order):
            return None
        batch = self._order[self._next]
        for a, j in batch.steps:
            if j and self._open.get((a, j - 1)):
                return None
        return batch

    def take(self) -> None:
        """Go on to the next micro-batch."""
        self._next += 1

    def backward_done(self, batch: Batch) -> None:
        """Count down the steps of the micro-batch."""
        for step in batch.steps:
            self._open[step] -= 1

    @property
    def exhausted(self) -> bool:
        """Whether every micro-batch has been handed out."""
        return self._next == len(self._order)
