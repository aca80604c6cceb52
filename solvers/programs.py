"""From a schedule to programs: optimizer steps are put in, and the simulator gives the makespan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import MicroBatch, Operation, Replica, rounded_bound
from cappuccino.simulator import peak_memory, run_programs
from cappuccino.solvers.replica_problem import Batch, ReplicaProblem, StepKey
from cappuccino.timeline import Timeline
from cappuccino.workload import Workload


@dataclass(frozen=True)
class ReplicaSchedule:
    """A scheduled replica as the simulator sees it."""

    problem: ReplicaProblem
    order: tuple[Batch, ...]
    """Micro-batches in the order of their F's; a program names a micro-batch by its rank here."""
    operations: tuple[tuple[int, ...], ...]
    """By stage: rank k for the F of a micro-batch, ~k for its B."""
    timeline: Timeline
    peak_memory_gib: tuple[float, ...]

    @property
    def makespan_s(self) -> float:
        """End of the last operation, optimizer steps included, seconds."""
        return self.timeline.makespan

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.problem.num_stages * self.makespan_s

    def replica(self, number: int, gpu: str, layers: tuple[int, ...] | None) -> Replica:
        """Return the replica as it stands in a plan."""
        return Replica(
            id=number,
            gpu=gpu,
            num_stages=self.problem.num_stages,
            layers_per_stage=layers,
            adapters=tuple(self.problem.instance.adapters[i].name for i in self.problem.adapters),
            makespan_s=self.makespan_s,
            lower_bound_s=rounded_bound(self.problem.lower_bound_s, self.makespan_s),
            peak_memory_gib=self.peak_memory_gib,
            micro_batches=tuple(MicroBatch(samples=b.samples) for b in self.order),
            programs=self.timeline.programs,
        )


def build_schedule(
    problem: ReplicaProblem, order: Sequence[Batch], operations: Sequence[Sequence[int]]
) -> ReplicaSchedule:
    """Return the schedule of these micro-batches and operations; its times are the simulator's.

    Parameters
    ----------
    order
        Micro-batches in the order of their F's.
    operations
        By stage: rank k for the F of the k-th micro-batch, ~k for its B.

    Raises
    ------
    DeadlockError
        When the operations wait for each other.
    """
    programs = tuple(_with_steps(problem, order, stage) for stage in operations)
    workload = Workload(
        tokens=np.array([b.tokens for b in order], dtype=np.int64),
        steps=tuple(frozenset(b.steps) for b in order),
        forward_s=np.array([b.forward_s for b in order]),
        backward_s=np.array([b.backward_s for b in order]),
        transfer_s=np.array([b.transfer_s for b in order]),
        optimizer_s=problem.costs.optimizer_s,
        clipped=problem.clipped,
    )
    timeline = run_programs(programs, workload)
    peaks = peak_memory(programs, workload.tokens, problem.memory)
    return ReplicaSchedule(problem, tuple(order), tuple(map(tuple, operations)), timeline, peaks)


def _with_steps(problem: ReplicaProblem, order: Sequence[Batch], operations: Sequence[int]) -> tuple[Operation, ...]:
    """Put each optimizer step just before the adapter's next F.

    The last ones stand after their B or, where they wait for the gradient norm of all stages, at the end.
    """
    open_batches: dict[StepKey, int] = {}
    for batch in order:
        for step in batch.steps:
            open_batches[step] = open_batches.get(step, 0) + 1
    program: list[Operation] = []
    stepped: set[StepKey] = set()
    at_end: list[Operation] = []
    for operation in operations:
        if operation >= 0:
            for a, j in order[operation].steps:
                if j and (a, j) not in stepped:
                    stepped.add((a, j))
                    program.append(("S", a, j - 1))
            program.append(("F", operation))
            continue
        program.append(("B", ~operation))
        for a, j in order[~operation].steps:
            open_batches[a, j] -= 1
            if not open_batches[a, j] and j == problem.num_steps[a] - 1:
                (at_end if a in problem.clipped else program).append(("S", a, j))
    return (*program, *at_end)
