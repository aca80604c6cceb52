"""Simulated annealing over packing and order together: every candidate is list-scheduled as a whole."""

import math
from collections.abc import Sequence

import numpy as np

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.list_scheduling import ListSchedule
from cappuccino.solvers.order_scheduling import schedule_order
from cappuccino.solvers.replica_problem import Batch, ReplicaProblem

REACH = 8
"""How far in the order a micro-batch or a sample is moved at most."""
HOT, COLD = 3e-4, 5e-6
"""First and last temperature, relative to the makespan."""


def anneal(
    problem: ReplicaProblem,
    start: ListSchedule,
    patience_s: float,
    clock: Clock,
    max_moves: int,
    target_s: float,
    rng: np.random.Generator,
) -> ListSchedule:
    """Return the best schedule met on the way, at worst `start`.

    Parameters
    ----------
    patience_s
        How long a stage waits for a B, as in `schedule_order`.
    target_s
        Makespan that ends the search.
    """
    best = current = start
    for move in range(max_moves):
        if clock.over or best.makespan_s <= target_s:
            break
        progress = move / max_moves
        if clock.left is not None:
            progress = max(progress, clock.elapsed / (clock.elapsed + clock.left + 1e-9))
        temperature = best.makespan_s * HOT * (COLD / HOT) ** progress
        order = _neighbour(problem, current.order, rng)
        if order is None:
            continue
        limit = current.makespan_s - temperature * math.log(1 - rng.random())
        candidate = schedule_order(problem, order, patience_s, cutoff_s=limit)
        if candidate is not None:
            current = candidate
            if current.makespan_s < best.makespan_s:
                best = current
    return best


def _neighbour(problem: ReplicaProblem, order: Sequence[Batch], rng: np.random.Generator) -> list[Batch] | None:
    result = list(order)
    count = len(result)
    i = int(rng.integers(count))
    near = int(np.clip(i + rng.integers(-REACH, REACH + 1), 0, count - 1))
    kind = rng.random()
    if kind < 0.35:
        result.insert(near, result.pop(i))
        return result if near != i else None
    if kind < 0.5:
        result[i], result[near] = result[near], result[i]
        return result if near != i else None
    if kind < 0.85:
        return _move_samples(problem, result, i, near, rng)
    if kind < 0.93:
        return _split(problem, result, i, rng)
    return _merge(problem, result, i, near)


def _move_samples(
    problem: ReplicaProblem, order: list[Batch], i: int, near: int, rng: np.random.Generator
) -> list[Batch] | None:
    """Move one sample, or all of one adapter, from micro-batch i to another."""
    source, goal = order[i], order[near]
    a, j = source.steps[int(rng.integers(len(source.steps)))]
    if near == i or any(b == a and k != j for b, k in goal.steps):
        return None
    mine = [s for s in source.samples if s[0] == a]
    moved = mine if rng.random() < 0.3 else [mine[int(rng.integers(len(mine)))]]
    joined = (*goal.samples, *moved)
    if problem.batch_tokens(joined) > problem.max_tokens:
        return None
    rest = [s for s in source.samples if s not in moved]
    order[near] = problem.batch(joined)
    if rest:
        order[i] = problem.batch(rest)
    else:
        del order[i]
    return order


def _split(problem: ReplicaProblem, order: list[Batch], i: int, rng: np.random.Generator) -> list[Batch] | None:
    samples = order[i].samples
    if len(samples) < 2:
        return None
    chosen = rng.random(len(samples)) < 0.5
    first = [s for s, c in zip(samples, chosen, strict=True) if c]
    second = [s for s, c in zip(samples, chosen, strict=True) if not c]
    if not first or not second:
        return None
    order[i : i + 1] = problem.batches([first, second])
    return order


def _merge(problem: ReplicaProblem, order: list[Batch], i: int, near: int) -> list[Batch] | None:
    one, other = order[i], order[near]
    joined = (*one.samples, *other.samples)
    conflict = any(a == b and j != k for a, j in one.steps for b, k in other.steps)
    if near == i or conflict or problem.batch_tokens(joined) > problem.max_tokens:
        return None
    order[near] = problem.batch(joined)
    del order[i]
    return order
