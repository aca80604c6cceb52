"""What evaluations take at least, on every stage: forwards that hold nothing.

Legend: A adapters, G stages.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.bounds.room import Room
from cappuccino.costs import PipelineCosts
from cappuccino.instance import Instance


@dataclass(frozen=True, eq=False)
class EvaluationTimes:
    """Lower bounds on the time of evaluations."""

    each_s: np.ndarray
    """Of one evaluation of an adapter on a stage, seconds, shape (G, A)."""
    counts: np.ndarray
    """How often each adapter is evaluated, shape (A,)."""

    @classmethod
    def of(
        cls, instance: Instance, pipeline: PipelineCosts, room: Room, floors: np.ndarray, works: np.ndarray
    ) -> "EvaluationTimes":
        """Return the bounds of every adapter.

        Its micro-batches hold its samples alone, and take at least what as few as the memory admits take.

        Parameters
        ----------
        floors, works
            What adapters add to the floors of forwards and to the works of tokens, shape (A,).
        """
        counts = np.array([len(instance.evaluated_steps(a)) for a in range(len(instance.adapters))])
        each = np.zeros((pipeline.num_stages, len(counts)))
        for a in np.flatnonzero(counts).tolist():
            lengths = instance.evaluation_lengths(a).astype(float)
            left, slope = room.capacity_gib - float(room.adapters_gib[a]), room.memory.working_gib
            if left <= 0:
                continue
            number = max(1.0, np.ceil(lengths.sum() * slope / left - 1e-6))
            tokens, squares = lengths.sum() / number, (lengths**2).sum() / number
            each[:, a] = number * pipeline.times(tokens, squares, (floors[a], works[a] * tokens, 0.0, 0.0))[0]
        return cls(each, counts)

    def total(self, stage: int, *, last: bool) -> np.ndarray:
        """Return the time of all evaluations of each adapter on a stage, seconds, shape (A,).

        Parameters
        ----------
        last
            Whether those behind the last steps count.
        """
        return np.asarray(np.maximum(self.counts - (not last), 0) * self.each_s[stage])
