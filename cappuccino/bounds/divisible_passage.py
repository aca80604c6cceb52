"""Fastest passage of optimizer steps through a pipeline whose samples could be divided at will: a lower bound.

Legend: S optimizer steps, J curves that the times of stages are sums of.
"""

import numpy as np

from cappuccino.bounds.stage_times import StageTimes, together, weighted
from cappuccino.bounds.step_statistics import StepStatistics

FORWARD_WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Weights of the chain through the F's, the one through the B's has the rest."""


def divisible_passages(
    stages: StageTimes,
    steps: StepStatistics,
    works: np.ndarray,
    per_token: np.ndarray,
    floors: np.ndarray,
    fewest: np.ndarray,
    lags: np.ndarray,
) -> np.ndarray:
    """Return the bound of every step, seconds, shape (S,): so much besides its transfers, which pass every link twice.

    Parameters
    ----------
    works
        Of the steps, shape (2, J, S).
    per_token, floors
        What their adapters add to the work of a token and to floors beyond the least, shape (2, S).
    fewest
        Micro-batches that a step needs at least, shape (S,).
    lags
        Least transfer of a micro-batch, seconds, shape (S,).
    """
    links = stages.pipeline.num_stages - 1
    below = np.minimum(stages.first, stages.last)
    shortest = stages.times(stages.works(steps.shortest, steps.shortest * steps.shortest, per_token), floors)
    longest = stages.works(steps.longest, steps.longest * steps.longest, per_token)
    largest = together(stages.total, stages.times(longest, floors))
    head, tail = weighted(stages.before(links), shortest)
    passage = np.full(len(steps.tokens), np.inf)
    for n in range(1, int(steps.batch.max()) + 1):
        even = works / n
        share = stages.times(even, floors)
        # some micro-batch has at least an even share, one the longest sample, and each passes every stage twice
        time = np.maximum(together(stages.total, share), largest)
        # all work stands on a stage between the first F's way down and the last B's way up, over the links to it only
        for s in stages.kinds:
            ways = together(stages.before(s), shortest) - 2 * (links - s) * lags
            time = np.maximum(time, n * together(stages.pipeline.shares[s], share) + ways)
        # the chains of `passage` through that micro-batch; the others take least when they are alike
        heavy = np.where((longest >= even).all(axis=(0, 1)), longest, even)
        rest = stages.times(np.maximum(works - heavy, 0) / max(n - 1, 1), floors)
        times = stages.times(heavy, floors)
        through, last, others = weighted(stages.total, times), weighted(stages.last, times), weighted(below, rest)
        for u in FORWARD_WEIGHTS:
            chain = u * (through[0] + last[1] + tail + (n - 1) * others[0])
            chain = chain + (1 - u) * (head + last[0] + through[1] + (n - 1) * others[1])
            time = np.maximum(time, chain)
        passage = np.minimum(passage, np.where((n >= fewest) & (n <= steps.batch), time, np.inf))
    return passage
