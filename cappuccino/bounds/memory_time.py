"""How long samples keep memory of the first stage: a replica cannot use more of it than there is, all the time.

A micro-batch is held there from the start of its F to the end of its B, while it goes down through all stages and back
up; while one of the two runs, it works besides. That is at least as long as its samples would take one by one, so what
samples need adds up, whoever shares a micro-batch with whom. No replica ends before memory times makespan covers it.

Legend: A adapters.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.bounds.room import Room
from cappuccino.bounds.stage_times import StageTimes, weighted
from cappuccino.costs import CostModel
from cappuccino.instance import Instance


@dataclass(frozen=True, eq=False)
class MemoryTimes:
    """What the samples of every adapter need of the first stage's memory, by kind of memory."""

    running: np.ndarray
    """Tokens times seconds that they are worked on, shape (A,)."""
    held: np.ndarray
    """Tokens times seconds that they are in flight, shape (A,)."""

    @classmethod
    def of(cls, instance: Instance, costs: CostModel, stages: StageTimes, adapters: np.ndarray) -> "MemoryTimes":
        """Return those of all adapters.

        Parameters
        ----------
        adapters
            What adapters add to floors, and to works per token, of forward and backward, shape (2, 2, A).
        """
        running, held = np.zeros((2, len(instance.adapters)))
        links, least = stages.pipeline.num_stages - 1, adapters[0].min(axis=1)
        for a, lengths in enumerate(instance.step_lengths):
            tokens, numbers = np.unique(lengths, return_counts=True)
            tokens = tokens.astype(float)
            own = np.multiply.outer(adapters[:, :, a] - np.stack([least, np.zeros(2)]), np.ones(len(tokens)))
            times = stages.times(stages.works(tokens, tokens**2, own[1]), own[0])
            first, total = (weighted(weights, times).sum(axis=0) for weights in (stages.before(1), stages.total))
            passage = total + 2 * links * costs.transfer_time(tokens)
            running[a], held[a] = (float(numbers @ (tokens * seconds)) for seconds in (first, passage))
        return cls(running, held)

    def shares(self, room: Room) -> np.ndarray:
        """Return the time by adapter that those of any set add up to at most its makespan, seconds, shape (A,).

        No set leaves more room for samples than the adapter that takes the least memory does on its own.
        """
        most = room.capacity_gib - float(room.adapters_gib.min())
        needed = room.memory.working_gib * self.running + (room.memory.held_gib + room.masks_gib) * self.held
        return np.asarray(needed / most) if most > 0 else np.zeros(len(needed))

    def bounds(self, room: Room, members: np.ndarray) -> np.ndarray:
        """Return the bound of sets of adapters that fit, seconds, shape (N,).

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        masks = np.where(members > 0, room.masks_gib, 0.0).max(axis=1)
        needed = room.memory.working_gib * (members @ self.running)
        needed = needed + (room.memory.held_gib + masks) * (members @ self.held)
        left = room.capacity_gib - members @ room.adapters_gib
        return np.asarray(np.divide(needed, left, out=np.zeros(len(needed)), where=left > 0))
