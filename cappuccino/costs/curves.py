"""The time of a micro-batch as a function of its tokens and adapters.

Legend: T tokens of a micro-batch, Q its sum of squared sequence lengths.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.memory import Floats


@dataclass(frozen=True)
class SmoothMaximum:
    """`(floor^p + work^p)^(1/p)` with the work `a T + q Q`: flat while launch-bound, then linear; convex in the work.

    Every adapter in the micro-batch adds to the floor by its modules, and to the work by its tokens, the widths of its
    modules, its parameters and its dropout (per decoder layer, `AdapterSize`).
    """

    floor_s: float
    per_token_s: float
    per_square_s: float
    power: float
    per_module_s: float = 0.0
    """Floor per module of an adapter in the micro-batch."""
    per_width_s: float = 0.0
    """Work per token of an adapter and unit of its modules' widths."""
    per_parameter_s: float = 0.0
    """Work per token of an adapter and parameter of it."""
    per_dropped_s: float = 0.0
    """Work per token of an adapter with dropout and unit of its modules' input widths."""

    def adapter_floor(self, size: AdapterSize) -> float:
        """Return what an adapter adds to the floor of the micro-batches that it is in, seconds."""
        return self.per_module_s * size.modules

    def adapter_work(self, size: AdapterSize) -> float:
        """Return what an adapter adds to the work of each of its tokens, seconds."""
        of_size = self.per_width_s * size.widths + self.per_parameter_s * size.parameters
        return of_size + self.per_dropped_s * size.dropped

    def work(self, tokens: ArrayLike, squares: ArrayLike) -> Floats:
        """Return the asymptotic cost `a T + q Q`, seconds: additive over samples, never above the time."""
        return self.per_token_s * np.asarray(tokens, dtype=float) + self.per_square_s * np.asarray(squares, dtype=float)

    def of_work(self, work: ArrayLike, more_floor: ArrayLike = 0.0) -> Floats:
        """Return the time of a micro-batch with this work, seconds.

        Parameters
        ----------
        more_floor
            What its adapters add to the floor.
        """
        work, floor = np.broadcast_arrays(np.asarray(work, dtype=float), self.floor_s + np.asarray(more_floor))
        high, low = np.maximum(work, floor), np.minimum(work, floor)
        part = np.divide(low, high, out=np.zeros(work.shape), where=high > 0)
        return np.asarray(high * (1 + part**self.power) ** (1 / self.power))

    def __call__(
        self, tokens: ArrayLike, squares: ArrayLike, more_floor: ArrayLike = 0.0, more_work: ArrayLike = 0.0
    ) -> Floats:
        """Return the time, seconds; the last two are what the adapters in the micro-batch add."""
        return self.of_work(self.work(tokens, squares) + np.asarray(more_work), more_floor)

    def tangent(self, work: float) -> tuple[float, float]:
        """Return the tangent at this work: its value at none (seconds), never negative, and its slope."""
        if self.floor_s == 0 or work == 0:
            return (0.0, 1.0) if self.floor_s == 0 else (self.floor_s, 0.0)
        time = float(self.of_work(work))
        slope = (work / time) ** (self.power - 1)
        return max(0.0, time - slope * work), slope

    def raised(self, floor_s: float) -> "SmoothMaximum":
        """Return the curve with a floor that is higher by `floor_s`."""
        return replace(self, floor_s=self.floor_s + floor_s)

    def scaled(self, factor: float) -> "SmoothMaximum":
        """Return the curve with every time multiplied by `factor`."""
        values = {field.name: getattr(self, field.name) * factor for field in fields(self) if field.name != "power"}
        return SmoothMaximum(power=self.power, **values)
