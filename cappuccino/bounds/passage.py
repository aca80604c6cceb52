"""Lower bound on the fastest passage of one optimizer step's samples through a pipeline, over all packings and orders.

A passage begins with the first F on the first stage and ends there with the last B. Other adapters' samples in the
same micro-batches only make them longer, so the bound holds for shared micro-batches too.

For one packing, let L be a micro-batch, X the ones whose F stands before L's, V the ones whose B stands before L's;
rule 5 makes these the same on every stage. Three chains of operations that follow each other give

    F: sum f' over X, f of L on all stages, on the last stage b of L and f + b of all others but X, then min b"
    B: min f", on the last stage f + b over V and f of L, b of L on all stages, then sum b' of all others but V
    P: sum f' over X, f of L on all stages, on the last one f + b over V less X, b of L on all, sum b' of others but V

(f' on the first stage, f" on all stages before the last), and so does the last stage: D: all f + b, min f" + min b".
The passage is at least every convex combination of F, B and P, whatever X and V are: each other micro-batch adds at
least the least of its four cases. Where that does not decide, `last_stage` does over all orders. All of these pass
every link twice.

Legend: N samples of a step, K packings, C combinations; W the ways that times are of: a stage that neither the first
nor the last but one is faster than, all stages before the last, the last.
"""

from functools import lru_cache

import numpy as np

from cappuccino.bounds.last_stage import PRECISION, last_stage_bound, last_stage_order
from cappuccino.compiled import compiled

MOST_SAMPLES = 8
"""Samples up to which every packing is looked at."""


@lru_cache(maxsize=MOST_SAMPLES)
def packings(count: int) -> np.ndarray:
    """Return every partition of `count` samples, shape (K, count): bit sets of the parts, 0 behind the last one."""
    rows: list[list[int]] = [[]]
    for sample in range(count):
        bit = 1 << sample
        longer = []
        for row in rows:
            longer += [[*row[:k], row[k] | bit, *row[k + 1 :]] for k in range(len(row))]
            longer.append([*row, bit])
        rows = longer
    table = np.zeros((len(rows), count), dtype=np.int64)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return table


@lru_cache(maxsize=1)
def combinations() -> np.ndarray:
    """Return weights of the chains F, B and P, shape (C, 3), each row adding up to 1."""
    grid = [(i, j, 8 - i - j) for i in range(9) for j in range(9 - i)]
    return np.array(grid) / 8


@lru_cache(maxsize=MOST_SAMPLES)
def membership(count: int) -> np.ndarray:
    """Return which samples every bit set holds, bool, shape (2^count, count)."""
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)


