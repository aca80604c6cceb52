"""Bounds against the optimum over all packings and all orders, found by exhaustion."""

import numpy as np
import pytest
from helpers.builders import (
    make_costs,
    make_instance,
    make_problem,
    with_adapters,
    with_evaluations,
    with_unlike_stages,
)
from helpers.exhaustive import least_makespan

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum
from cappuccino.instance import Instance

SHAPES = [  # (global batch size, steps) by adapter: at most 4 samples
    [(1, 1)], [(2, 1)], [(3, 1)], [(1, 2)], [(2, 2)], [(1, 3)],
    [(1, 1), (1, 1)], [(2, 1), (1, 1)], [(1, 2), (1, 1)], [(1, 2), (1, 2)], [(1, 1), (1, 1), (1, 1)],
]  # fmt: skip


def random_case(seed: int) -> tuple[Instance, CostModel, int]:
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    jobs = [(rng.integers(1, 10, size=b * j).tolist(), b, j) for b, j in shape]
    floor = float(rng.choice([0.0, 3.0, 12.0]))
    forward = SmoothMaximum(floor, 1.0, float(rng.choice([0.0, 0.1])), float(rng.choice([1.0, 2.0, 8.0])))
    backward = SmoothMaximum(2 * floor, 2.0, float(rng.choice([0.0, 0.3])), 4.0)
    memory = MemoryModel(10.0, float(rng.choice([0.0, 1.0])), float(rng.choice([0.5, 1.0])))
    costs = make_costs(
        usable=float(rng.choice([18.0, 24.0, 32.0, 1000.0])),
        optimizer_s=float(rng.choice([0.0, 1.5])),
        transfer=(float(rng.choice([0.0, 1.0])), float(rng.choice([0.0, 0.25]))),
        forward=forward,
        backward=backward,
        memory=memory,
    )
    instance = make_instance(*jobs, layout="padded" if rng.random() < 0.2 else "packed")
    if seed % 3 == 1:
        instance, costs = with_adapters(instance, costs, seed)
    if seed % 5 >= 3:
        costs = with_unlike_stages(costs, seed)
    if seed % 7 == 4 and sum(b * j for b, j in shape) <= 3:  # there are so many ways
        instance = with_evaluations(instance, seed, most=2)
    return instance, costs, 1 + int(seed // len(SHAPES)) % 2


@pytest.mark.parametrize("first", range(0, 110, 10))
def test_no_plan_beats_the_bound(first):
    for seed in range(first, first + 10):
        instance, costs, stages = random_case(seed)
        least = least_makespan(instance, costs, stages)
        bound = make_problem(instance, costs, stages).lower_bound_s
        assert bound <= least * (1 + 1e-9), seed
        assert np.isinf(bound) == np.isinf(least), seed


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1880, 88))
def test_no_plan_beats_the_bound_on_more_instances(first):
    for seed in range(first, first + 88):
        instance, costs, stages = random_case(seed)
        bound = make_problem(instance, costs, stages).lower_bound_s
        assert bound <= least_makespan(instance, costs, stages) * (1 + 1e-9), seed


def test_the_search_finds_a_hand_computed_least_makespan():
    # one adapter, 2 samples of 1 token on 2 stages, linear times: together F 2 + 2, B 4 + 4 = 12;
    # apart F0 0-1 | F0 1-2, B0 2-4, F1 4-5 or before, B1: 1 + (1 + 2) x 2 on stage 1, then B1 back 2: 1 + 6 + 2 = 9
    instance = make_instance(([1, 1], 2))
    assert least_makespan(instance, make_costs(), 2) == 9
    assert make_problem(instance, make_costs(), 2).lower_bound_s == pytest.approx(9)


def test_bounds_of_a_single_sample_are_exact():
    # 3 tokens down and up g stages, 2 (g - 1) transfers of 0.5 + 3 x 0.5 = 2 s
    instance = make_instance(([3], 1))
    costs = make_costs(transfer=(0.5, 0.5))
    for g in (1, 2, 3):
        assert make_problem(instance, costs, g).lower_bound_s == pytest.approx(9 * g + 4 * (g - 1))


def test_path_bound_counts_steps_in_sequence():
    # 3 steps of one sample of 2 tokens on 2 stages: 3 x (6 x 2), and the optimizer's behind each
    bounds = ReplicaBounds(make_instance(([2], 1, 3)), make_costs(optimizer_s=0.5), 2, 1e6)
    assert bounds.paths.tolist() == pytest.approx([37.5])
    assert bounds.lower_bounds(np.array([[True]])).tolist() == pytest.approx([37.5])


