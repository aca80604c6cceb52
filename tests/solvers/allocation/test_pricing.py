from dataclasses import replace

import numpy as np
import pytest
from helpers.drawn import seeds

from cappuccino.solvers.allocation.knapsack_pricing import KnapsackPricing
from cappuccino.solvers.allocation.pricing import EnumeratedPricing, Place


def random_place(rng: np.random.Generator, kinds: int, rate: float | None = None) -> Place:
    stages = int(rng.integers(1, 4))
    shares = rng.uniform(0.2, 6.0, size=kinds)
    paths = shares * rng.uniform(1.0, 3.0, size=kinds)
    fits = rng.random(kinds) < 0.9
    return Place(
        gpu="x",
        num_stages=stages,
        rate=stages * float(rng.choice([1.0, 0.5])) if rate is None else rate,
        ramp_s=float(rng.choice([0.0, 0.7])),
        shares=np.where(fits, shares, np.inf),
        paths=np.where(fits, paths, np.inf),
    )


def all_sets(counts: np.ndarray) -> np.ndarray:
    return np.indices(tuple(counts + 1)).reshape(len(counts), -1).T[1:]


def random_question(seed: int):
    """Return a place, counts, prices, charge and limit; half of the questions have a limit."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, size=int(rng.integers(1, 6)))
    share_only = rng.random() < 0.3
    place = random_place(rng, len(counts), 0.0 if share_only else None)
    base = np.where(place.fits, place.rate * np.where(place.fits, place.shares, 0.0), 1.0)
    prices = (base if not share_only else 0.3) * rng.uniform(0.3, 2.0, size=len(counts))
    prices[rng.random(len(counts)) < 0.1] = 0.0
    limit = float(rng.uniform(2.0, 25.0)) if share_only or rng.random() < 0.5 else None
    charge = float(rng.uniform(0.1, 2.0)) if share_only else float(rng.choice([0.0, 1.0]))
    return place, counts, prices, charge, limit


def best_ratio(place: Place, counts: np.ndarray, prices: np.ndarray, charge: float, limit: float | None) -> float:
    sets = all_sets(counts)
    makespans = place.makespans(sets)
    ok = np.isfinite(makespans) & (makespans <= (limit or np.inf))
    cost = place.rate * makespans[ok] + charge
    return float((sets[ok] @ prices / cost).max(initial=0.0))


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_the_ratio_bounds_every_set(first):
    looseness = []
    for seed in range(first, first + 50):
        place, counts, prices, charge, limit = random_question(seed)
        found = KnapsackPricing((place,), counts).price(0, prices, charge, limit, 6)
        expected = best_ratio(place, counts, prices, charge, limit)
        assert found.ratio >= expected * (1 - 1e-9), seed
        looseness.append(found.ratio / expected - 1 if expected > 0 else found.ratio)
    assert np.mean(looseness) < 2e-3  # the grid rounds, and adapters are taken in part
    assert max(looseness) < 0.15


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_the_best_set_is_found(first):
    for seed in range(first, first + 50):
        place, counts, prices, charge, limit = random_question(seed)
        found = KnapsackPricing((place,), counts).price(0, prices, charge, limit, 6)
        assert (found.sets <= counts).all()
        assert (found.makespans <= (limit or np.inf)).all(), seed
        assert np.isfinite(found.makespans).all()
        assert found.makespans == pytest.approx(place.makespans(found.sets))
        ratios = found.sets @ prices / (place.rate * found.makespans + charge)
        assert ratios.max(initial=0.0) >= best_ratio(place, counts, prices, charge, limit) * 0.99, seed


def test_nothing_is_attractive_where_nothing_is_paid_or_admitted():
    place = Place("x", 1, 1.0, 0.0, np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    pricing = KnapsackPricing((place,), np.array([1, 1]))
    for prices, limit in ((np.zeros(2), None), (np.ones(2), 0.5)):
        found = pricing.price(0, prices, 0.0, limit, 6)
        assert (len(found.sets), found.ratio) == (0, 0.0)


def test_a_set_fills_what_the_longest_path_leaves():
    # paths 4, 2, 2 and shares 2, 1, 1: all three take 4 s and are paid 3; without the first 2 s and 1
    place = Place("x", 1, 1.0, 0.0, np.array([2.0, 1.0, 1.0]), np.array([4.0, 2.0, 2.0]))
    found = KnapsackPricing((place,), np.array([1, 1, 1])).price(0, np.array([2.0, 0.5, 0.5]), 0.0, None, 6)
    assert found.ratio == pytest.approx(0.75)
    assert [1, 1, 1] in found.sets.tolist()


def test_costs_are_linear_beyond_the_longest_path():
    # 1,000 adapters of share 1 and path 1, paid 1.5 each: every number of them is worth 1.5 times its cost
    place = Place("x", 1, 1.0, 0.0, np.array([1.0]), np.array([1.0]))
    found = KnapsackPricing((place,), np.array([1000])).price(0, np.array([1.5]), 0.0, None, 6)
    assert found.ratio == pytest.approx(1.5)
    # with a charge of 10, all of them at once: 1500 / 1010
    found = KnapsackPricing((place,), np.array([1000])).price(0, np.array([1.5]), 10.0, None, 6)
    assert found.ratio == pytest.approx(1500 / 1010)
    assert [1000] in found.sets.tolist()


def test_rounding_does_not_spoil_sets_of_many_small_shares():
    # 1,999 adapters of 0.003 s that differ in what they are paid, and 3 s: 1,000 of them, in cells of some 0.0015 s
    rng = np.random.default_rng(0)
    place = Place("x", 1, 0.0, 0.0, np.full(1999, 0.003), np.full(1999, 0.006))
    prices = rng.uniform(0.001, 0.002, size=1999)
    found = KnapsackPricing((place,), np.ones(1999, dtype=int)).price(0, prices, 1.0, 3.0, 6)
    best = np.sort(prices)[-1000:].sum()
    assert best * (1 - 1e-9) <= found.ratio <= best * 1.001
    assert (found.makespans <= 3.0).all()


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_all_sets_within_reach_are_listed(first):
    for seed in range(first, first + 50):
        place, counts, prices, charge, limit = random_question(seed)
        sets = all_sets(counts)
        makespans = place.makespans(sets)
        ok = np.isfinite(makespans) & (makespans <= (limit or np.inf))
        surplus = place.rate * makespans[ok] + charge - sets[ok] @ prices
        slack = float(np.quantile(surplus, 0.4)) + 1e-6 if ok.any() else 0.0
        expected = {tuple(s) for s in sets[ok][surplus <= slack].tolist()}
        found = KnapsackPricing((place,), counts).within_slack(0, prices, charge, limit, slack, 100_000)
        assert found is not None
        assert {tuple(s) for s in found.tolist()} == expected, seed
        assert len(found) == len(expected)
        if len(expected) > 1:
            assert KnapsackPricing((place,), counts).within_slack(0, prices, charge, limit, slack, 1) is None


@seeds(20)
def test_enumerated_columns_are_priced_exactly(seed):
    place, counts, prices, charge, limit = random_question(seed)
    sets = all_sets(counts)
    makespans = place.makespans(sets)
    pricing = EnumeratedPricing((place,), counts, sets, makespans[None])
    found = pricing.price(0, prices, charge, limit, 3)
    assert found.ratio == pytest.approx(best_ratio(place, counts, prices, charge, limit))
    assert found.makespans == pytest.approx(place.makespans(found.sets))
    assert (found.makespans <= (limit or np.inf)).all()
    reached = pricing.within_slack(0, prices, charge, limit, 0.5, 10**6)
    knapsack = KnapsackPricing((place,), counts).within_slack(0, prices, charge, limit, 0.5, 10**6)
    assert reached is not None and knapsack is not None
    assert {tuple(s) for s in reached.tolist()} == {tuple(s) for s in knapsack.tolist()}


def test_a_free_place_pays_any_ratio():
    # what costs nothing is worth infinitely more than it costs, which makes the bound 0, not an error
    place = replace(random_place(np.random.default_rng(0), 2, 0.0), shares=np.ones(2), paths=np.ones(2))
    found = KnapsackPricing((place,), np.array([1, 1])).price(0, np.ones(2), 0.0, None, 6)
    assert found.ratio > 1e100
