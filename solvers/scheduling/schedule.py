"""A scheduled replica: micro-batches, what every stage does in which order, and when it is done."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import count

import numpy as np

from cappuccino.plan import EvaluationBatch, MicroBatch, Operation, Replica, rounded_bound
from cappuccino.solvers.scheduling.kernels.arrays import BatchTable, StepTable
from cappuccino.solvers.scheduling.kernels.programs import add_steps, time_programs
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem


class FoundBy(StrEnum):
    """What has made a schedule."""

    CONSTRUCTION = "construction"
    ANNEALING = "annealing"
    WHOLE_REPLICA = "whole_replica"
    ORDER_WINDOW = "order_window"
    PACKING_WINDOW = "packing_window"


class BlockedProgramsError(Exception):
    """The operations of a schedule wait for each other."""


@dataclass(frozen=True)
class ReplicaSchedule:
    """A scheduled replica."""

    problem: ReplicaProblem
    order: tuple[Batch, ...]
    """Micro-batches in the order of their F's, those that are evaluated among them."""
    operations: tuple[tuple[int, ...], ...]
    """By stage: rank k for the F of a micro-batch, ~k for its B."""
    makespan_s: float
    """End of the last operation, optimizer steps included, seconds."""
    peak_memory_gib: tuple[float, ...]
    """By stage."""
    found_by: FoundBy = field(default=FoundBy.CONSTRUCTION, compare=False)

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.problem.num_stages * self.makespan_s

    @cached_property
    def programs(self) -> tuple[tuple[Operation, ...], ...]:
        """What every stage does, optimizer steps included."""
        numbers = _numbered(self.order)
        steps: list[Operation] = [("S", a, j) for a, number in enumerate(self.problem.num_steps) for j in range(number)]
        forwards: list[Operation] = [
            ("F", m) if b.evaluation is None else ("E", m) for m, b in zip(numbers, self.order, strict=True)
        ]
        by_code = [*forwards, *steps]

        def operation(code: int) -> Operation:
            return by_code[code] if code >= 0 else ("B", numbers[~code])

        codes = add_steps(np.array(self.operations, np.int64), self.problem.step_table(self.order))
        return tuple(tuple(map(operation, program)) for program in codes.tolist())

    def replica(self, number: int, gpu: str) -> Replica:
        """Return the replica as it stands in a plan."""
        return Replica(
            id=number,
            gpu=gpu,
            num_stages=self.problem.num_stages,
            layers_per_stage=self.problem.costs.layers_per_stage(self.problem.num_stages),
            recompute=self.problem.costs.recompute,
            adapters=tuple(self.problem.instance.adapters[i].name for i in self.problem.adapters),
            makespan_s=self.makespan_s,
            lower_bound_s=rounded_bound(self.problem.lower_bound_s, self.makespan_s),
            peak_memory_gib=self.peak_memory_gib,
            micro_batches=tuple(MicroBatch(samples=b.samples) for b in self.order if b.evaluation is None),
            evaluations=tuple(
                EvaluationBatch(**b.evaluation._asdict()) for b in self.order if b.evaluation is not None
            ),
            programs=self.programs,
        )


@dataclass(frozen=True)
class PlacedReplica:
    """A scheduled replica and the type of its GPUs."""

    schedule: ReplicaSchedule
    gpu: str


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
    steps = problem.step_table(order)
    makespan, held = time_operations(problem, batches, steps, np.array(operations, np.int64))
    if makespan == np.inf:
        raise BlockedProgramsError("the operations of a schedule wait for each other")
    peaks = tuple((problem.memory.static_gib + held).tolist())
    return ReplicaSchedule(problem, tuple(order), tuple(map(tuple, operations)), makespan, peaks)


def time_operations(
    problem: ReplicaProblem, batches: BatchTable, steps: StepTable, operations: np.ndarray
) -> tuple[float, np.ndarray]:
    """Put optimizer steps in and run everything; return makespan and memory as `time_programs` does.

    Parameters
    ----------
    operations
        By stage: rank k for the F of a micro-batch, ~k for its B, shape (G, O).
    """
    memory, optimizer_s = problem.memory, problem.costs.optimizer_s
    programs = add_steps(operations, steps)
    limits = optimizer_s, memory.working_gib, memory.held_gib
    makespan, held = time_programs(programs, steps, batches, problem.kinds, *limits)
    return float(makespan), held


def _numbered(order: Sequence[Batch]) -> list[int]:
    """Return by rank the number of a micro-batch in the plan, where those that are evaluated are counted apart."""
    trained, evaluated = count(), count()
    return [next(trained if b.evaluation is None else evaluated) for b in order]
