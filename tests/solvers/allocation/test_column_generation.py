import numpy as np
import pytest
from helpers.spaces import random_space
from scipy.optimize import linprog

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.column_generation import (
    ColumnPool,
    GeneratedColumn,
    least_makespan,
    solve_relaxation,
)
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.knapsack_pricing import KnapsackPricing
from cappuccino.solvers.allocation.pricing import EnumeratedPricing, Pricing
from cappuccino.solvers.budget import Clock


def pricing_of(space: ReplicaSpace, objective: Objective, enumerated: bool) -> Pricing:
    """Return pricing over the same columns at the same additive bounds, listed or not."""
    places, counts = space.places(objective), space.kinds.counts
    if not enumerated:
        return KnapsackPricing(places, counts)
    sets = space.kinds.all_sets()
    return EnumeratedPricing(places, counts, sets, np.array([p.makespans(sets) for p in places]))


def linear_optimum(space: ReplicaSpace, objective: Objective, limit: float | None, share_only: bool) -> float | None:
    """Return the optimum of the relaxation over all columns; None where it is infeasible."""
    pricing = pricing_of(space, objective, enumerated=True)
    assert isinstance(pricing, EnumeratedPricing)
    pools = space.pools
    place, rank = np.nonzero(pricing.makespans <= (limit or 1e300))
    held = pricing.sets[rank].T.astype(float)
    stages = np.array([p.num_stages for p in pricing.places])[place]
    used = np.array(
        [[g if pricing.places[p].gpu == gpu else 0 for p, g in zip(place, stages, strict=True)] for gpu in pools]
    )
    sizes = np.array(list(pools.values()), dtype=float)
    if not len(place):
        return None
    if share_only:
        cost = np.append(np.zeros(len(place)), 1.0)
        rows = np.block([[-held, np.zeros((len(held), 1))], [used, -sizes[:, None]]])
        right = np.append(-pricing.counts, np.zeros(len(pools)))
    else:
        rates = np.array([p.rate for p in pricing.places])
        cost = rates[place] * pricing.makespans[place, rank]
        rows, right = np.vstack([-held, used]), np.append(-pricing.counts, sizes)
    solved = linprog(cost, A_ub=rows, b_ub=right)
    return float(solved.fun) if solved.status == 0 else None


def limit_of(space: ReplicaSpace, seed: int) -> float | None:
    """Return no limit, or one between the least possible makespan and everything in one replica."""
    if seed % 3 == 0:
        return None
    rng = np.random.default_rng(seed + 10_000)
    low = space.objective_bound(Objective.MAKESPAN)
    high = min(p.makespans(space.kinds.counts[None])[0] for p in space.places(Objective.GPU_TIME))
    return float(low + rng.random() ** 2 * max(min(high, 1e6) - low, 0.0)) * (1 + 1e-6)


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("first", range(0, 40, 20))
def test_bound_and_value_meet_at_the_linear_optimum(first, enumerated):
    compared = 0
    for seed in range(first, first + 20):
        space = random_space(seed)
        objective = Objective.COST if seed % 2 else Objective.GPU_TIME
        limit = limit_of(space, seed)
        expected = linear_optimum(space, objective, limit, share_only=False)
        if expected is None:
            continue
        pricing = pricing_of(space, objective, enumerated)
        found = solve_relaxation(pricing, space.pools, ColumnPool(), Clock(60.0), limit_s=limit, tolerance=1e-6)
        assert found.bound <= expected * (1 + 1e-9), seed
        assert found.value == pytest.approx(expected, rel=1e-6 if enumerated else 3e-3), seed
        assert found.bound == pytest.approx(expected, rel=1e-5 if enumerated else 2e-2), seed
        compared += 1
    assert compared > 12


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("first", range(0, 40, 20))
def test_prices_support_all_columns(first, enumerated):
    for seed in range(first, first + 20):
        space = random_space(seed)
        limit = limit_of(space, seed)
        pricing = pricing_of(space, Objective.GPU_TIME, enumerated)
        found = solve_relaxation(pricing, space.pools, ColumnPool(), Clock(60.0), limit_s=limit)
        sets = space.kinds.all_sets()
        for place in pricing.places:
            makespans = place.makespans(sets)
            ok = makespans <= (limit or 1e300)
            cost = place.rate * makespans[ok] + found.charges[place.gpu] * place.num_stages
            assert (sets[ok] @ found.prices <= cost * (1 + 1e-9) + 1e-9).all(), seed
        proven = pricing.counts @ found.prices - sum(found.charges[g] * n for g, n in space.pools.items())
        assert found.bound == pytest.approx(proven)


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("first", range(0, 40, 20))
def test_share_of_the_pools(first, enumerated):
    for seed in range(first, first + 20):
        space = random_space(seed)
        limit = limit_of(space, seed) or 1e5
        pricing = pricing_of(space, Objective.MAKESPAN, enumerated)
        expected = linear_optimum(space, Objective.MAKESPAN, limit, share_only=True)
        if expected is None:
            continue
        found = solve_relaxation(
            pricing, space.pools, ColumnPool(), Clock(60.0), limit_s=limit, share_only=True, tolerance=1e-6
        )
        assert found.bound <= expected * (1 + 1e-9), seed
        assert found.value == pytest.approx(expected, rel=1e-6 if enumerated else 3e-3), seed
        assert found.bound == pytest.approx(expected, rel=1e-4 if enumerated else 2e-2), seed


