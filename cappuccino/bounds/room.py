"""What the memory of a stage leaves for adapters and samples.

An adapter takes its part as long as the replica runs, micro-batches come and go: a set of adapters fits where its
longest sample fits beside all of them.

Legend: A adapters (or kinds of them), N sets of adapters.
"""

import math
from dataclasses import dataclass

import numpy as np

from cappuccino.costs import CostModel, MemoryModel
from cappuccino.instance import Instance


@dataclass(frozen=True)
class Room:
    """Memory of a stage, and what adapters need of it."""

    memory: MemoryModel
    """Of a stage without adapters."""
    limit_gib: float
    """What may be used of the GPU."""
    adapters_gib: np.ndarray
    """What every adapter takes itself, shape (A,)."""
    masks_gib: np.ndarray
    """What the dropout masks of a token take, by adapter, shape (A,): all tokens of a replica count as the worst."""
    longest: np.ndarray
    """Longest sample of every adapter, tokens, shape (A,); one of its evaluation counts by what it takes less."""

    @classmethod
    def of(cls, instance: Instance, costs: CostModel, num_stages: int, memory_gib: float) -> "Room":
        """Return the room on one of `num_stages` GPUs of so much memory, by adapter of the instance."""
        adapters = costs.adapter_costs(num_stages, instance.adapters)
        memory, limit = costs.memory_model(num_stages), costs.memory_limit(memory_gib)
        token = memory.working_gib + memory.held_gib
        running = memory.working_gib / token if token > 0 else 1.0  # what is evaluated is not held
        longest = np.array(
            [
                max(float(lengths.max()), running * float(instance.evaluation_lengths(i).max(initial=0)))
                for i, lengths in enumerate(instance.step_lengths)
            ]
        )
        return cls(memory, limit, adapters.memory_gib, adapters.masks_gib, longest)

    @property
    def capacity_gib(self) -> float:
        """For adapters and samples."""
        return self.limit_gib - self.memory.static_gib

    @property
    def token_gib(self) -> float:
        """Of a token that is worked on, without masks."""
        return self.memory.working_gib + self.memory.held_gib

    def most_tokens(self) -> np.ndarray:
        """Return the largest micro-batch beside each adapter alone, tokens, shape (A,)."""
        return self.memory.most_tokens(self.limit_gib, self.adapters_gib, self.masks_gib)

    def set_tokens(self, members: np.ndarray) -> np.ndarray:
        """Return the largest micro-batch beside all adapters of sets, tokens, shape (N,).

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        masks = np.where(members > 0, self.masks_gib, 0.0).max(axis=1)
        return self.memory.most_tokens(self.limit_gib, members @ self.adapters_gib, masks)

    def holds(self, members: np.ndarray) -> np.ndarray:
        """Return whether each set's longest sample fits beside its adapters, bool, shape (N,)."""
        longest = np.where(members > 0, self.longest, 0).max(axis=1)
        return np.asarray(longest <= self.set_tokens(members))

    def parts(self) -> np.ndarray:
        """Return the part of a replica's memory that each adapter takes beside its longest sample, shape (A,).

        Those of a set that fits add up to 1 at most: the longest sample of all leaves no adapter more room than its
        own longest does.
        """
        left = self.capacity_gib - self.longest * (self.token_gib + self.masks_gib)
        return np.where(left > 0, self.adapters_gib / np.where(left > 0, left, 1.0), np.inf)

    def fewest_replicas(self, counts: np.ndarray) -> int:
        """Return how many replicas so many adapters need at least; 0 where none holds the shortest."""
        left = self.capacity_gib - float(self.longest[counts > 0].min(initial=np.inf)) * self.token_gib
        return math.ceil(float(counts @ self.adapters_gib) / left - 1e-9) if 0 < left < np.inf else 0
