import numpy as np
from helpers.baseline_instances import with_micro_batches
from helpers.builders import make_costs, make_instance, make_problem

from cappuccino.solvers.baselines.samples import Samples, own_micro_batches


def test_samples_are_flat_adapter_by_adapter():
    # a0: 2 steps of 2, a1: 3 steps of 1
    problem = make_problem(make_instance(([5, 6, 7], 2, 2), ([8, 9], 1, 3)), make_costs(), 1)
    samples = Samples.of(problem)
    assert samples.position.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert samples.number.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert samples.step.tolist() == [0, 0, 1, 1, 0, 1, 2]
    assert samples.step_id.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert samples.length.tolist() == [5, 6, 7, 5, 8, 9, 8]


def own(lengths, batch, size, usable=None, layout="packed"):
    instance = with_micro_batches(make_instance((lengths, batch), layout=layout), size)
    problem = make_problem(instance, make_costs(usable=usable), 1)
    return own_micro_batches(problem, Samples.of(problem)).tolist()


def test_a_step_is_cut_by_the_micro_batch_size():
    assert own([1] * 10, 5, 2) == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def test_a_micro_batch_is_cut_further_where_memory_demands():
    # 10 + 1 + 1 GiB a token: 16 GiB hold 3 tokens; the second three samples begin a micro-batch all the same
    assert own([2, 1, 1, 1, 1, 1], 6, 3, usable=16.0) == [0, 0, 1, 2, 2, 2]


def test_padding_counts_in_the_memory():
    # 1 + 2 tokens are 2 x 2 padded
    assert own([1, 2, 1], 3, 3, usable=16.0, layout="padded") == [0, 1, 2]
    assert own([1, 2, 1], 3, 3, usable=18.0, layout="padded") == [0, 0, 1]


def test_adapters_are_numbered_apart():
    instance = with_micro_batches(make_instance(([1, 1], 2), ([1, 1, 1], 3)), 1, 2)
    problem = make_problem(instance, make_costs(), 1)
    assert own_micro_batches(problem, Samples.of(problem)).tolist() == [0, 1, 0, 0, 1]
    assert np.issubdtype(Samples.of(problem).length.dtype, np.integer)
