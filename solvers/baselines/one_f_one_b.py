"""1F1B: every stage keeps as many micro-batches in flight as there are stages from it to the last, and alternates.

The schedule never flushes by itself: a stage waits only where an optimizer step, the memory, or an explicit flush
demands the B's of earlier micro-batches first.

Legend: N samples, M micro-batches.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.baselines.replica import BaselineReplica


@dataclass(frozen=True)
class OneFOneB(BaselineReplica):
    """Micro-batches in a given order on a 1F1B pipeline."""

    flushed: np.ndarray | None = None
    """Whether the pipeline is emptied before the F of a rank, bool, shape (M,); None: never."""

    @cached_property
    def _released(self) -> np.ndarray:
        """How many B's stand at least before the F of a rank on every stage, shape (M,)."""
        memory = self.problem.memory
        needed = _needed(self.rank, self.samples.step, self.samples.step_id, self.count)
        if self.flushed is not None:
            needed = np.where(self.flushed, np.arange(self.count), needed)
        room = self.problem.held_room_gib * (1 + 1e-9)
        return _release(needed, self.shapes[0], self.problem.num_stages, memory.working_gib, memory.held_gib, room)

    @cached_property
    def makespan_s(self) -> float:
        """Makespan of the schedule, seconds."""
        return _makespan(self.problem.num_stages, *self.times, self._released, *self.optimizer_times)

    def operations(self) -> list[list[int]]:
        """Return rank k for the F of a micro-batch and ~k for its B, by stage in the order of its program."""
        stages, ranks = self.problem.num_stages, np.arange(self.count)
        result = []
        for s in range(stages):
            released = np.maximum(self._released, ranks - stages + s + 1)
            program = np.zeros(2 * self.count, np.int64)
            program[ranks + released] = ranks
            program[ranks + np.searchsorted(released, ranks, side="right")] = ~ranks
            result.append(program.tolist())
        return result


@compiled
def _needed(rank: np.ndarray, step: np.ndarray, step_id: np.ndarray, count: int) -> np.ndarray:
    """Return, by rank, how many micro-batches must be done before: those of the steps before its own."""
    last = np.full(step_id.max() + 1, -1)
    for i in range(len(rank)):
        last[step_id[i]] = max(last[step_id[i]], rank[i])
    result = np.zeros(count, np.int64)
    for i in range(len(rank)):
        if step[i] > 0:
            result[rank[i]] = max(result[rank[i]], last[step_id[i] - 1] + 1)
    return result


@compiled
def _release(
    needed: np.ndarray, tokens: np.ndarray, stages: int, working: float, held: float, room: float
) -> np.ndarray:
    """Return how many B's must stand before each F: for its steps, for the depth of 1F1B and for the memory."""
    result = np.zeros(len(needed), np.int64)
    done = 0
    for k in range(len(needed)):
        done = max(done, needed[k], k - stages + 1)
        while done < k:
            largest, total = 0, 0
            for i in range(done, k + 1):
                largest = max(largest, tokens[i])
                total += tokens[i]
            if working * largest + held * total <= room:
                break
            done += 1
        result[k] = done
    return result


@compiled
def _makespan(
    stages: int,
    forward: np.ndarray,
    backward: np.ndarray,
    transfer: np.ndarray,
    released: np.ndarray,
    before_s: np.ndarray,
    after_s: np.ndarray,
    end_s: float,
) -> float:
    """Return the makespan. A later stage has at least as many B's before an F as an earlier one, so none waits.

    Optimizer steps with clipped gradients wait for the first stage, which is the last to be done.
    """
    count, last = len(forward), stages - 1
    free = np.zeros(stages)
    done = np.zeros(stages, np.int64)
    ended = np.zeros((stages, count))
    for k in range(count + 1):
        for s in range(last, -1, -1):
            goal = count if k == count else max(released[k], k - stages + s + 1)
            for j in range(done[s], goal):
                start = free[s] if s == last else max(free[s], ended[s + 1, j] + transfer[j])
                ended[s, j] = start + backward[j]
                free[s] = ended[s, j] + after_s[j]
            done[s] = max(done[s], goal)
        if k < count:
            arrival = 0.0
            for s in range(stages):
                free[s] = max(free[s] + before_s[k], arrival) + forward[k]
                arrival = free[s] + transfer[k]
    return max(free.max(), free[0] + end_s)
