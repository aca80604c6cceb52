"""Taking out of measured times what the machine was faster or slower than usual meanwhile.

Every pause of a profile's run times a small fixed kernel. What it takes around a point, relative to its median over all
points of the same stage count, is by how much the point's times are divided, on every stage by itself: a stage that is
always slower than the others stays so. Only as much is taken out as makes the points' times agree better with each
other: work and kernel do not always suffer from the same things.
"""

from collections.abc import Callable, Sequence

import numpy as np

LIMITS = (0.5, 3.0)
"""Of the factors: what lies beyond them is no drift."""
_MEDIAN_OVER_MEAN = 1.2533
"""Standard error of a median over that of a mean, of many normal values."""
_SIGMA_OF_QUARTILES = 0.7413
"""Standard deviation over the distance of the quartiles, of normal values."""

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exponents on the factors that are tried."""
_WORTH = 0.9
"""What is left of the disagreement at most where an exponent is used."""

Samples = Sequence[Sequence[float]]
"""Times of the reference kernel around a point, by stage."""


class Drift:
    """What the reference kernel takes usually, and how far to trust it.

    Parameters
    ----------
    points
        What it took around every point.
    level
        What it takes usually, on the average of the stages, where other rows say so.
    disagreement
        Of the points' times once they are divided by these factors: the exponent on the factors is the one of
        `STRENGTHS` with the least, or 0 where that is hardly less than as measured. Without it, 1.
    """

    def __init__(
        self,
        points: Sequence[Samples],
        level: float | None = None,
        disagreement: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        medians = np.array([[np.median(stage) for stage in samples] for samples in points])
        self._usual = np.median(medians, axis=0)
        levels = medians.mean(axis=1)
        if level is not None:
            shares = np.median(medians / levels[:, None], axis=0)
            self._usual = level * shares
        scatter = [[_error_of_median(stage) for stage in samples] for samples in points]
        noise = np.mean(np.square(scatter), axis=0)
        drift = np.mean(np.square(np.log(medians / self._usual)), axis=0)
        self.trust: tuple[float, ...] = tuple(
            max(0.0, 1.0 - float(n / d)) if d > 0 else 0.0 for n, d in zip(noise, drift, strict=True)
        )
        """By stage, which part of the differences is more than the scatter of the samples: 0 on a steady machine."""
        self.strength = 1.0
        """Exponent on the factors."""
        if disagreement is not None:
            whole = np.array([np.mean(self.factors(samples)) for samples in points])
            found = {strength: disagreement(whole**strength) for strength in STRENGTHS}
            best = min(found, key=found.__getitem__)
            self.strength = best if found[best] < _WORTH * found[0.0] else 0.0

    def factors(self, samples: Samples) -> tuple[float, ...]:
        """Return by how much a point's times are too long, by stage: as much of the difference as can be trusted."""
        return tuple(
            float(np.clip((np.median(stage) / usual) ** (trust * self.strength), *LIMITS))
            for stage, usual, trust in zip(samples, self._usual, self.trust, strict=True)
        )


def _error_of_median(values: Sequence[float]) -> float:
    """Return the standard error of the median of values, relative to it."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(_MEDIAN_OVER_MEAN * _SIGMA_OF_QUARTILES * (high - low) / middle / np.sqrt(len(values)))
