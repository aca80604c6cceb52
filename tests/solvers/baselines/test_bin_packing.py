import numpy as np
from helpers.drawn import seeds

from cappuccino.solvers.baselines.bin_packing import pack_steps
from cappuccino.solvers.baselines.grouped import deal


def packed(lengths, steps, groups, capacity, stages=1, padded=False):
    arrays = (np.array(x) for x in (lengths, steps, groups))
    return pack_steps(*arrays, capacity, stages, padded).tolist()


def test_first_fit_fullest_first():
    # 5 | 4 + 2: the second is fuller and runs first
    assert packed([5, 4, 2], [0] * 3, [0] * 3, 6) == [1, 0, 0]


def test_the_last_micro_batch_takes_what_it_has_room_for():
    # group 0 leaves a micro-batch of 5 with room for the 1 of group 1, not for its 3
    assert packed([5, 4, 2, 3, 1], [0] * 5, [0, 0, 0, 1, 1], 6) == [1, 0, 0, 2, 1]
    # all of group 1 fits
    assert packed([3, 2, 1], [0] * 3, [0, 1, 1], 6) == [0, 0, 0]


def test_steps_of_a_group_stay_apart():
    # step 1 of group 0 follows group 1's micro-batch: with one stage it may join it, with two that is too close
    assert packed([1, 6, 1], [0, 0, 1], [0, 1, 0], 7, stages=1) == [0, 0, 1]
    assert packed([1, 7, 1], [0, 0, 1], [0, 1, 0], 8, stages=1) == [0, 0, 1]
    assert packed([2, 7, 1], [0, 0, 1], [0, 1, 0], 8, stages=1) == [0, 1, 1]
    assert packed([2, 7, 1], [0, 0, 1], [0, 1, 0], 8, stages=2) == [0, 1, 2]


def test_one_group_never_shares_a_micro_batch_between_steps():
    assert packed([1, 1, 1], [0, 1, 2], [0, 0, 0], 100) == [0, 1, 2]


def test_padding_counts():
    # 3 + 3 padded for 3 and 2; a third sample would make 9
    assert packed([3, 2, 1], [0] * 3, [0] * 3, 6, padded=True) == [0, 0, 1]
    assert packed([3, 2, 1], [0] * 3, [0] * 3, 9, padded=True) == [0, 0, 0]


def test_a_sample_above_the_capacity_stands_alone():
    assert packed([9, 2, 1], [0] * 3, [0] * 3, 4) == [0, 1, 1]


@seeds(20)
def test_capacity_and_distance_hold(seed):
    rng = np.random.default_rng(seed)
    padded, stages, capacity = bool(seed % 2), 1 + seed % 4, int(rng.integers(5, 60))
    length, step, group = rng.integers(1, 20, 120), rng.integers(0, 4, 120), rng.integers(0, 3, 120)
    by_step = np.lexsort((-length, group, step))
    length, step, group = length[by_step], step[by_step], group[by_step]
    rank = pack_steps(length, step, group, capacity, stages, padded)
    assert set(rank.tolist()) == set(range(rank.max() + 1))
    for r in range(rank.max() + 1):
        members = length[rank == r]
        tokens = len(members) * members.max() if padded else members.sum()
        assert tokens <= capacity or len(members) == 1
        assert len({(g, s) for g, s in zip(group[rank == r], step[rank == r], strict=True)}) == len(
            set(group[rank == r])
        )
    for g in range(3):
        for s in range(1, 4):
            before, after = rank[(group == g) & (step == s - 1)], rank[(group == g) & (step == s)]
            if len(before) and len(after):
                assert before.max() < after.min()
                shared = set(after.tolist()) & set(rank[group != g].tolist())
                assert all(r - before.max() >= stages for r in shared if r == after.min())


def test_adapters_are_dealt_to_and_fro():
    assert deal(np.array([9.0, 8.0, 7.0, 1.0]), 2).tolist() == [0, 1, 1, 0]
    assert deal(np.array([1.0, 9.0, 8.0]), 2).tolist() == [1, 0, 1]
    assert deal(np.array([1.0, 2.0]), 1).tolist() == [0, 0]
