"""Simulated annealing over packing and order together: every candidate is list-scheduled.

Legend: K optimizer steps, N samples, C slots for micro-batches.
"""

import math
from typing import NamedTuple

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import (
    EMPTY,
    Jobs,
    Links,
    Machine,
    MoveRule,
    PackedOrder,
    StageCosts,
    State,
    Window,
)
from cappuccino.solvers.scheduling.kernels.costs import add_sample, batch_times
from cappuccino.solvers.scheduling.kernels.list_schedule import copy_state, run_pipeline
from cappuccino.solvers.scheduling.kernels.source import Source


class Scratch(NamedTuple):
    """Room for candidates of the annealing."""

    links: Links
    jobs: Jobs
    state: State
    source: Source
    """An inactive one."""
    candidate: PackedOrder
    best: PackedOrder
    """The best met so far."""


_SHIFT, _SWAP, _MOVE, _EXCHANGE, _SPLIT, _MERGE, _HURRY = range(7)
"""A micro-batch is shifted or swapped, samples are moved or exchanged, a micro-batch is split or merged, or its urgency
changed."""


@compiled
def price(costs: StageCosts, window: Window, packed: PackedOrder, slot: int) -> bool:
    """Work out tokens and times of a micro-batch from its samples; return whether it fits and is not empty."""
    shape, last = EMPTY, -1
    for n in range(len(window.length)):
        if packed.batch_of[n] == slot:
            step = window.step[n]
            opens = window.adapter[step] != last
            shape = add_sample(shape, window.length[n], costs.padded, window.added[step], opens)
            last = window.adapter[step]
    tokens, packed.transfer_s[slot] = batch_times(costs, shape, packed.forward_s[slot], packed.backward_s[slot])
    packed.tokens[slot] = tokens
    return shape.size > 0 and tokens <= costs.max_tokens


@compiled
def link(window: Window, packed: PackedOrder, links: Links, jobs: Jobs) -> bool:
    """Write the micro-batches by rank with their dependencies; return whether the order respects the steps."""
    count = packed.number[0]
    rank, first, last, group_first = links
    group_first[:] = count
    for k in range(count):
        slot = packed.order[k]
        rank[slot] = k
        for kind in range(packed.forward_s.shape[1]):
            jobs.forward_s[k, kind] = packed.forward_s[slot, kind]
            jobs.backward_s[k, kind] = packed.backward_s[slot, kind]
        jobs.transfer_s[k] = packed.transfer_s[slot]
        jobs.tokens[k] = packed.tokens[slot]
        jobs.urgency_s[k] = packed.urgency_s[slot]
        jobs.needed[k] = -1
        jobs.waits_s[k] = 0.0
        jobs.evaluation[k] = window.group[slot]
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
    for k in range(count if len(group_first) > 0 else 0):
        e = jobs.evaluation[k]
        if e < 0:
            continue
        behind, ahead = window.behind[e], window.ahead[e]
        if (behind >= 0 and k <= last[behind]) or (ahead >= 0 and k >= first[ahead]):
            return False
        if behind >= 0:
            jobs.needed[k] = last[behind]
        if k < group_first[e]:
            group_first[e] = k
            jobs.waits_s[k] = window.group_waits_s[e]
    return True


@compiled
def copy_packed(source: PackedOrder, goal: PackedOrder) -> None:
    """Copy a packing and order into another of the same room."""
    for n in range(len(source.batch_of)):
        goal.batch_of[n] = source.batch_of[n]
    for slot in range(len(source.order)):
        goal.order[slot] = source.order[slot]
        _copy_slot(source, goal, slot)
    goal.number[0] = source.number[0]


@compiled
def evaluate(
    machine: Machine, window: Window, packed: PackedOrder, scratch: Scratch, begin: State, cutoff_s: float
) -> float:
    """Return when the window's micro-batches are done, seconds; infinite where steps are broken or past the cutoff."""
    if not link(window, packed, scratch.links, scratch.jobs):
        return math.inf
    copy_state(begin, scratch.state)
    count = packed.number[0]
    return run_pipeline(machine, scratch.jobs, count, count, cutoff_s, scratch.state, scratch.source)


@compiled
def anneal(
    rng: np.random.Generator,
    machine: Machine,
    costs: StageCosts,
    window: Window,
    current: PackedOrder,
    scratch: Scratch,
    begin: State,
    low: int,
    tail: int,
    moves: int,
    temperature_s: float,
    rule: MoveRule,
    values: np.ndarray,
    target_s: float,
) -> None:
    """Search around `current`, in place; `scratch.best` is the best met so far.

    Parameters
    ----------
    begin
        What the stages have done before.
    low
        Micro-batches of lower rank stay as they are.
    tail
        So many micro-batches at the end stay as they are.
    temperature_s
        How much worse a candidate may be, about, seconds.
    values
        Value of `current` and of `scratch.best`, seconds, in and out.
    target_s
        Value that ends the search.
    """
    candidate = scratch.candidate
    copy_packed(current, candidate)
    for _ in range(moves):
        if values[1] <= target_s:
            break
        touched = _change(rng, window, candidate, low, candidate.number[0] - tail, rule)
        if touched[0] == -2:
            continue
        fits = touched[2] == 0
        if touched[0] >= 0:
            fits = price(costs, window, candidate, touched[0]) and fits
        if touched[1] >= 0:
            fits = price(costs, window, candidate, touched[1]) and fits
        value = math.inf
        if fits:
            limit = values[0] - temperature_s * math.log(1.0 - rng.random())
            value = evaluate(machine, window, candidate, scratch, begin, limit)
        if value < math.inf:
            _accept(candidate, current, touched)
            values[0] = value
            if value < values[1]:
                values[1] = value
                copy_packed(current, scratch.best)
        else:
            _accept(current, candidate, touched)


