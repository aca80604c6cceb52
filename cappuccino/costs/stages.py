"""What pipeline stages are made of, and how many decoder layers each is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.costs.memory import Floats
from cappuccino.costs.model import SmoothMaximum


@dataclass(frozen=True)
class StageParts:
    """Forward and backward times of the parts of stages, as functions of a micro-batch."""

    layer: tuple[SmoothMaximum, SmoothMaximum]
    """One decoder layer, adapters included."""
    last: tuple[SmoothMaximum, SmoothMaximum]
    """What the last stage has besides its layers: head and loss."""
    input_forward: SmoothMaximum
    """Laying out the micro-batch, with the embedding; every stage is charged for it."""

    def balanced(self, num_layers: int, num_stages: int, tokens: float, squares: float) -> tuple[int, ...]:
        """Return the decoder layers by stage with which the slowest stage takes least for a micro-batch."""
        layer, last = (sum(float(curve(tokens, squares)) for curve in part) for part in (self.layer, self.last))
        fixed = [0.0] * (num_stages - 1) + [last]
        return balanced_layers(num_layers, layer, fixed)

    def slowest(self, layers: Sequence[int], tokens: np.ndarray, squares: np.ndarray) -> tuple[Floats, Floats]:
        """Return forward and backward time of the stage that takes longest for a micro-batch, shape tokens.shape."""
        times = np.empty((2, len(layers), len(tokens)))
        for kind in range(2):
            times[kind] = np.outer(layers, self.layer[kind](tokens, squares))
            times[kind, -1] += self.last[kind](tokens, squares)
        times[0] += self.input_forward(tokens, squares)
        stage, each = times.sum(axis=0).argmax(axis=0), np.arange(len(tokens))
        return times[0, stage, each], times[1, stage, each]


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
