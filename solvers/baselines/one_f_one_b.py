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
        evaluated = self.evaluated_before[self.evaluated_before < self.count]
        needed[evaluated] = evaluated  # trainers evaluate with the pipeline empty
        room = self.problem.held_room_gib * (1 + 1e-9)
        return _release(needed, self.batches.tokens, self.problem.num_stages, memory.working_gib, memory.held_gib, room)

    @cached_property
    def operations(self) -> np.ndarray:
        """Rank k for the F of a micro-batch and ~k for its B, by stage, shape (G, 2 M).

        A later stage has at least as many B's before an F as an earlier one, so none waits for another in a circle.
        """
        stages, ranks = self.problem.num_stages, np.arange(self.count)
        result = np.zeros((stages, 2 * self.count), np.int64)
        for s, program in enumerate(result):
            released = np.maximum(self._released, ranks - stages + s + 1)
            program[ranks + released] = ranks
            program[ranks + np.searchsorted(released, ranks, side="right")] = ~ranks
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
