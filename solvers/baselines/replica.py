"""A replica of a baseline: micro-batches in the order of their F's, with what they cost.

Legend: N samples, M micro-batches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.solvers.baselines.samples import Samples
from cappuccino.solvers.scheduling.kernels.arrays import BatchTable, StepTable
from cappuccino.solvers.scheduling.kernels.costs import batch_table
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule, build_schedule, time_operations


@dataclass(frozen=True)
class BaselineReplica(ABC):
    """Which samples share a micro-batch, in which order; subclasses say in which order every stage works."""

    problem: ReplicaProblem
    samples: Samples
    rank: np.ndarray
    """By sample, the rank of its micro-batch in the order of F's (and of B's), shape (N,)."""

    @property
    @abstractmethod
    def operations(self) -> np.ndarray:
        """Rank k for the F of a micro-batch and ~k for its B, by stage, shape (G, 2 M)."""

    @cached_property
    def makespan_s(self) -> float:
        """Makespan of the schedule, seconds."""
        if self.problem.evaluations:
            return self.schedule().makespan_s
        return time_operations(self.problem, self.batches, self._steps, self.operations)[0]

    @cached_property
    def evaluated_before(self) -> np.ndarray:
        """By evaluation micro-batch, the rank of the F that it stands before; `count` for the end of the programs.

        An adapter is evaluated right before its next step.
        """
        first = np.full(self.problem.first_steps[-1] + 1, self.count)
        np.minimum.at(first, self.samples.step_id, self.rank)
        result = []
        for batch in self.problem.evaluations:
            assert batch.evaluation is not None
            a, step, _ = batch.evaluation
            follows = step + 1 < self.problem.num_steps[a]
            result.append(int(first[self.problem.first_steps[a] + step + 1]) if follows else self.count)
        return np.array(result, np.int64)

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.problem.num_stages * self.makespan_s

    @cached_property
    def count(self) -> int:
        """Number of micro-batches M."""
        return int(self.rank.max()) + 1

    @cached_property
    def batches(self) -> BatchTable:
        """What the micro-batches cost, by rank."""
        order, begins = self._by_rank
        position, length = self.samples.position[order], self.samples.length[order]
        return batch_table(self.problem.stage_costs, self.problem.added, begins, position, length)

    @cached_property
    def _by_rank(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples in the order of their micro-batches, and where those begin."""
        begins = np.concatenate([[0], np.cumsum(np.bincount(self.rank, minlength=self.count))])
        return np.argsort(self.rank, kind="stable"), begins

    @cached_property
    def _steps(self) -> StepTable:
        """Which steps the micro-batches are of."""
        steps = int(self.samples.step_id.max()) + 1
        rank, step = np.divmod(np.unique(self.rank * steps + self.samples.step_id), steps)
        begins = np.searchsorted(rank, np.arange(self.count + 1))
        return StepTable(begins, step, *self.problem.step_traits, np.full(self.count, -1))

    def schedule(self) -> ReplicaSchedule:
        """Return the schedule."""
        samples, (by_rank, begins) = self.samples, self._by_rank
        positions, numbers, steps = (x[by_rank].tolist() for x in (samples.position, samples.number, samples.step))
        tokens = self.batches.tokens.tolist()
        times = zip(*(x.tolist() for x in self.batches[:3]), strict=True)
        order = []
        for k, figures in enumerate(times):
            part = slice(begins[k], begins[k + 1])
            members = tuple(zip(positions[part], numbers[part], strict=True))
            keys = tuple(dict.fromkeys(zip(positions[part], steps[part], strict=True)))
            order.append(Batch(members, keys, tokens[k], *figures))
        return build_schedule(self.problem, *self._with_evaluations(order))

    def _with_evaluations(self, order: list[Batch]) -> tuple[list[Batch], list[list[int]]]:
        """Return micro-batches and operations with those of evaluations among them."""
        before = self.evaluated_before
        by_place = np.argsort(before, kind="stable").tolist()
        behind = np.searchsorted(before[by_place], np.arange(self.count), side="right")
        ranks = (np.arange(self.count) + behind).tolist()
        everything: list[Batch] = [*order, *self.problem.evaluations]  # overwritten place by place
        standing: dict[int, list[int]] = {}
        for k, batch in enumerate(order):
            everything[ranks[k]] = batch
        for place, e in enumerate(by_place):
            rank = int(before[e]) + place
            everything[rank] = self.problem.evaluations[e]
            standing.setdefault(int(before[e]), []).append(rank)
        operations: list[list[int]] = []
        for stage in self.operations.tolist():
            program: list[int] = []
            for op in stage:
                program += [*standing.get(op, ()), ranks[op]] if op >= 0 else [~ranks[~op]]
            operations.append([*program, *standing.get(self.count, ())])
        return everything, operations


def ranks_of(*keys: np.ndarray) -> np.ndarray:
    """Return the ranks of micro-batches sorted by keys, the first key counting most; equal keys are one micro-batch.

    Parameters
    ----------
    keys
        Non-negative integers by sample, each of shape (N,).
    """
    combined = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        combined = combined * (int(key.max()) + 1) + key
    return np.unique(combined, return_inverse=True)[1].astype(np.int64)
