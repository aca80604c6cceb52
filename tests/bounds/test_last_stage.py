from itertools import permutations

import numpy as np
import pytest
from helpers.drawn import seeds

from cappuccino.bounds.last_stage import PRECISION, last_stage_bound, last_stage_order


def chain(times):
    """Return how long micro-batches take in this order on stages, one after the other without gaps.

    `times` has a row a micro-batch and a column a stage.
    """
    ends = [0.0] * times.shape[1]
    for row in times:
        before = 0.0
        for s, time in enumerate(row):
            ends[s] = before = max(ends[s], before) + time
    return ends[-1] if ends else 0.0


def least_passage(forward, backward, forward_orders):
    """Return the least passage by trying every order: arrivals and what follows a B are simulated, stage by stage.

    Times have shape (micro-batches, stages).
    """
    count = len(forward)
    best = float("inf")
    for order in forward_orders:
        arrivals = [chain(forward[list(order[: i + 1]), :-1]) for i in range(count)]
        for back in permutations(range(count)):
            # the B's that follow go up from the last stage but one: the same chain, seen from its end
            tails = [chain(backward[list(reversed(back[i:])), :-1]) for i in range(count)]

            def go_on(f, b, now, latest, order=order, back=back, arrivals=arrivals, tails=tails):
                if b == count:
                    return latest
                found = float("inf")
                if f < count:
                    found = go_on(f + 1, b, max(now, arrivals[f]) + forward[order[f], -1], latest)
                if back[b] in order[:f]:
                    end = now + backward[back[b], -1]
                    found = min(found, go_on(f, b + 1, end, max(latest, end + tails[b])))
                return found

            best = min(best, go_on(0, 0, 0.0, 0.0))
    return best


def ways(times):
    """Return what the bound reads of times of shape (micro-batches, stages)."""
    return np.stack([np.minimum(times[:, 0], times[:, -2]), times[:, :-1].sum(axis=1), times[:, -1]])


def case(seed, alike=True):
    """Return times of shape (micro-batches, stages)."""
    rng = np.random.default_rng(seed)
    count, stages = int(rng.integers(1, 5)), int(rng.integers(2, 7))
    shares = np.ones(stages) if alike else rng.uniform(0.2, 2.0, stages)
    forward = np.outer(rng.uniform(0.1, 1.0, count) ** 2, shares)
    return forward, forward * rng.uniform(0.5, 3.0, count)[:, None]


def bound_of(forward, backward):
    most = float((forward + backward).sum())
    return last_stage_bound(ways(forward), ways(backward), len(forward), 0.0, most)


@seeds(20)
def test_the_least_over_all_orders_is_found(seed):
    forward, backward = case(seed)
    expected = least_passage(forward, backward, list(permutations(range(len(forward)))))
    bound = bound_of(forward, backward)
    assert bound <= expected * (1 + 1e-9)
    assert bound >= expected * (1 - 2 * PRECISION)


@seeds(40)
def test_no_order_of_stages_that_differ_is_faster(seed):
    forward, backward = case(seed, alike=False)
    expected = least_passage(forward, backward, list(permutations(range(len(forward)))))
    assert bound_of(forward, backward) <= expected * (1 + 1e-9)


@seeds(20)
def test_the_order_reaches_the_bound(seed):
    forward, backward = case(seed)
    limit = bound_of(forward, backward) * (1 + 2 * PRECISION)
    order = last_stage_order(ways(forward), ways(backward), len(forward), limit).tolist()
    assert sorted(order) == list(range(len(forward)))
    assert least_passage(forward, backward, [order]) <= limit * (1 + 1e-9)


def test_bounds_above_the_interesting_are_cut_off():
    # 2 stages, two micro-batches of 1 + 2: 1 on the way down, 6 on the last stage, 2 on the way up
    times = np.ones((3, 2)), np.full((3, 2), 2.0)
    assert last_stage_bound(*times, 2, 0.0, 12.0) == pytest.approx(9.0, rel=2 * PRECISION)
    assert last_stage_bound(*times, 2, 0.0, 8.0) == 8.0
