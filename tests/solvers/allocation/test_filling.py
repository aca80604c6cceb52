import numpy as np
import pytest
from helpers.spaces import random_space

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.filling import (
    Partition,
    deal_adapters,
    fill_replicas,
    filled_partitions,
    shortest_partition,
)
from cappuccino.solvers.allocation.pricing import Place


def place(stages: int = 1, shares=(1.0, 2.0, 3.0), paths=None, gpu: str = "x", head: float = 0.0) -> Place:
    shares = np.array(shares, dtype=float)
    return Place(gpu, stages, float(stages), head, shares, shares if paths is None else np.array(paths, dtype=float))


def assert_valid(found: Partition, places, counts, pools, level: float) -> None:
    assert (sum(numbers for _, numbers in found) == counts).all()
    used = dict.fromkeys(pools, 0)
    for p, numbers in found:
        used[places[p].gpu] += places[p].num_stages
        assert places[p].makespans(numbers[None])[0] <= level * (1 + 1e-9)
    assert all(used[gpu] <= count for gpu, count in pools.items())


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.MAKESPAN])
@pytest.mark.parametrize("seed", range(20))
def test_partitions_cover_everything_within_pools_and_level(seed, objective):
    space = random_space(seed)
    places, counts = space.places(objective), space.kinds.counts
    level = space.objective_bound(Objective.MAKESPAN) * (1 + 0.2 * (seed % 7))
    for preferred in (None, *range(len(places))):
        found = fill_replicas(places, counts, space.pools, level, preferred)
        if found is not None:
            assert_valid(found, places, counts, space.pools, level)
    for found in filled_partitions(places, counts, space.pools, level):
        assert_valid(found, places, counts, space.pools, level)
    assert filled_partitions(places, counts, space.pools, None)


def test_replicas_are_filled_before_new_ones_are_opened():
    # shares 3 + 3 + 2 + 2 + 1 + 1 = 12 within 6 s: two full replicas
    places, counts = [place()], np.array([2, 2, 2])
    found = fill_replicas(places, counts, {"x": 9}, 6.0)
    assert found is not None
    assert sorted(float(numbers @ places[0].shares) for _, numbers in found) == [6.0, 6.0]
    assert fill_replicas(places, counts, {"x": 1}, 6.0) is None
    assert fill_replicas(places, counts, {"x": 9}, 2.9) is None


def test_idle_time_under_a_long_path_costs_nothing():
    # a path of 9 s with 3 s of work leaves room for the others, on either place the first that is preferred
    places = [place(paths=(1.0, 2.0, 9.0)), place(2, paths=(1.0, 2.0, 9.0))]
    for preferred in (0, 1):
        found = fill_replicas(places, np.array([1, 1, 1]), {"x": 4}, 9.0, preferred)
        assert found is not None
        assert [(p, numbers.tolist()) for p, numbers in found] == [(preferred, [1, 1, 1])]


def test_adapters_that_the_preferred_place_does_not_admit_go_elsewhere():
    places = [place(paths=(1.0, 2.0, np.inf), shares=(1.0, 2.0, np.inf)), place(2)]
    found = fill_replicas(places, np.array([1, 1, 1]), {"x": 3}, 3.0, 0)
    assert found is not None
    assert sorted((p, numbers.tolist()) for p, numbers in found) == [(0, [1, 1, 0]), (1, [0, 0, 1])]


def test_a_pool_that_is_used_up_is_followed_by_the_next():
    places = [place(gpu="x"), place(gpu="y")]
    found = fill_replicas(places, np.array([0, 0, 3]), {"x": 2, "y": 1}, 3.0, 0)
    assert found is not None
    assert sorted(p for p, _ in found) == [0, 0, 1]


def test_dealing_leaves_few_different_replicas():
    # 50, 75 and 26 adapters of 6 kinds: 326 s of work, on 23 or 24 replicas hands of more than 14.2 s, on 25 2, 3 and 1
    # each, and one more in one
    places, counts = [place(shares=(3.0, 2.0, 1.0))], np.array([50, 75, 26])
    found = deal_adapters(places, counts, {"x": 25}, 14.2, 0)
    assert found is not None
    assert_valid(found, places, counts, {"x": 25}, 14.2)
    assert sorted(tuple(numbers.tolist()) for _, numbers in found) == [(2, 3, 1)] * 24 + [(2, 3, 2)]
    assert deal_adapters(places, counts, {"x": 24}, 14.2, 0) is None
    assert deal_adapters(places, counts, {"x": 99}, 2.9, 0) is None


def test_dealing_gives_up_where_a_hand_is_too_long():
    # shares 5, 1, 1: 7 s need two replicas for 4 s each at best, but the first adapter alone takes 5
    places = [place(shares=(5.0, 1.0, 1.0))]
    assert deal_adapters(places, np.array([1, 1, 1]), {"x": 2}, 4.0, 0) is None
    found = deal_adapters(places, np.array([1, 1, 1]), {"x": 2}, 6.0, 0)
    assert found is not None
    assert len(found) == 2


def test_the_shortest_partition_balances():
    # shares 3, 3, 2, 2, 1, 1 on 2 GPUs: 6 s each
    places, counts = [place()], np.array([2, 2, 2])
    found = shortest_partition(places, counts, {"x": 2}, 1.0, 20.0)
    assert found is not None
    ends = [float(places[p].makespans(numbers[None])[0]) for p, numbers in found]
    assert max(ends) == pytest.approx(6.0, rel=1e-2)
    assert shortest_partition(places, counts, {"x": 2}, 1.0, 5.0) is None