def test_work_bound_counts_the_fewest_micro_batches_at_the_floor():
    # 4 adapters of one sample of 3 tokens; at most 6 tokens fit (10 + 6 + 6 = 22): 2 micro-batches of power 1,
    # each floor 10 + work 6 forward and 20 + 12 backward
    curve = SmoothMaximum(10.0, 1.0, 0.0, 1.0)
    costs = make_costs(usable=22.0, forward=curve, backward=curve.scaled(2.0))
    instance = make_instance(*[([3], 1)] * 4)
    bounds = ReplicaBounds(instance, costs, 1, 1e6)
    assert bounds.max_tokens == 6
    assert bounds.lower_bounds(np.ones((1, 4), dtype=bool)).tolist() == [pytest.approx(2 * (16 + 32))]


def test_samples_that_do_not_fit_have_no_finite_bound():
    instance = make_instance(([3], 1), ([8], 1))
    bounds = ReplicaBounds(instance, make_costs(usable=22.0), 1, 1e6)
    assert bounds.fits.tolist() == [True, False]
    found = bounds.lower_bounds(np.array([[True, False], [False, True], [True, True]]))
    assert np.isfinite(found).tolist() == [True, False, False]


def test_bound_is_monotone_in_the_set():
    instance = make_instance(([3, 9, 2, 4], 2), ([5, 1], 1), ([7, 2, 6], 3))
    bounds = ReplicaBounds(instance, make_costs(forward=SmoothMaximum(4.0, 1.0, 0.01, 3.0)), 2, 1e6)
    sets = np.array([[bool(k >> i & 1) for i in range(3)] for k in range(1, 8)])
    found = bounds.lower_bounds(sets)
    for i, small in enumerate(sets):
        for k, large in enumerate(sets):
            if (small <= large).all():
                assert found[i] <= found[k] * (1 + 1e-9)


