import numpy as np
from helpers.baseline_instances import with_micro_batches
from helpers.builders import make_costs, make_instance, make_problem

from cappuccino.costs import SmoothMaximum
from cappuccino.solvers.baselines.packed_batches import Contents, group_times, packed_batches, v_shape


def test_v_shape():
    # sorted: 1 2 3 4 5; from the left 1, 3, 5, from the right 2, 4
    assert v_shape(np.array([5.0, 1.0, 4.0, 2.0, 3.0])).tolist() == [2, 0, 3, 4, 1]
    assert v_shape(np.array([7.0])).tolist() == [0]


def test_times_of_groups():
    # 3 s a token; 16 GiB hold 3 tokens
    problem = make_problem(make_instance(([1, 2, 3], 3)), make_costs(usable=16.0), 1)
    batch = Contents.of(np.array([1, 2, 3]), np.array([0, 1, 2]))
    assert group_times(problem, batch).tolist() == [[3, 9], [6, np.inf], [9, np.inf]]


def test_times_of_padded_groups():
    # of 1 + 2 tokens: 2 x 2, 3 s each; of all three 9 tokens; 22 GiB hold 6 tokens
    problem = make_problem(make_instance(([1, 2, 3], 3), layout="padded"), make_costs(usable=22.0), 1)
    batch = Contents.of(np.array([1, 2, 3]), np.array([0, 1, 2]))
    assert group_times(problem, batch).tolist() == [[3, 12], [6, 18], [9, np.inf]]


def test_batches_are_packed_ordered_and_flushed():
    # two adapters of two steps, each with samples of 2 and 4 tokens. Sorted: 2, 2, 4, 4 take 6, 6, 12, 12 s, and times
    # add up, so four groups are best: (12 + 36) 5 / 4 = 60, against 64 of {2, 2}, {4}, {4}. In V shape: 6, 12, 12, 6
    instance = make_instance(([2, 4], 2, 2), ([4, 2], 2, 2))
    replica = packed_batches(make_problem(instance, make_costs(), 2))
    order = [b.samples for b in replica.schedule().order]
    assert order[:4] == [((0, 0),), ((0, 1),), ((1, 0),), ((1, 1),)]
    assert order[4:] == [((0, 2),), ((0, 3),), ((1, 2),), ((1, 3),)]
    assert replica.operations.tolist()[0] == [0, 1, ~0, 2, ~1, 3, ~2, ~3, 4, 5, ~4, 6, ~5, 7, ~6, ~7]


def test_a_floor_makes_groups_larger():
    # 10 + 20 s up to 10 tokens: one group (30 + 30) 2 = 120, two (30 + 60) 3 / 2 = 135; it passes in 10 + 10 + 20 + 20
    costs = make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 64.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 64.0))
    replica = packed_batches(make_problem(make_instance(([1, 1], 2)), costs, 2))
    assert replica.count == 1
    assert replica.makespan_s == 60


def test_an_adapter_with_more_steps_has_its_last_batches_alone():
    instance = with_micro_batches(make_instance(([1], 1, 1), ([1], 1, 3)), 1, 1)
    order = [b.samples for b in packed_batches(make_problem(instance, make_costs(), 1)).schedule().order]
    assert order[-2:] == [((1, 1),), ((1, 2),)]