@compiled
def passage_bounds(
    forward_s: np.ndarray,
    backward_s: np.ndarray,
    fits: np.ndarray,
    table: np.ndarray,
    weights: np.ndarray,
    stages: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bound of several steps, seconds, without transfers, and the row of the packing that it comes from.

    Both are of shape (steps,). Another packing may reach a bound that is less by the relative `PRECISION`.

    Parameters
    ----------
    forward_s, backward_s
        Time of a micro-batch of any bit set of samples, shape (steps, W, 2^N).
    fits
        Whether it fits the memory, shape (steps, 2^N).
    table
        All packings, shape (K, N), from `packings`.
    weights
        Shape (C, 3), from `combinations`.
    """
    steps = forward_s.shape[0]
    result, rows = np.empty(steps), np.zeros(steps, np.int64)
    forward = np.empty((3, table.shape[1]))
    backward = np.empty((3, table.shape[1]))
    simple = np.empty(table.shape[0])
    for j in range(steps):
        for k in range(table.shape[0]):
            count = _times_of(table[k], forward_s[j], backward_s[j], fits[j], forward, backward)
            simple[k] = _simple_bound(forward, backward, count) if count else np.inf
        least = np.inf
        proven = np.inf
        for k in np.argsort(simple):
            # a packing that is hardly better than the best need not be told apart from it
            enough = least * (1 - PRECISION)
            if simple[k] >= enough:
                proven = min(proven, simple[k])
                break
            count = _times_of(table[k], forward_s[j], backward_s[j], fits[j], forward, backward)
            bound = max(simple[k], _chain_bound(forward, backward, count, weights, enough))
            if bound < enough and stages > 1 and count > 1:
                one_by_one = forward[1:, :count].sum() + backward[1:, :count].sum()
                bound = last_stage_bound(forward, backward, count, bound, min(enough, one_by_one))
            if bound < enough:
                least = bound
                rows[j] = k
            proven = min(proven, bound)
        result[j] = proven
    return result, rows


@compiled
def fastest_places(
    forward_s: np.ndarray,
    backward_s: np.ndarray,
    bounds_s: np.ndarray,
    rows: np.ndarray,
    table: np.ndarray,
    stages: int,
) -> np.ndarray:
    """Return packing and order of the fastest passages: the place of every sample's micro-batch, shape (steps, N).

    Parameters
    ----------
    bounds_s, rows
        From `passage_bounds`, as the other parameters.
    """
    samples = table.shape[1]
    places = np.zeros((len(rows), samples), np.int64)
    forward = np.empty((3, samples))
    backward = np.empty((3, samples))
    for j in range(len(rows)):
        parts = table[rows[j]]
        count = 0
        while count < samples and parts[count] > 0:
            forward[:, count] = forward_s[j, :, parts[count]]
            backward[:, count] = backward_s[j, :, parts[count]]
            count += 1
        order = np.arange(count)
        if stages > 1:
            order = last_stage_order(forward, backward, count, bounds_s[j] * (1 + 2 * PRECISION))
        for place in range(count):
            for n in range(samples):
                if parts[order[place]] >> n & 1:
                    places[j, n] = place
    return places


@compiled
def _times_of(
    parts: np.ndarray,
    forward_s: np.ndarray,
    backward_s: np.ndarray,
    fits: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
) -> int:
    """Write the times of a packing's micro-batches; return how many there are, 0 where one does not fit."""
    count = 0
    while count < len(parts) and parts[count] > 0:
        if not fits[parts[count]]:
            return 0
        forward[:, count] = forward_s[:, parts[count]]
        backward[:, count] = backward_s[:, parts[count]]
        count += 1
    return count


@compiled
def _simple_bound(forward: np.ndarray, backward: np.ndarray, count: int) -> float:
    """Return the larger of the chain D and the longest way of one micro-batch through all stages."""
    longest, on_last = 0.0, 0.0
    for k in range(count):
        longest = max(longest, forward[1, k] + forward[2, k] + backward[1, k] + backward[2, k])
        on_last += forward[2, k] + backward[2, k]
    ends = forward[1, :count].min() + backward[1, :count].min()
    result: float = max(on_last + ends, longest)
    return result


@compiled
def _chain_bound(forward: np.ndarray, backward: np.ndarray, count: int, weights: np.ndarray, enough_s: float) -> float:
    """Return the bound by the chains F, B and P; any value of at least `enough_s` once it is known to be that large."""
    head, tail = forward[1, :count].min(), backward[1, :count].min()
    best = 0.0
    for c in range(weights.shape[0]):
        u, v, w = weights[c]
        others = 0.0  # what every micro-batch adds as one of the others
        for k in range(count):
            others += _least_case(u, v, w, forward[:, k], backward[:, k])
        for k in range(count):
            down, up = forward[1, k] + forward[2, k], backward[1, k] + backward[2, k]
            value = others - _least_case(u, v, w, forward[:, k], backward[:, k])
            value += u * (down + backward[2, k] + tail)
            value += v * (head + forward[2, k] + up)
            value += w * (down + up)
            best = max(best, value)
        if best >= enough_s:
            return best
    return best


@compiled
def _least_case(u: float, v: float, w: float, f: np.ndarray, b: np.ndarray) -> float:
    """Return the least that a micro-batch other than L adds: in X and V, in X only, in neither, in V only."""
    both = f[2] + b[2]
    result: float = min((u + w) * f[0] + v * both, (u + w) * f[0] + (v + w) * b[0], u * both + (v + w) * b[0], both)
    return result