def random_space(seed: int) -> tuple[ReplicaBounds, np.random.Generator]:
    """Return the bounds of up to 6 adapters on one place, with floors, squares, tight memory and the padded layout."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    jobs = [
        (rng.integers(1, 40, size=int(rng.integers(1, 13))).tolist(), int(rng.integers(1, 5)), int(rng.integers(1, 4)))
        for _ in range(count)
    ]
    floor = float(rng.choice([0.0, 5.0, 40.0]))
    costs = make_costs(
        usable=float(rng.choice([60.0, 90.0, 150.0, 1000.0])),
        optimizer_s=float(rng.choice([0.0, 1.5])),
        transfer=(float(rng.choice([0.0, 1.0])), float(rng.choice([0.0, 0.25]))),
        forward=SmoothMaximum(floor, 1.0, float(rng.choice([0.0, 0.05])), float(rng.choice([1.0, 2.0, 8.0]))),
        backward=SmoothMaximum(2 * floor, 2.0, float(rng.choice([0.0, 0.1])), 4.0),
    )
    instance = make_instance(*jobs, layout="padded" if rng.random() < 0.2 else "packed")
    stages = int(rng.integers(1, 5))
    if seed % 3 == 1:
        instance, costs = with_adapters(instance, costs, seed)
    if seed % 5 >= 3:
        costs = with_unlike_stages(costs, seed)
    if seed % 4 == 1:
        instance = with_evaluations(instance, seed)
    return ReplicaBounds(instance, costs, stages, 1e6), rng


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_the_additive_bound_is_never_above_the_other(first):
    for seed in range(first, first + 50):
        bounds, rng = random_space(seed)
        members = rng.integers(0, 4, size=(40, len(bounds.instance.adapters)))
        members = members[members.any(axis=1)]
        additive, full = bounds.additive(members), bounds.lower_bounds(members)
        assert (np.isinf(additive) == np.isinf(full)).all(), seed
        assert (additive <= full * (1 + 1e-9))[np.isfinite(full)].all(), seed


def test_an_adapter_held_twice_counts_as_two_adapters():
    samples = [3, 9, 2, 4]
    curve = SmoothMaximum(4.0, 1.0, 0.01, 3.0)
    costs = make_costs(usable=40.0, forward=curve, backward=curve.scaled(2.0), optimizer_s=1.0)
    once = ReplicaBounds(make_instance((samples, 2), ([5, 1], 1)), costs, 2, 1e6)
    twice = ReplicaBounds(make_instance((samples, 2), (samples, 2), ([5, 1], 1)), costs, 2, 1e6)
    assert once.lower_bounds(np.array([[2, 1]])) == pytest.approx(twice.lower_bounds(np.array([[1, 1, 1]])))
    # the tangents touch elsewhere, but a set of one kind is all that there is either way
    alone, pair = (ReplicaBounds(make_instance(*[(samples, 2)] * n), costs, 2, 1e6) for n in (1, 2))
    assert alone.additive(np.array([[2]])) == pytest.approx(pair.additive(np.array([[1, 1]])))


def test_shares_add_up_to_the_fewest_micro_batches():
    # 4 samples of 3 tokens, at most 6 tokens fit: 2 micro-batches of power 1, each floor 10 + 6 forward, 20 + 12 back;
    # a quarter of it each; on 2 stages a head of one sample down and up: 3 + 10 and 6 + 20
    curve = SmoothMaximum(10.0, 1.0, 0.0, 1.0)
    costs = make_costs(usable=22.0, forward=curve, backward=curve.scaled(2.0))
    instance = make_instance(*[([3], 1)] * 4)
    one, two = ReplicaBounds(instance, costs, 1, 1e6), ReplicaBounds(instance, costs, 2, 1e6)
    assert one.shares == pytest.approx([24.0] * 4)
    assert (one.ramp_s, two.ramp_s) == (0.0, pytest.approx(39.0))
    assert one.additive(np.ones((1, 4), dtype=bool)).tolist() == [pytest.approx(96.0)]


def test_shares_count_optimizer_steps():
    # one stage has all three; of two, the last has two before the last B goes up, and the first one behind it
    instance, costs = make_instance(([2], 1, 3)), make_costs(optimizer_s=0.5)
    one, two = (ReplicaBounds(instance, costs, g, 1e6) for g in (1, 2))
    assert one.shares.tolist() == [pytest.approx(3 * 6 + 3 * 0.5)]
    assert one.ramp_s == 0
    assert two.shares.tolist() == [pytest.approx(3 * 6 + 2 * 0.5)]
    assert two.ramp_s == pytest.approx(6 + 0.5)


def test_optimizer_steps_that_end_on_the_last_stage():
    # four adapters of one sample of 1 token on two stages: down 1, 4 x 3, and four steps of 10 on the last stage
    bounds = ReplicaBounds(make_instance(*[([1], 1, 1)] * 4), make_costs(optimizer_s=10.0), 2, 1e6)
    assert bounds.lower_bounds(np.ones((1, 4), dtype=int)).tolist() == pytest.approx([1 + 12 + 40])


def test_adapters_that_do_not_fit_have_infinite_shares():
    bounds = ReplicaBounds(make_instance(([3], 1), ([8], 1)), make_costs(usable=22.0), 1, 1e6)
    assert np.isfinite(bounds.shares).tolist() == [True, False]
    assert np.isfinite(bounds.additive(np.array([[1, 0], [0, 1], [1, 1]]))).tolist() == [True, False, False]


def test_few_adapters_of_many_need_only_their_own_statistics():
    instance = make_instance(*[([n, n + 1], 2) for n in range(1, 10)])
    members = np.zeros((1, 9), dtype=bool)
    members[0, [2, 5]] = True
    fresh = ReplicaBounds(instance, make_costs(), 2, 1e6)
    used = ReplicaBounds(instance, make_costs(), 2, 1e6)
    used.lower_bounds(np.ones((1, 9), dtype=bool))
    assert fresh.lower_bounds(members) == pytest.approx(used.lower_bounds(members))
    assert "_steps" not in fresh.__dict__


@pytest.mark.parametrize("seed", range(0, 66, 3))
def test_bounds_that_look_at_fewer_packings_are_weaker_at_most(seed):
    instance, costs, stages = random_case(seed)
    everyone = np.ones((1, len(instance.adapters)))
    full = ReplicaBounds(instance, costs, stages, 1e6).lower_bounds(everyone)
    for steps in (0, 1, 2):
        few = ReplicaBounds(instance, costs, stages, 1e6, packed_steps=steps).lower_bounds(everyone)
        assert np.isinf(few) == np.isinf(full)
        assert few <= full * (1 + 1e-12) or np.isinf(full)


def test_samples_that_fill_the_memory_run_one_after_the_other():
    # 22 GiB for samples, 1 a token worked on and 1 a token held; each of 10 tokens is worked on for 30 s on the first
    # stage, and held for 60: no two run there at once, and the bound comes near to 6 x 60 s
    instance = make_instance(([10] * 6, 6))
    costs = make_costs(usable=32.0, memory=MemoryModel(10.0, 1.0, 1.0))
    bounds = ReplicaBounds(instance, costs, 2, 1e6)
    taken = 6 * 10 * (30 + 60) / 22
    assert bounds.lower_bounds(np.ones((1, 1)))[0] == pytest.approx(taken)
    assert bounds.additive(np.ones((1, 1)))[0] == pytest.approx(taken)
    assert taken > 6 * 30 + 10  # what the busier stage takes
