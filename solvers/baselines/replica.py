"""A replica of a baseline: micro-batches in the order of their F's, with what they cost.

Legend: N samples, M micro-batches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.solvers.baselines.samples import Samples
from cappuccino.solvers.scheduling.programs import ReplicaSchedule, build_schedule
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem


@dataclass(frozen=True)
class BaselineReplica(ABC):
    """Which samples share a micro-batch, in which order; subclasses say in which order every stage works."""

    problem: ReplicaProblem
    samples: Samples
    rank: np.ndarray
    """By sample, the rank of its micro-batch in the order of F's (and of B's), shape (N,)."""

    @property
    @abstractmethod
    def makespan_s(self) -> float:
        """Makespan of the schedule, seconds."""

    @abstractmethod
    def operations(self) -> list[list[int]]:
        """Return rank k for the F of a micro-batch and ~k for its B, by stage in the order of its program."""

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.problem.num_stages * self.makespan_s

    @cached_property
    def count(self) -> int:
        """Number of micro-batches M."""
        return int(self.rank.max()) + 1

    @cached_property
    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and sums of squared lengths by micro-batch, each of shape (M,)."""
        return micro_batch_shapes(self.problem, self.samples.length, self.rank, self.count)

    @cached_property
    def times(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Forward, backward and transfer time by micro-batch, seconds, each of shape (M,)."""
        costs, stages = self.problem.costs, self.problem.num_stages
        tokens, squares = self.shapes
        more = added_by_rank(self.problem, self.samples, self.rank, self.count)
        forward = costs.forward_curve(stages)(tokens, squares, *more[:2])
        backward = costs.backward_curve(stages)(tokens, squares, *more[2:])
        return forward, backward, np.ascontiguousarray(costs.transfer_time(tokens))

    @cached_property
    def optimizer_times(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Optimizer seconds before the F and after the B of each rank, shape (M,), and at the end of a program."""
        second, samples = self.problem.costs.optimizer_s, self.samples
        if second == 0:
            return np.zeros(self.count), np.zeros(self.count), 0.0
        steps = int(samples.step_id.max()) + 1
        first = np.full(steps, self.count)
        np.minimum.at(first, samples.step_id, self.rank)
        last = np.zeros(steps, np.int64)
        np.maximum.at(last, samples.step_id, self.rank)
        initial = np.concatenate([[0], samples.final_steps[:-1] + 1])
        before = np.bincount(np.delete(first, initial), minlength=self.count)
        clipped = np.array([a in self.problem.clipped for a in range(len(samples.final_steps))])
        after = np.bincount(last[samples.final_steps[~clipped]], minlength=self.count)
        return before * second, after * second, float(clipped.sum() * second)

    def schedule(self) -> ReplicaSchedule:
        """Return the schedule."""
        samples, problem = self.samples, self.problem
        by_rank = np.argsort(self.rank, kind="stable")
        positions, numbers, steps = (x[by_rank].tolist() for x in (samples.position, samples.number, samples.step))
        ends = np.cumsum(np.bincount(self.rank, minlength=self.count)).tolist()
        figures = zip(*(x.tolist() for x in (self.shapes[0], *self.times)), strict=True)
        order, begin = [], 0
        for end, figure in zip(ends, figures, strict=True):
            part = slice(begin, end)
            members = tuple(zip(positions[part], numbers[part], strict=True))
            order.append(Batch(members, tuple(dict.fromkeys(zip(positions[part], steps[part], strict=True))), *figure))
            begin = end
        return build_schedule(problem, order, self.operations())


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


def micro_batch_shapes(
    problem: ReplicaProblem, length: np.ndarray, rank: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and sums of squared lengths of `count` micro-batches in the instance's layout.

    Parameters
    ----------
    length, rank
        Tokens and micro-batch of each sample, shape (N,).
    """
    if problem.instance.layout == "padded":
        longest = np.zeros(count, np.int64)
        np.maximum.at(longest, rank, length)
        tokens = np.bincount(rank, minlength=count) * longest
        return tokens, tokens * longest
    tokens = np.bincount(rank, weights=length, minlength=count)
    squares = np.bincount(rank, weights=length.astype(float) ** 2, minlength=count)
    return tokens.astype(np.int64), squares.astype(np.int64)


def added_by_rank(problem: ReplicaProblem, samples: Samples, rank: np.ndarray, count: int) -> np.ndarray:
    """Return what their adapters add to `count` micro-batches, seconds, shape (4, count), as `Added` has them."""
    found, length = problem.adapter_costs, samples.length
    if not found.differ:
        return np.zeros((4, count))
    if problem.instance.layout == "padded":
        longest = np.zeros(count, np.int64)
        np.maximum.at(longest, rank, length)
        length = longest[rank]
    adapters = len(problem.adapters)
    place, member = np.divmod(np.unique(rank * adapters + samples.position), adapters)
    result = np.empty((4, count))
    for row, floor, work in (
        (0, found.forward_floor, found.forward_work),
        (2, found.backward_floor, found.backward_work),
    ):
        result[row] = np.bincount(place, weights=floor[member], minlength=count)
        result[row + 1] = np.bincount(rank, weights=work[samples.position] * length, minlength=count)
    return result
