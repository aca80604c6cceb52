"""Sums, maxima and minima over the optimizer steps of every adapter."""

from dataclasses import dataclass

import numpy as np

from cappuccino.instance import Instance


@dataclass(frozen=True)
class StepStatistics:
    """What the bounds need to know of every optimizer step; arrays of shape (J,), adapter by adapter."""

    tokens: np.ndarray
    squares: np.ndarray
    """Sum of squared lengths."""
    shortest: np.ndarray
    longest: np.ndarray
    batch: np.ndarray
    """Samples."""
    first: np.ndarray
    """Where each adapter's steps begin, shape (A,)."""
    count: np.ndarray
    """Steps by adapter, shape (A,)."""

    @classmethod
    def of(cls, instance: Instance) -> "StepStatistics":
        """Summarise the samples of all adapters."""
        count = np.array([len(x) for x in instance.step_lengths])
        rows = np.concatenate([_rows(x) for x in instance.step_lengths], axis=1)
        batch = np.repeat([x.shape[1] for x in instance.step_lengths], count)
        return cls(rows[0], rows[1], rows[2], rows[3], batch, np.cumsum(count) - count, count)

    def total(self, by_step: np.ndarray) -> np.ndarray:
        """Return the sums over each adapter's steps, shape (..., A), of values of shape (..., J)."""
        return np.add.reduceat(by_step, self.first, axis=-1)

    def most(self, by_step: np.ndarray) -> np.ndarray:
        """Return the maxima over each adapter's steps, shape (..., A), of values of shape (..., J)."""
        return np.maximum.reduceat(by_step, self.first, axis=-1)

    def least(self, by_step: np.ndarray) -> np.ndarray:
        """Return the minima over each adapter's steps, shape (..., A), of values of shape (..., J)."""
        return np.minimum.reduceat(by_step, self.first, axis=-1)


def _rows(lengths: np.ndarray) -> np.ndarray:
    squares = (lengths.astype(float) ** 2).sum(axis=1)
    return np.stack([lengths.sum(axis=1), squares, lengths.min(axis=1), lengths.max(axis=1)])
