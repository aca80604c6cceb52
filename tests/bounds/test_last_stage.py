from itertools import permutations

import numpy as np
import pytest
from helpers.drawn import seeds

from cappuccino.bounds.last_stage import PRECISION, last_stage_bound, last_stage_order


def chain(times, stages):
    """Return how long micro-batches take in this order on `stages` stages, one after the other without gaps."""
    ends = [0.0] * stages
    for time in times:
        before = 0.0
        for s in range(stages):
            ends[s] = before = max(ends[s], before) + time
    return ends[-1] if times and stages else 0.0


def least_passage(forward, backward, stages, forward_orders):
    """Return the least passage by trying every order: arrivals and what follows a B are simulated, stage by stage."""
    count = len(forward)
    best = float("inf")
    for order in forward_orders:
        arrivals = [chain([forward[k] for k in order[: i + 1]], stages - 1) for i in range(count)]
        for back in permutations(range(count)):
            tails = [chain([backward[k] for k in reversed(back[i:])], stages - 1) for i in range(count)]

            def go_on(f, b, now, latest, order=order, back=back, arrivals=arrivals, tails=tails):
                if b == count:
                    return latest
                found = float("inf")
                if f < count:
                    found = go_on(f + 1, b, max(now, arrivals[f]) + forward[order[f]], latest)
                if back[b] in order[:f]:
                    end = now + backward[back[b]]
                    found = min(found, go_on(f, b + 1, end, max(latest, end + tails[b])))
                return found

            best = min(best, go_on(0, 0, 0.0, 0.0))
    return best


def case(seed):
    rng = np.random.default_rng(seed)
    count, stages = int(rng.integers(1, 5)), int(rng.integers(2, 7))
    forward = rng.uniform(0.1, 1.0, count) ** 2
    return forward, forward * rng.uniform(0.5, 3.0, count), count, stages


@seeds(20)
def test_the_least_over_all_orders_is_found(seed):
    forward, backward, count, stages = case(seed)
    expected = least_passage(forward, backward, stages, list(permutations(range(count))))
    most = stages * float((forward + backward).sum())
    bound = last_stage_bound(forward, backward, count, stages, 0.0, most)
    assert bound <= expected * (1 + 1e-9)
    assert bound >= expected * (1 - 2 * PRECISION)


@seeds(20)
def test_the_order_reaches_the_bound(seed):
    forward, backward, count, stages = case(seed)
    most = stages * float((forward + backward).sum())
    limit = last_stage_bound(forward, backward, count, stages, 0.0, most) * (1 + 2 * PRECISION)
    order = last_stage_order(forward, backward, count, stages, limit).tolist()
    assert sorted(order) == list(range(count))
    assert least_passage(forward, backward, stages, [order]) <= limit * (1 + 1e-9)


def test_bounds_above_the_interesting_are_cut_off():
    # 2 stages, two micro-batches of 1 + 2: 1 on the way down, 6 on the last stage, 2 on the way up
    times = np.array([1.0, 1.0]), np.array([2.0, 2.0])
    assert last_stage_bound(*times, 2, 2, 0.0, 12.0) == pytest.approx(9.0, rel=2 * PRECISION)
    assert last_stage_bound(*times, 2, 2, 0.0, 8.0) == 8.0
