"""What pipeline stages are made of, how many decoder layers each is given, and what micro-batches take there.

Legend: G stages, K kinds of stages, J curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from cappuccino.costs.curves import SmoothMaximum
from cappuccino.costs.memory import Floats

Both = tuple[SmoothMaximum, SmoothMaximum]
"""Forward and backward."""
NOTHING = SmoothMaximum(0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class PipelineCosts:
    """Forward and backward times of the stages of a pipeline: each is a sum of few curves, each taken so many times.

    Adapters are part of the first curve; the other ones do not depend on them.
    """

    curves: tuple[tuple[SmoothMaximum, ...], tuple[SmoothMaximum, ...]]
    """Of forward and backward, J each."""
    shares: Floats
    """How many times each stage has what a curve is of, shape (G, J)."""

    @classmethod
    def alike(cls, curves: Both, num_stages: int) -> "PipelineCosts":
        """Return the costs of stages that all take as long as these curves say."""
        return cls(((curves[0],), (curves[1],)), np.ones((num_stages, 1)))

    @property
    def num_stages(self) -> int:
        """G."""
        return len(self.shares)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """By stage, the number of its kind: stages of one kind take equally long."""
        known: dict[tuple[float, ...], int] = {}
        return tuple(known.setdefault(tuple(row), len(known)) for row in self.shares.tolist())

    @cached_property
    def kind_shares(self) -> Floats:
        """The rows of `shares` that differ, shape (K, J)."""
        first = [self.kinds.index(k) for k in range(max(self.kinds) + 1)]
        return self.shares[first]

    @cached_property
    def busiest(self) -> int:
        """The stage on which a token of a large micro-batch takes longest."""
        per_token = np.array([[c.per_token_s for c in curves] for curves in self.curves]).sum(axis=0)
        return int(np.argmax(self.shares @ per_token))

    def times(self, tokens: ArrayLike, squares: ArrayLike, added: ArrayLike = (0.0, 0.0, 0.0, 0.0)) -> Floats:
        """Return how long micro-batches take, seconds, shape (2, G, *tokens.shape).

        Parameters
        ----------
        added
            What their adapters add to the first curve: forward floor and work, backward floor and work, shape
            (4, *tokens.shape).
        """
        more = np.asarray(added, dtype=float).reshape(2, 2, *np.shape(added)[1:])
        both = []
        for (first, *others), (floor, work) in zip(self.curves, more, strict=True):
            parts = [first(tokens, squares, floor, work), *(curve(tokens, squares) for curve in others)]
            both.append(np.tensordot(self.shares, np.stack(np.broadcast_arrays(*parts)), axes=1))
        return np.stack(both)


@dataclass(frozen=True)
class StageParts:
    """Forward and backward times of the parts of stages, as functions of a micro-batch."""

    layer: Both
    """One decoder layer, adapters included."""
    last: Both
    """What the last stage has besides its layers: head and loss."""
    input_forward: SmoothMaximum
    """Laying out the micro-batch, with the embedding; every stage is charged for it."""

    def pipeline(self, layers: Sequence[int]) -> PipelineCosts:
        """Return the costs of stages with so many decoder layers."""
        stages = len(layers)
        shares = np.stack([np.array(layers, dtype=float), np.ones(stages), np.arange(stages) == stages - 1], axis=1)
        forward, backward = ((self.layer[k], (self.input_forward, NOTHING)[k], self.last[k]) for k in (0, 1))
        return PipelineCosts((forward, backward), shares)

    def scaled(self, forward: float, backward: float) -> "StageParts":
        """Return the parts with forward and backward times multiplied."""
        layer, last = ((both[0].scaled(forward), both[1].scaled(backward)) for both in (self.layer, self.last))
        return StageParts(layer, last, self.input_forward.scaled(forward))

    def balanced(self, num_layers: int, num_stages: int, tokens: float, squares: float) -> tuple[int, ...]:
        """Return the decoder layers by stage with which the slowest stage takes least for a micro-batch."""
        layer, last = (sum(float(curve(tokens, squares)) for curve in part) for part in (self.layer, self.last))
        fixed = [0.0] * (num_stages - 1) + [last]
        return balanced_layers(num_layers, layer, fixed)


def balanced_layers(num_layers: int, layer: float, fixed: Sequence[float]) -> tuple[int, ...]:
    """Return the split of equal layers over stages with the least largest load; every stage has a layer.

    Parameters
    ----------
    layer, fixed
        Load of a layer, and of every stage without any.
    """
    counts = [1] * len(fixed)
    for _ in range(num_layers - len(fixed)):
        lightest = min(range(len(fixed)), key=lambda s: fixed[s] + (counts[s] + 1) * layer)
        counts[lightest] += 1
    return tuple(counts)
