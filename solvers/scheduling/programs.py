"""From a schedule to programs: optimizer steps are put in, and the times follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.plan import MicroBatch, Operation, Replica, rounded_bound
from cappuccino.solvers.scheduling.program_times import BatchTable, Programs, time_programs
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem, StepKey


class BlockedProgramsError(Exception):
    """The operations of a schedule wait for each other."""


@dataclass(frozen=True)
class ReplicaSchedule:
    """A scheduled replica."""

    problem: ReplicaProblem
    order: tuple[Batch, ...]
    """Micro-batches in the order of their F's; a program names a micro-batch by its rank here."""
    operations: tuple[tuple[int, ...], ...]
    """By stage: rank k for the F of a micro-batch, ~k for its B."""
    makespan_s: float
    """End of the last operation, optimizer steps included, seconds."""
    peak_memory_gib: tuple[float, ...]
    """By stage."""

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.problem.num_stages * self.makespan_s

    @cached_property
    def programs(self) -> tuple[tuple[Operation, ...], ...]:
        """What every stage does, optimizer steps included."""
        count = len(self.order)
        steps: list[Operation] = [("S", a, j) for a, number in enumerate(self.problem.num_steps) for j in range(number)]

        def operation(code: int) -> Operation:
            if code >= count:
                return steps[code - count]
            return ("F", code) if code >= 0 else ("B", ~code)

        codes = (_with_steps(self.problem, self.order, stage) for stage in self.operations)
        return tuple(tuple(map(operation, program)) for program in codes)

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
            programs=self.programs,
        )


def build_schedule(
    problem: ReplicaProblem, order: Sequence[Batch], operations: Sequence[Sequence[int]]
) -> ReplicaSchedule:
    """Return the schedule of these micro-batches and operations with its times.

    Parameters
    ----------
    order
        Micro-batches in the order of their F's.
    operations
        By stage: rank k for the F of the k-th micro-batch, ~k for its B.

    Raises
    ------
    BlockedProgramsError
        When the operations wait for each other.
    """
    batches = BatchTable(
        np.array([b.forward_s for b in order]),
        np.array([b.backward_s for b in order]),
        np.array([b.transfer_s for b in order]),
        np.array([b.tokens for b in order], dtype=np.int64),
    )
    memory, optimizer_s = problem.memory, problem.costs.optimizer_s
    programs = _encoded(problem, order, operations)
    makespan, held = time_programs(programs, batches, optimizer_s, memory.working_gib, memory.held_gib)
    if makespan == np.inf:
        raise BlockedProgramsError("the operations of a schedule wait for each other")
    peaks = tuple((memory.static_gib + held).tolist())
    return ReplicaSchedule(problem, tuple(order), tuple(map(tuple, operations)), float(makespan), peaks)


def _encoded(problem: ReplicaProblem, order: Sequence[Batch], operations: Sequence[Sequence[int]]) -> Programs:
    """Return the programs as the kernel reads them."""
    codes = [np.array(_with_steps(problem, order, stage), dtype=np.int64) for stage in operations]
    begins = np.cumsum([0, *map(len, codes)])
    first = problem.first_steps
    waits: list[list[int]] = [[] for _ in range(int(first[-1]))]
    if problem.clipped:
        for rank, batch in enumerate(order):
            for a, j in batch.steps:
                if a in problem.clipped:
                    waits[first[a] + j].append(rank)
    members = np.array([rank for step in waits for rank in step], dtype=np.int64)
    return Programs(np.concatenate(codes), begins, members, np.cumsum([0, *map(len, waits)]))


def _with_steps(problem: ReplicaProblem, order: Sequence[Batch], operations: Sequence[int]) -> list[int]:
    """Put each optimizer step just before the adapter's next F, coded as `Programs` has it.

    The last ones stand after their B or, where they wait for the gradient norm of all stages, at the end.
    """
    count, first = len(order), problem.first_steps
    open_batches: dict[StepKey, int] = {}
    for batch in order:
        for step in batch.steps:
            open_batches[step] = open_batches.get(step, 0) + 1
    program: list[int] = []
    stepped: set[StepKey] = set()
    at_end: list[int] = []
    for operation in operations:
        if operation >= 0:
            for a, j in order[operation].steps:
                if j and (a, j) not in stepped:
                    stepped.add((a, j))
                    program.append(count + first[a] + j - 1)
            program.append(operation)
            continue
        program.append(operation)
        for a, j in order[~operation].steps:
            open_batches[a, j] -= 1
            if not open_batches[a, j] and j == problem.num_steps[a] - 1:
                (at_end if a in problem.clipped else program).append(count + first[a] + j)
    return [*program, *at_end]
