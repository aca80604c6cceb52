import itertools
import random

from helpers.drawn import seeds

from cappuccino.models.packing import PackingData, PackingModel


def data(work, tokens=None, batches=2, most=10**6, tangents=((1, 0, 1),), preference=None, current=None) -> PackingData:
    count = len(work)
    return PackingData(
        work=tuple(work),
        tokens=tuple(tokens or work),
        current=tuple(current or [0] * count),
        num_batches=batches,
        max_tokens=most,
        time_tangents=tuple(tangents),
        preference=tuple(preference or [(0,) * batches] * count),
    )


def cost(d: PackingData, places) -> int:
    total = sum(d.preference[i][b] for i, b in enumerate(places))
    for b in set(places):
        work = sum(w for w, p in zip(d.work, places, strict=True) if p == b)
        total += max(-(-(slope * work + offset) // scale) for slope, offset, scale in d.time_tangents)
    return total


def solve(d: PackingData):
    return PackingModel(d).solve(time_limit_s=None, deterministic_limit=5.0, seed=0)


def groups(places) -> set[frozenset[int]]:
    return {frozenset(i for i, p in enumerate(places) if p == b) for b in set(places)}


def test_memory_fits():
    # 3 + 3 and 2 + 2 + 3 exceed 5: each 3 goes with a 2
    found = solve(data([3, 3, 2, 2], most=5))
    assert {frozenset(sorted([3, 3, 2, 2][i] for i in g)) for g in groups(found)} == {frozenset({2, 3})}


def test_tokens_that_fit_in_no_way_are_none():
    assert solve(data([3, 3, 3], most=5)) is None


def test_memory_is_counted_in_tokens_not_in_work():
    # by work all fits in one micro-batch, and the floor of 10 wants it so; by tokens only pairs do
    found = solve(data([1, 1, 1, 1], tokens=[5, 5, 5, 5], batches=4, most=10, tangents=[(0, 10, 1), (1, 0, 1)]))
    assert sorted(map(len, groups(found))) == [2, 2]


def test_of_launch_bound_work_samples_share_a_micro_batch():
    # work 10 each, floor 30: one micro-batch of 30 against two of 30
    assert len(groups(solve(data([10, 10, 10], batches=3, tangents=[(0, 30, 1), (1, 0, 1)], current=[0, 1, 2])))) == 1


def test_every_tangent_counts():
    # time = max(10, 2 work - 30): 20 + 20 together 50, apart 10 + 10
    assert len(groups(solve(data([20, 20], tangents=[(0, 10, 1), (2, -30, 1)])))) == 2


def test_tangents_are_scaled():
    # 1000 time >= 1500 work + 2000: together 1.5 x 6 + 2 = 11, apart 2 x (4.5 + 2) = 13
    assert len(groups(solve(data([3, 3], tangents=[(1500, 2000, 1000)], current=[0, 1])))) == 1


def test_preferences_break_ties():
    # the two do not share; sample 0 is cheaper in micro-batch 1, sample 1 in 0
    assert solve(data([4, 4], most=4, preference=[(5, 0), (0, 5)], current=[0, 1])) == [1, 0]


def test_an_unused_micro_batch_costs_nothing():
    d = data([5, 5], batches=4, tangents=[(0, 100, 1)])
    assert cost(d, solve(d)) == 100


@seeds(20)
def test_optimum_of_brute_force(seed):
    rng = random.Random(seed)
    work = [rng.randint(1, 30) for _ in range(5)]
    preference = [tuple(rng.randint(0, 6) for _ in range(3)) for _ in work]
    tangents = [(0, rng.randint(0, 40), 1), (1, rng.randint(-5, 5), 1), (rng.randint(2, 4), -rng.randint(20, 90), 1)]
    most = rng.randint(35, 80)
    d = data(work, batches=3, most=most, tangents=tangents, preference=preference)
    allowed = [
        places
        for places in itertools.product(range(3), repeat=5)
        if all(sum(w for w, p in zip(work, places, strict=True) if p == b) <= most for b in range(3))
    ]
    found = solve(d)
    if not allowed:
        assert found is None
    else:
        assert tuple(found) in allowed
        assert cost(d, found) == min(cost(d, p) for p in allowed)


def test_names_in_the_exported_model_are_readable():
    text = str(PackingModel(data([3, 3])).model)
    for name in ("in[1,0]", "used[1]", "time[0]"):
        assert name in text