@pytest.mark.parametrize("first", range(0, 12, 6))
def test_least_makespan_of_the_relaxation(first):
    for seed in range(first, first + 6):
        space = random_space(seed)
        pricing = pricing_of(space, Objective.MAKESPAN, enumerated=True)
        assert isinstance(pricing, EnumeratedPricing)
        low = space.objective_bound(Objective.MAKESPAN)
        high = 2 * float(pricing.makespans[np.isfinite(pricing.makespans)].max())
        bound, _, _ = least_makespan(
            pricing, space.pools, ColumnPool(), Clock(60.0), low_s=low, high_s=high, tolerance=1e-3
        )
        # just below the bound the relaxation is infeasible or needs more than the pools, a bit above it does not
        if bound > low * (1 + 1e-9):
            below = linear_optimum(space, Objective.MAKESPAN, bound * (1 - 1e-9), share_only=True)
            assert below is None or below > 1, seed
        above = linear_optimum(space, Objective.MAKESPAN, bound * (1 + 3e-3), share_only=True)
        assert above is not None and above <= 1 + 1e-3, seed


def test_columns_at_hand_are_used():
    space = random_space(5)
    pricing = pricing_of(space, Objective.GPU_TIME, enumerated=True)
    pool = ColumnPool()
    first = solve_relaxation(pricing, space.pools, pool, Clock(60.0), tolerance=1e-6)
    known = len(pool.columns)
    again = solve_relaxation(
        pricing, space.pools, pool, Clock(60.0), tolerance=1e-6, start=(first.prices, first.charges)
    )
    assert again.value == pytest.approx(first.value)
    assert len(pool.columns) <= known + 6
    assert set(again.weights) <= set(pool.columns)
    covered = sum(w * pool.columns[key].numbers for key, w in again.weights.items())
    assert (covered >= pricing.counts - 1e-6).all()


def test_a_time_limit_leaves_a_valid_bound():
    space = random_space(11)
    pricing = pricing_of(space, Objective.GPU_TIME, enumerated=False)
    expected = linear_optimum(space, Objective.GPU_TIME, None, share_only=False)
    found = solve_relaxation(pricing, space.pools, ColumnPool(), Clock(0.0))
    assert expected is not None
    assert 0 < found.bound <= expected * (1 + 1e-9)


def test_a_bound_that_is_good_enough_ends_the_search():
    space = random_space(7)
    pricing = pricing_of(space, Objective.MAKESPAN, enumerated=True)
    low = space.objective_bound(Objective.MAKESPAN)
    found = solve_relaxation(
        pricing, space.pools, ColumnPool(), Clock(60.0), limit_s=low * 1.0001, share_only=True, stop_at=0.0
    )
    full = solve_relaxation(
        pricing, space.pools, ColumnPool(), Clock(60.0), limit_s=low * 1.0001, share_only=True, tolerance=1e-6
    )
    assert 0.0 < found.bound <= full.bound * (1 + 1e-9)


def test_a_pool_of_columns_keeps_each_once():
    pool = ColumnPool()
    column = GeneratedColumn(0, np.array([1, 2]), 5.0)
    assert pool.add(column)
    assert not pool.add(GeneratedColumn(0, np.array([1, 2]), 5.0))
    assert pool.add(GeneratedColumn(1, np.array([1, 2]), 7.0))
    assert pool.within(6.0) == [column]
    assert len(pool.within(None)) == 2
