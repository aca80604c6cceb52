"""Sample lengths of public datasets, regenerated from their summary statistics.

`python -m cappuccino.instances.generate_lengths` rewrites `lengths/public.json`. The lengths are synthetic: they follow
the published statistics, not the samples.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from cappuccino.files import write_atomically
from cappuccino.lengths import length_statistics

SEED = 42
NUM_SAMPLES = 1000
OUTPUT = Path(__file__).parent / "lengths" / "public.json"

_SHAPE_BOUNDS = (0.25, 4.0)
_BISECTIONS = 60


@dataclass(frozen=True)
class LengthSummary:
    """Summary statistics of a dataset's sample lengths, tokens."""

    minimum: int
    median: float
    p90: float
    p99: float
    maximum: int
    mean: float

    def __post_init__(self) -> None:
        quantiles = (self.minimum, self.median, self.p90, self.p99, self.maximum)
        if not 1 <= self.minimum < self.median or list(quantiles) != sorted(quantiles):
            raise ValueError(f"quantiles {quantiles}: give 1 <= minimum < median <= p90 <= p99 <= maximum")
        if not self.minimum <= self.mean <= self.maximum:
            raise ValueError(f"mean {self.mean}: give one between minimum {self.minimum} and maximum {self.maximum}")


PUBLIC_DATASETS: Mapping[str, LengthSummary] = {
    "wikisum": LengthSummary(254, 1667, 2663, 4096, 4096, 1762),
    "xsum": LengthSummary(7, 402, 964, 1801, 4096, 498),
    "samsum": LengthSummary(23, 139, 333, 563, 850, 171),
    "gsm8k": LengthSummary(62, 148.5, 231, 334, 408, 158.5),
    "mathinstruct": LengthSummary(33, 160, 392, 925, 1422, 210.5),
    "cnn_dailymail": LengthSummary(116, 861, 1507, 2150, 2388, 939),
    "numinamath_cot": LengthSummary(66, 428.5, 961, 1443, 2274, 512),
    "python_code_instructions_18k_alpaca": LengthSummary(15, 88, 211, 1387, 3440, 140.5),
    "magicoder_evol_instruct_110k": LengthSummary(85, 439, 793, 2179, 4096, 514),
    "codealpaca_20k": LengthSummary(10, 56, 139, 318, 446, 73.5),
    "pubmedqa": LengthSummary(25, 69, 100, 139, 192, 71),
    "meetingbank": LengthSummary(184, 1344.5, 4096, 4096, 4096, 1912),
}
"""Of 1,000 samples each, lengths cut at 4,096 tokens."""


def quantile_lengths(summary: LengthSummary, num_samples: int) -> np.ndarray:
    """Return lengths in ascending order that follow a summary.

    The logarithm of the length is interpolated between the given quantiles, linearly in the normal score of the rank:
    between two of them the lengths are log-normal. Below the median, where no quantile but the minimum is given, the
    distance from the median's logarithm grows with a power of the score, which is chosen to bring the mean closest.

    Parameters
    ----------
    summary
        What the lengths shall follow.
    num_samples
        How many, at least 2.

    Returns
    -------
    np.ndarray
        Integers within [minimum, maximum], shape (num_samples,).
    """
    if num_samples < 2:
        raise ValueError(f"num_samples {num_samples}: give at least 2")
    low, high = _SHAPE_BOUNDS  # a larger power keeps lengths near the median, so the mean grows with it
    for _ in range(_BISECTIONS):
        shape = math.sqrt(low * high)
        if _lengths(summary, num_samples, shape).mean() < summary.mean:
            low = shape
        else:
            high = shape
    return _lengths(summary, num_samples, math.sqrt(low * high))


def sample_lengths(summary: LengthSummary, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return lengths that follow a summary, in the random order that `rng` draws."""
    return rng.permutation(quantile_lengths(summary, num_samples))


def public_distributions() -> str:
    """Return the text of `lengths/public.json`: the seed's distribution format, a dataset a line."""
    lines = []
    for index, (name, summary) in enumerate(PUBLIC_DATASETS.items()):
        # a stream per dataset: one order for all would make long samples meet long samples
        lengths = sample_lengths(summary, NUM_SAMPLES, np.random.default_rng([SEED, index]))
        record = {"seeds": [SEED], f"seed_{SEED}": length_statistics(lengths)}
        lines.append(f"{json.dumps(name)}: {json.dumps(record)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lengths(summary: LengthSummary, num_samples: int, shape: float) -> np.ndarray:
    ranks = np.arange(num_samples) / (num_samples - 1)
    scores = _normal_scores(ranks, num_samples)
    knots = _normal_scores(np.array([0.0, 0.5, 0.9, 0.99, 1.0]), num_samples)
    logs = np.log([summary.minimum, summary.median, summary.p90, summary.p99, summary.maximum])
    upper = np.interp(scores, knots[1:], logs[1:])
    depth = np.clip(scores / knots[0], 0.0, 1.0) ** shape
    values = np.exp(np.where(scores < 0, logs[1] - (logs[1] - logs[0]) * depth, upper))
    return np.asarray(np.clip(np.rint(values), summary.minimum, summary.maximum).astype(np.int64))


def _normal_scores(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    edge = 0.5 / num_samples
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(q)) for q in np.clip(ranks, edge, 1 - edge)])


def main() -> None:
    """Rewrite `lengths/public.json`."""
    OUTPUT.parent.mkdir(exist_ok=True)
    write_atomically(OUTPUT, public_distributions())


if __name__ == "__main__":
    main()
