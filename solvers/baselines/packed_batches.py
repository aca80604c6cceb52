"""How the seed's scheduler runs a replica: batch by batch, each packed, ordered and flushed.

Batch j is step j of all adapters that have one. Their own micro-batches, sorted by their longest sample, are cut into
contiguous groups (`partition.py`), which run as one micro-batch each, 1F1B, small ones at both ends of the batch and
large ones in the middle.

Legend: N micro-batches of a batch, W most micro-batches in a group.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.partition import best_partition
from cappuccino.solvers.baselines.replica import ranks_of
from cappuccino.solvers.baselines.samples import Samples, own_micro_batches
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem

EXACT_UP_TO = 128
"""Micro-batches of a batch up to which its cut is optimal; beyond, it is within `TOLERANCE` of that."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Contents:
    """What micro-batches hold; arrays of shape (N,)."""

    samples: np.ndarray
    """How many."""
    tokens: np.ndarray
    squares: np.ndarray
    """Sum of squared lengths."""
    longest: np.ndarray
    """Tokens of the longest sample."""

    @classmethod
    def of(cls, length: np.ndarray, number: np.ndarray) -> "Contents":
        """Return the contents of micro-batches 0, 1, ... from the tokens and the micro-batch of each sample."""
        longest = np.zeros(int(number.max()) + 1, np.int64)
        np.maximum.at(longest, number, length)
        tokens, squares = (np.bincount(number, weights=x).astype(np.int64) for x in (length, length.astype(float) ** 2))
        return cls(np.bincount(number), tokens, squares, longest)

    def select(self, which: np.ndarray) -> "Contents":
        """Return the contents of some of the micro-batches, in the given order."""
        return Contents(self.samples[which], self.tokens[which], self.squares[which], self.longest[which])


def packed_batches(problem: ReplicaProblem) -> OneFOneB:
    """Return a replica whose batches are packed one by one, with a flush after each."""
    samples = Samples.of(problem)
    number = ranks_of(samples.position, own_micro_batches(problem, samples))
    count = int(number.max()) + 1
    step = np.zeros(count, np.int64)
    step[number] = samples.step
    contents = Contents.of(samples.length, number)
    by_length = np.lexsort((contents.longest, step))
    begins = np.searchsorted(step[by_length], np.arange(step.max() + 2))
    rank = np.zeros(count, np.int64)
    first_ranks, used = [], 0
    for begin, end in pairwise(begins.tolist()):
        batch = by_length[begin:end]
        times = group_times(problem, contents.select(batch))
        tolerance = 0.0 if len(batch) <= EXACT_UP_TO else TOLERANCE
        sizes = np.array(best_partition(times, problem.num_stages, tolerance).sizes)
        begun = np.cumsum(sizes) - sizes
        rank[batch] = used + np.repeat(v_shape(times[begun, sizes - 1]), sizes)
        first_ranks.append(used)
        used += len(sizes)
    flushed = np.zeros(used, dtype=bool)
    flushed[first_ranks] = True
    return OneFOneB(problem, samples, rank[number], flushed)


def group_times(problem: ReplicaProblem, batch: Contents) -> np.ndarray:
    """Return the time of every group of consecutive micro-batches on the slowest stage, seconds, shape (N, W).

    Parameters
    ----------
    batch
        Micro-batches sorted by their longest sample.

    Returns
    -------
    np.ndarray
        Of the group that begins at a micro-batch and holds 1, 2, ... of them; infinite where it does not fit the memory
        or reaches beyond the end.
    """
    count = len(batch.tokens)
    sums = [np.concatenate([[0], np.cumsum(x)]) for x in (batch.samples, batch.tokens, batch.squares)]
    columns = []
    for width in range(1, count + 1):
        samples, tokens, squares = (x[width:] - x[:-width] for x in sums)
        if problem.instance.layout == "padded":
            longest = batch.longest[width - 1 :]
            tokens = samples * longest
            squares = tokens * longest
        fits = tokens <= problem.max_tokens
        if not fits.any():
            break
        column = np.full(count, np.inf)
        column[: len(fits)][fits] = problem.pipeline.times(tokens[fits], squares[fits]).sum(axis=0).max(axis=0)
        columns.append(column)
    return np.stack(columns, axis=1)


def v_shape(times: np.ndarray) -> np.ndarray:
    """Return the rank of each group, shape (N,): shortest first, next shortest last, and so on towards the middle."""
    order = np.argsort(times, kind="stable")
    places = np.concatenate([np.arange(0, len(times), 2), np.arange(1, len(times), 2)[::-1]])
    ranks = np.zeros(len(times), np.int64)
    ranks[order[places]] = np.arange(len(times))
    return ranks
