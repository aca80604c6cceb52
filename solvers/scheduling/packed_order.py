"""Packing and order of a window of micro-batches as arrays: what the compiled search works on.

Legend: N samples, K optimizer steps, C slots for micro-batches (more than there are, for splits).
"""

from typing import NamedTuple

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.batch_costs import Added, BatchCosts, batch_times
from cappuccino.solvers.scheduling.list_schedule_kernel import Jobs


class Window(NamedTuple):
    """Samples and steps of the window; an adapter's samples stand next to each other."""

    length: np.ndarray
    """Tokens by sample, shape (N,)."""
    step: np.ndarray
    """Step by sample, shape (N,)."""
    previous: np.ndarray
    """The same adapter's step before, shape (K,); -1 where it is not in the window."""
    waits_s: np.ndarray
    """Optimizer time before the step's first F, shape (K,)."""
    adapter: np.ndarray
    """Position of the adapter by step, shape (K,)."""
    added: np.ndarray
    """What a step's adapter adds to its micro-batches (floors) and each of its tokens (works), seconds, in the order of
    `Added`, shape (K, 4)."""


class PackedOrder(NamedTuple):
    """Which micro-batch every sample is in and in which order the micro-batches run."""

    batch_of: np.ndarray
    """Slot by sample, shape (N,)."""
    order: np.ndarray
    """Slot by rank, shape (C,)."""
    forward_s: np.ndarray
    """By slot, shape (C,), as the following ones."""
    backward_s: np.ndarray
    transfer_s: np.ndarray
    tokens: np.ndarray
    urgency_s: np.ndarray
    """How long a stage that could start something else waits for the micro-batch."""
    number: np.ndarray
    """How many micro-batches there are, shape (1,)."""


class Links(NamedTuple):
    """Room for the dependencies between micro-batches."""

    rank: np.ndarray
    """By slot, shape (C,)."""
    first: np.ndarray
    """First rank by step, shape (K,)."""
    last: np.ndarray
    """Last rank by step, shape (K,)."""


@compiled
def price(costs: BatchCosts, window: Window, packed: PackedOrder, slot: int) -> bool:
    """Work out tokens and times of a micro-batch from its samples; return whether it fits and is not empty."""
    size, tokens, squares, longest, last = 0, 0, 0.0, 0, -1
    forward_floor = forward_work = backward_floor = backward_work = 0.0
    for n in range(len(window.length)):
        if packed.batch_of[n] == slot:
            length, step = window.length[n], window.step[n]
            size += 1
            tokens += length
            squares += float(length) * length
            longest = max(longest, length)
            if window.adapter[step] != last:
                forward_floor += window.added[step, 0]
                backward_floor += window.added[step, 2]
                last = window.adapter[step]
            weight = 1 if costs.padded else length
            forward_work += window.added[step, 1] * weight
            backward_work += window.added[step, 3] * weight
    if costs.padded:
        tokens = size * longest
        squares = float(tokens) * longest
        forward_work *= longest
        backward_work *= longest
    packed.tokens[slot] = tokens
    if size == 0 or tokens > costs.max_tokens:
        return False
    added = Added(forward_floor, forward_work, backward_floor, backward_work)
    times = batch_times(costs, tokens, squares, added)
    packed.forward_s[slot], packed.backward_s[slot], packed.transfer_s[slot] = times
    return True


@compiled
def link(window: Window, packed: PackedOrder, links: Links, jobs: Jobs) -> bool:
    """Write the micro-batches by rank with their dependencies; return whether the order respects the steps."""
    count = packed.number[0]
    rank, first, last = links
    for k in range(count):
        slot = packed.order[k]
        rank[slot] = k
        jobs.forward_s[k] = packed.forward_s[slot]
        jobs.backward_s[k] = packed.backward_s[slot]
        jobs.transfer_s[k] = packed.transfer_s[slot]
        jobs.tokens[k] = packed.tokens[slot]
        jobs.urgency_s[k] = packed.urgency_s[slot]
        jobs.needed[k] = -1
        jobs.waits_s[k] = 0.0
    for t in range(len(first)):
        first[t] = count
        last[t] = -1
    for n in range(len(window.step)):
        k, t = rank[packed.batch_of[n]], window.step[n]
        first[t] = min(first[t], k)
        last[t] = max(last[t], k)
    for t in range(len(first)):
        before = window.previous[t]
        if before >= 0 and first[t] <= last[before]:
            return False
        if window.waits_s[t] > 0.0:
            jobs.waits_s[first[t]] += window.waits_s[t]
    for n in range(len(window.step)):
        before = window.previous[window.step[n]]
        if before >= 0:
            k = rank[packed.batch_of[n]]
            jobs.needed[k] = max(jobs.needed[k], last[before])
    return True
