"""Which points are measured next: those that the fit needs, then those that it is least certain of for their time.

Legend: R refits, C candidates.
"""

from collections.abc import Sequence

import numpy as np

from cappuccino.backbone import ALL_LINEAR
from cappuccino.runtime.profiling.grid import RANK, TARGETS, Point

_NOISE = 0.02
"""Standard deviation of the logarithm of a measured time."""


def spanning_points(points: Sequence[Point]) -> list[Point]:
    """Return the points without which little can be fitted, the most needed ones first.

    The smallest tokens and those in the middle; the shortest and the longest samples at the smallest tokens that have
    several lengths; every kind of adapters: those on all linear modules, which tell what a token costs, at the most
    tokens that have them, since plans make micro-batches large, the others at the fewest; then those at the fewest too,
    and the most adapters at the most tokens.
    """
    plain = [p for p in points if (p.num_adapters, p.rank, p.target_modules) == (1, RANK, TARGETS)]
    by_tokens: dict[int, list[Point]] = {}
    for point in sorted(plain, key=lambda p: (p.tokens, p.length)):
        by_tokens.setdefault(point.tokens, []).append(point)
    counts = list(by_tokens)
    middle = min(counts, key=lambda t: abs(np.log(t) - np.log(counts[0] * counts[-1]) / 2))
    chosen = [by_tokens[counts[0]][-1], by_tokens[middle][-1]]
    several: list[Point] = next((found for found in by_tokens.values() if len(found) > 1), [])
    chosen += [several[0], several[-1]] if several else []
    others = [p for p in points if p not in plain]
    fewest = min((p.tokens for p in others), default=0)
    whole = sorted((p for p in others if p.target_modules == ALL_LINEAR), key=lambda p: (-p.tokens, -p.dropout))
    of_tokens = [p for p in whole if p.tokens == whole[0].tokens]
    of_launches = [p for p in others if p.tokens == fewest and p not in whole]
    of_launches += [p for p in whole if p.tokens == fewest]
    of_number = [p for p in others if p.tokens > fewest and p.num_adapters == max(x.num_adapters for x in others) > 1]
    return list(dict.fromkeys([*chosen, *of_tokens, *of_launches, *of_number[-1:]]))


def uncertainty(seconds_RC: np.ndarray) -> np.ndarray:
    """Return the covariance of the logarithms of predicted times among fits that each leave out some rows: a jackknife.

    Parameters
    ----------
    seconds_RC
        What each of the fits predicts for the candidates.

    Returns
    -------
    numpy.ndarray
        Shape (C, C); the square root of its diagonal is the standard error that the fit has, relative to the time.
    """
    logs_RC = np.log(seconds_RC)
    deviations_RC = logs_RC - logs_RC.mean(axis=0)
    return np.asarray((len(logs_RC) - 1) / len(logs_RC) * deviations_RC.T @ deviations_RC)


def most_uncertain(covariance: np.ndarray, seconds: Sequence[float], room_s: float) -> list[int]:
    """Return the candidates to measure, one after the other the least certain per second that still fits.

    What measuring one tells about the others is taken into account: those like it are less uncertain afterwards.

    Parameters
    ----------
    covariance
        Of the logarithms of predicted times, shape (C, C).
    seconds
        That measuring each takes.
    room_s
        For all of them together.
    """
    left, chosen = covariance.copy(), list[int]()
    while True:
        fit = [c for c in range(len(seconds)) if c not in chosen and seconds[c] <= room_s]
        if not fit:
            return chosen
        errors = np.sqrt(left.diagonal().clip(min=0.0)) / np.array(seconds)  # per second
        best = max(fit, key=lambda c: float(errors[c]))
        chosen.append(best)
        room_s -= seconds[best]
        left -= np.outer(left[best], left[best]) / (left[best, best] + _NOISE**2)
