from dataclasses import replace

import numpy as np
from builders import make_instance

from cappuccino.solvers.kinds import AdapterKinds


def test_equal_samples_in_equal_steps_are_one_kind():
    # a1 has the lengths of a0 in other steps, a2 and a4 are like a0, a3 is longer, a5 waits for gradient norms
    same = ([3, 5, 4, 2], 2)
    instance = make_instance(same, ([3, 5, 4, 2], 4), same, ([3, 5, 4, 2, 9, 9], 2), same, same, clipped=(5,))
    kinds = AdapterKinds.of(instance)
    assert kinds.members == ((0, 2, 4), (1,), (3,), (5,))
    assert kinds.counts.tolist() == [3, 1, 1, 1]
    assert kinds.representatives == [0, 1, 3, 5]
    assert kinds.of_adapter.tolist() == [0, 1, 0, 2, 0, 3]


def test_what_costs_do_not_depend_on_does_not_tell_kinds_apart():
    instance = make_instance(([3, 5], 1), ([3, 5], 1))
    first, second = instance.adapters
    varied = second.model_copy(update={"rank": 64, "learning_rate": 1e-3, "micro_batch_size": 4})
    assert AdapterKinds.of(replace(instance, adapters=(first, varied))).members == ((0, 1),)


def test_sets_stand_for_all_with_as_many_of_each_kind():
    kinds = AdapterKinds(((0, 2, 4), (1, 3)))
    assert kinds.adapters(np.array([2, 1])) == (0, 1, 2)
    assert kinds.adapters(np.array([0, 2])) == (1, 3)
    assert kinds.numbers([(0, 1, 2), (4, 1), (3,)]).tolist() == [[2, 1], [1, 1], [0, 1]]


def test_all_sets_and_their_ranks():
    kinds = AdapterKinds(((0, 2, 4), (1, 3)))
    sets = kinds.all_sets()
    assert len(sets) == kinds.number_of_sets == 4 * 3 - 1
    assert len({tuple(s) for s in sets.tolist()}) == len(sets)
    assert (sets.sum(axis=1) > 0).all() and (sets <= kinds.counts).all()


def test_adapters_that_are_all_different_have_the_usual_subsets():
    kinds = AdapterKinds(tuple((i,) for i in range(5)))
    assert kinds.number_of_sets == 31
    assert {kinds.adapters(s) for s in kinds.all_sets()} == {
        tuple(i for i in range(5) if number >> i & 1) for number in range(1, 32)
    }
