"""Times of micro-batches on the stages of a pipeline, for bounds.

Legend: G stages, J curves that the times of stages are sums of.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.costs import PipelineCosts, SmoothMaximum


@dataclass(frozen=True, eq=False)
class StageTimes:
    """What micro-batches take, curve by curve; weights of the curves, shape (J,), make stages and ways of them."""

    pipeline: PipelineCosts
    floors: np.ndarray
    """What some adapter adds at least to the floors of forward and backward, seconds, shape (2,)."""

    @cached_property
    def curves(self) -> tuple[tuple[SmoothMaximum, ...], ...]:
        """Of forward and backward, for micro-batches that have some adapter."""
        both = zip(self.pipeline.curves, self.floors.tolist(), strict=True)
        return tuple((first.raised(floor), *others) for (first, *others), floor in both)

    def works(self, tokens: np.ndarray, squares: np.ndarray, per_token: np.ndarray) -> np.ndarray:
        """Return the works of micro-batches or samples, shape (2, J, *tokens.shape).

        Parameters
        ----------
        per_token
            What their adapters add per token, forward and backward, shape (2, *tokens.shape).
        """
        result = np.array([[c.work(tokens, squares) for c in curves] for curves in self.curves])
        result[:, 0] += per_token * tokens
        return result

    def times(self, works: np.ndarray, floors: np.ndarray | None = None) -> np.ndarray:
        """Return the times of micro-batches of these works, shape (2, J, ...).

        Parameters
        ----------
        floors
            How much higher the floors of their adapters are than the least, shape (2, ...).
        """
        result = np.empty(works.shape)
        for k, curves in enumerate(self.curves):
            for j, curve in enumerate(curves):
                result[k, j] = curve.of_work(works[k, j], 0.0 if j or floors is None else floors[k])
        return result

    def before(self, stage: int) -> np.ndarray:
        """Return the weights of the way through all stages before one."""
        return np.asarray(self.pipeline.shares[:stage].sum(axis=0))

    @cached_property
    def total(self) -> np.ndarray:
        """Weights of the way through all stages."""
        return self.before(self.pipeline.num_stages)

    @cached_property
    def last(self) -> np.ndarray:
        """Weights of the last stage."""
        return np.asarray(self.pipeline.shares[-1])

    @cached_property
    def first(self) -> np.ndarray:
        """Weights that neither the first stage nor the last but one is below."""
        shares = self.pipeline.shares
        return np.asarray(np.minimum(shares[0], shares[max(0, len(shares) - 2)]))

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """The last stage of every kind: of equal stages the one that begins latest and ends earliest."""
        kinds = self.pipeline.kinds
        return tuple(len(kinds) - 1 - kinds[::-1].index(k) for k in range(max(kinds) + 1))


def weighted(weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the sums of curves with these weights, forward and backward, shape (2, ...).

    Parameters
    ----------
    weights
        Shape (J,).
    times
        Shape (2, J, ...).
    """
    return np.asarray(np.tensordot(weights, times, axes=(0, 1)))


def together(weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return them, forward plus backward, shape (...)."""
    return np.asarray(weighted(weights, times).sum(axis=0))
