from dataclasses import replace

import numpy as np
import pytest
from helpers.drawn import seeds
from helpers.spaces import random_space

from cappuccino.checker.partitions import ListedSets
from cappuccino.checker.payments import CELLS, largest_ratio
from cappuccino.checker.places import Place, Space


def drawn_space(seed: int) -> tuple[Space, np.random.Generator]:
    """Return kinds of adapters in all places, at drawn prices, rates and charges."""
    space, rng = random_space(seed), np.random.default_rng(seed)
    prices = rng.choice([0.0, 1.0, 20.0, 60.0], len(space.kinds.counts)) * rng.uniform(0.5, 1.5)
    places = tuple(
        Place(
            pool.gpu, b.num_stages, float(rng.choice([0.0, 1.0])) * b.num_stages, float(rng.choice([1.0, 40.0])),
            b, b.ramp_s, b.shares, b.paths,
        )
        for pool, b in space.bounds
    )  # fmt: skip
    return Space(space.kinds.counts, prices, places, space.pools, 0.0), rng


@seeds(80)
def test_no_set_is_paid_more_than_the_ratio_and_some_set_nearly_as_much(seed):
    space, rng = drawn_space(seed)
    sets = np.indices(tuple(space.counts + 1)).reshape(len(space.counts), -1).T[1:]
    for place in space.places:
        held = sets > 0
        busy = place.ramp_s + sets @ np.where(np.isfinite(place.shares), place.shares, 0.0)
        makespans = np.maximum(busy, np.where(held, place.paths, 0.0).max(axis=1))
        finite = makespans[np.isfinite(makespans)]
        if not len(finite):
            continue
        for limit in (np.inf, float(rng.choice(finite)), float(finite.min()) * 0.99):
            within = makespans <= limit if limit < np.inf else np.isfinite(makespans)
            cost = place.rate * makespans[within] + place.charge
            best = float((sets[within] @ space.prices / cost).max(initial=0.0))
            found = largest_ratio(place, space.prices, space.counts, limit, 0.0)
            assert found >= best * (1 - 1e-12), seed
            near = makespans <= limit * (1 + 8 * sets.sum(axis=1).max() / CELLS)
            cost = place.rate * makespans[near & np.isfinite(makespans)] + place.charge
            most = float((sets[near & np.isfinite(makespans)] @ space.prices / cost).max(initial=0.0))
            assert found <= most * (1 + 1e-3) + 1e-9, seed
            assert largest_ratio(place, space.prices, space.counts, limit, 2 * found + 1) == 2 * found + 1


def test_equal_adapters_beyond_the_grid_count_too():
    # 1,000 of a second each: a charge of 1,000 pays off only when they share it
    space = random_space(3)
    bounds = space.bounds[0][1]
    place = Place("x", 1, 1.0, 1000.0, bounds, 0.0, np.array([1.0]), np.array([5.0]))
    found = largest_ratio(place, np.array([2.0]), np.array([1000]), np.inf, 0.0)
    assert found == pytest.approx(2000 / 2000, rel=1e-3)
    rented = replace(place, rate=0.0)
    assert largest_ratio(rented, np.array([2.0]), np.array([1000]), 100.0, 0.0) == pytest.approx(0.2, rel=1e-3)


def test_listed_sets_are_paid_as_their_full_bounds_say():
    for seed in range(10):
        space, _ = drawn_space(seed)
        listed = ListedSets.of(space)
        additive = max(largest_ratio(p, space.prices, space.counts, np.inf, 0.0) for p in space.places)
        found = [listed.largest_ratio(number, np.inf, 0.0) for number in range(len(space.places))]
        assert max(found) <= additive * (1 + 1e-9)
