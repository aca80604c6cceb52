"""Packs the steps of alternating groups into micro-batches of at most a token capacity.

Legend: N samples sorted by step, group and falling length.
"""

import numpy as np

from cappuccino.compiled import compiled


@compiled
def pack_steps(  # noqa: C901, PLR0915
    length: np.ndarray, step: np.ndarray, group: np.ndarray, capacity: int, stages: int, padded: bool
) -> np.ndarray:
    """Return the rank of each sample's micro-batch, shape (N,).

    Every step of a group is packed by first fit, longest sample first; its fullest micro-batch runs first. The last
    micro-batch so far is then filled up with samples of the next step's emptiest one, shortest first, if the steps of
    that group stay at least g micro-batches apart. A sample above the capacity gets a micro-batch of its own.

    Parameters
    ----------
    length, step, group
        Tokens, optimizer step and group of each sample, shape (N,).
    capacity
        Tokens.
    stages
        Pipeline stages g.
    padded
        Whether every sample of a micro-batch counts as long as the longest.
    """
    count = len(length)
    rank = np.zeros(count, np.int64)
    last_rank = np.full(group.max() + 1, -count - stages)  # of each group's step before
    bin_of = np.zeros(count, np.int64)
    tokens = np.zeros(count, np.int64)  # by bin of the step
    size = np.zeros(count, np.int64)
    used = 0  # micro-batches so far; what the last one holds:
    open_tokens, open_size, open_longest = 0, 0, 0
    begin = 0
    while begin < count:
        end = begin
        while end < count and step[end] == step[begin] and group[end] == group[begin]:
            end += 1
        bins, first_open = 0, 0
        shortest = length[end - 1]
        for i in range(begin, end):
            # bins without room for the shortest sample are passed over for good
            while first_open < bins and tokens[first_open] + shortest > capacity:
                first_open += 1
            chosen = bins
            for b in range(first_open, bins):
                if tokens[b] + (tokens[b] // size[b] if padded else length[i]) <= capacity:
                    chosen = b
                    break
            if chosen == bins:
                tokens[bins], size[bins] = 0, 0
                bins += 1
            tokens[chosen] += tokens[chosen] // size[chosen] if padded and size[chosen] > 0 else length[i]
            size[chosen] += 1
            bin_of[i] = chosen
        fullest_first = np.argsort(-tokens[:bins], kind="mergesort")
        emptiest = fullest_first[bins - 1]
        this = group[begin]
        moved_any = False
        if used > 0 and used - 1 - last_rank[this] >= stages:
            for i in range(end - 1, begin - 1, -1):
                if bin_of[i] != emptiest:
                    continue
                longest = max(open_longest, length[i])
                grown = longest * (open_size + 1) if padded else open_tokens + length[i]
                if grown > capacity:
                    break
                open_tokens, open_size, open_longest = grown, open_size + 1, longest
                size[emptiest] -= 1
                bin_of[i] = -1
                rank[i] = used - 1
                moved_any = True
        place = np.zeros(bins, np.int64)
        for b in range(bins):
            place[fullest_first[b]] = used + b
        if moved_any and size[emptiest] == 0:
            bins -= 1
        last = used + bins - 1 if bins > 0 else used - 1
        if bins > 0:
            open_tokens, open_size, open_longest = 0, 0, 0
        for i in range(begin, end):
            if bin_of[i] >= 0:
                rank[i] = place[bin_of[i]]
                if rank[i] == last:
                    open_size += 1
                    open_longest = max(open_longest, length[i])
                    open_tokens += length[i]
        if padded:
            open_tokens = open_size * open_longest
        last_rank[this] = last
        used = last + 1
        begin = end
    return rank