@compiled
def _accept(source: PackedOrder, goal: PackedOrder, touched: tuple[int, int, int]) -> None:
    """Copy what a move may have changed."""
    count = max(source.number[0], goal.number[0])
    for k in range(count):
        goal.order[k] = source.order[k]
    goal.number[0] = source.number[0]
    if touched[0] == -1 and touched[1] == -1:
        return
    for n in range(len(source.batch_of)):
        goal.batch_of[n] = source.batch_of[n]
    if touched[0] >= 0:
        _copy_slot(source, goal, touched[0])
    if touched[1] >= 0:
        _copy_slot(source, goal, touched[1])


@compiled
def _copy_slot(source: PackedOrder, goal: PackedOrder, slot: int) -> None:
    for kind in range(source.forward_s.shape[1]):
        goal.forward_s[slot, kind] = source.forward_s[slot, kind]
        goal.backward_s[slot, kind] = source.backward_s[slot, kind]
    goal.transfer_s[slot] = source.transfer_s[slot]
    goal.tokens[slot] = source.tokens[slot]
    goal.urgency_s[slot] = source.urgency_s[slot]


@compiled
def _change(  # noqa: C901
    rng: np.random.Generator, window: Window, packed: PackedOrder, low: int, high: int, rule: MoveRule
) -> tuple[int, int, int]:
    """Change packing or order at random.

    Returns
    -------
    tuple
        Slots whose samples changed, -1 for none, and whether the change is impossible; -2 first: nothing changed.
    """
    if high - low < 1:
        return -2, -1, 0
    i = low + int(rng.random() * (high - low))
    near = i + int(rng.random() * (2 * rule.max_shift + 1)) - rule.max_shift
    near = min(max(near, low), high - 1)
    kind, drawn = 0, rng.random()
    while kind < len(rule.shares) and drawn >= rule.shares[kind]:
        kind += 1
    order, batch_of = packed.order, packed.batch_of
    source, goal = order[i], order[near]
    if kind not in (_SHIFT, _SWAP) and (window.group[source] >= 0 or window.group[goal] >= 0):
        return -2, -1, 0  # what is evaluated stays together
    if kind == _HURRY:
        packed.urgency_s[source] = rule.urgencies[int(rng.random() * len(rule.urgencies))] * rule.launch_bound_s
        return source, -1, 0
    if kind == _SPLIT:
        return _split(rng, packed, i)
    if near == i:
        return -2, -1, 0
    if kind == _SHIFT:
        _shift(order, i, near)
        return -1, -1, 0
    if kind == _SWAP:
        order[i], order[near] = goal, source
        return -1, -1, 0
    if kind == _MERGE:
        for m in range(len(batch_of)):
            if batch_of[m] == source:
                batch_of[m] = goal
        _drop(packed, i)
        return goal, -1, 0
    n = _pick(rng, batch_of, source)
    if kind == _EXCHANGE:
        other = _pick(rng, batch_of, goal)
        batch_of[n], batch_of[other] = goal, source
        return goal, source, 0
    step, whole, left = window.step[n], rng.random() < 0.3, 0
    for m in range(len(batch_of)):
        if batch_of[m] == source:
            if m == n or (whole and window.step[m] == step):
                batch_of[m] = goal
            else:
                left += 1
    if left == 0:
        _drop(packed, i)
        return goal, -1, 0
    return goal, source, 0


@compiled
def _drop(packed: PackedOrder, i: int) -> None:
    """Take the micro-batch of rank `i`, now empty, out of the order; its slot is free again."""
    _shift(packed.order, i, packed.number[0] - 1)
    packed.number[0] -= 1


@compiled
def _pick(rng: np.random.Generator, batch_of: np.ndarray, slot: int) -> int:
    """Return a random sample of a micro-batch."""
    chosen, seen = -1, 0
    for n in range(len(batch_of)):
        if batch_of[n] == slot:
            seen += 1
            if rng.random() * seen < 1.0:
                chosen = n
    return chosen


@compiled
def _shift(order: np.ndarray, i: int, goal: int) -> None:
    """Move the entry at `i` to place `goal`."""
    slot = order[i]
    step = 1 if goal > i else -1
    for k in range(i, goal, step):
        order[k] = order[k + step]
    order[goal] = slot


@compiled
def _split(rng: np.random.Generator, packed: PackedOrder, i: int) -> tuple[int, int, int]:
    """Split the micro-batch of rank `i` at random; the order beyond `count` holds the free slots."""
    count = packed.number[0]
    if count == len(packed.order):
        return -2, -1, 0
    source, fresh = packed.order[i], packed.order[count]
    packed.urgency_s[fresh] = packed.urgency_s[source]
    moved, left = 0, 0
    for n in range(len(packed.batch_of)):
        if packed.batch_of[n] == source:
            if rng.random() < 0.5:
                packed.batch_of[n] = fresh
                moved += 1
            else:
                left += 1
    packed.number[0] = count + 1
    _shift(packed.order, count, i + 1)
    return source, fresh, 1 if moved == 0 or left == 0 else 0
