from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import BACKWARD, FORWARD, make_costs, make_instance

from cappuccino.backbone import LayerShape
from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.instance import Adapter
from cappuccino.solvers.allocation.adapter_classes import AdapterClasses
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import build_schedule


def kinds_of(instance, costs, depths=(1, 2)):
    return AdapterClasses.of(instance, [costs.adapter_costs(g, instance.adapters) for g in depths])


def test_equal_samples_in_equal_steps_are_one_kind():
    # a1 has the lengths of a0 in other steps, a2 and a4 are like a0, a3 is longer, a5 waits for gradient norms
    same = ([3, 5, 4, 2], 2)
    instance = make_instance(same, ([3, 5, 4, 2], 4), same, ([3, 5, 4, 2, 9, 9], 2), same, same, clipped=(5,))
    kinds = kinds_of(instance, make_costs())
    assert kinds.members == ((0, 2, 4), (1,), (3,), (5,))
    assert kinds.counts.tolist() == [3, 1, 1, 1]
    assert kinds.representatives == [0, 1, 3, 5]
    assert kinds.of_adapter.tolist() == [0, 1, 0, 2, 0, 3]


def test_data_sets_that_begin_alike_are_one_kind_as_far_as_they_are_used():
    instance = make_instance(([3, 5, 4, 2], 2, 2), ([3, 5, 4, 2, 9, 9], 2, 2))
    assert kinds_of(instance, make_costs()).members == ((0, 1),)


def test_what_costs_do_not_depend_on_does_not_tell_kinds_apart():
    instance = make_instance(([3, 5], 1), ([3, 5], 1))
    first, second = instance.adapters
    varied = second.model_copy(update={"rank": 64, "learning_rate": 1e-3, "micro_batch_size": 4})
    assert kinds_of(replace(instance, adapters=(first, varied)), make_costs()).members == ((0, 1),)


@pytest.mark.parametrize("depth", [1, 2])
def test_ranks_that_costs_read_at_any_depth_tell_kinds_apart(depth):
    charged = replace(FORWARD, per_parameter_s=0.1)
    shape = LayerShape(hidden=4, intermediate=8, query=4, key_value=2)
    costs = make_costs()
    costs = replace(costs, stage_forward={**costs.stage_forward, depth: charged}, layer_shape=shape)
    instance = make_instance(([3, 5], 1), ([3, 5], 1), ([3, 5], 1))
    first, second, third = instance.adapters
    sweep = (first, second.model_copy(update={"rank": 64}), third.model_copy(update={"learning_rate": 1e-3}))
    assert kinds_of(replace(instance, adapters=sweep), costs).members == ((0, 2), (1,))


def test_adapters_of_one_kind_cost_alike_whatever_field_of_theirs_differs():
    # every field that there is, so that a new one which costs read cannot be forgotten
    others = {
        "name": "b", "dataset": "d1", "global_batch_size": 4, "micro_batch_size": 2, "num_steps": 1, "rank": 64,
        "alpha": 8.0, "dropout": 0.1, "target_modules": "all-linear", "learning_rate": 1e-3, "weight_decay": 0.1,
        "lr_scheduler": "linear", "warmup_steps": 1, "max_grad_norm": 1.0, "seed": 7, "epochs": 0.5,
        "eval_dataset": "d1", "eval_every": 1, "early_stopping_patience": 2, "early_stopping_threshold": 0.1,
    }  # fmt: skip
    assert others.keys() == Adapter.model_fields.keys()
    rates = {"per_module_s": 0.3, "per_width_s": 0.01, "per_parameter_s": 0.005}
    curves = {"forward": replace(FORWARD, floor_s=1.0, **rates), "backward": replace(BACKWARD, **rates)}
    costs = make_costs(**curves, optimizer_s=0.5, transfer=(1.0, 0.5))
    costs = replace(costs, layer_shape=LayerShape(hidden=4, intermediate=8, query=4, key_value=2))
    plain = make_instance(([3, 5, 7, 2], 2), ([3, 6, 7, 2], 2))
    told_apart = set()
    for field, value in others.items():
        first, named = plain.adapters[0], plain.adapters[0].model_copy(update={"name": "a1"})
        pair = replace(plain, adapters=(first, named.model_copy(update={field: value})))
        if len(kinds_of(pair, costs).members) > 1:
            told_apart.add(field)
            continue
        one, other = (_costs_alone(pair, costs, i) for i in range(2))
        np.testing.assert_array_equal(one, other)
    expected = {"dataset", "global_batch_size", "num_steps", "epochs", "rank", "target_modules", "max_grad_norm"}
    assert told_apart == {*expected, "eval_dataset"}
    evaluated = [a.model_copy(update={"eval_dataset": "d1"}) for a in plain.adapters]
    often = evaluated[0].model_copy(update={"name": "a1", "dataset": "d0", "eval_every": 1})
    assert len(kinds_of(replace(plain, adapters=(evaluated[0], often)), costs).members) == 2


def _costs_alone(instance, costs, adapter):
    """All figures of the adapter alone, in two depths: its micro-batches, one sample each, a schedule, its bounds."""
    figures = []
    for g in (1, 2):
        problem = ReplicaProblem(instance, costs, (adapter,), g, 1e6)
        for n in range(problem.lengths[0].size):
            batch = problem.batch([(0, n)])
            figures += [batch.tokens, *batch.forward_s, *batch.backward_s, batch.transfer_s]
        one_by_one = [op for k in range(problem.lengths[0].size) for op in (k, ~k)]
        order = [problem.batch([(0, n)]) for n in range(problem.lengths[0].size)]
        schedule = build_schedule(problem, order, [one_by_one] * g)
        figures += [schedule.makespan_s, *schedule.peak_memory_gib, problem.max_tokens, problem.held_room_gib]
        alone = ReplicaBounds(instance.subset([adapter]), costs, g, 1e6)
        figures += [*alone.paths, *alone.shares, *alone.work(np.ones((1, 1), dtype=int)), alone.max_tokens]
        figures += [alone.ramp_s, int(problem.adapter_costs.clipped.sum())]
    return figures


def test_sets_stand_for_all_with_as_many_of_each_kind():
    kinds = AdapterClasses(((0, 2, 4), (1, 3)))
    assert kinds.adapters(np.array([2, 1])) == (0, 1, 2)
    assert kinds.adapters(np.array([0, 2])) == (1, 3)
    assert kinds.numbers([(0, 1, 2), (4, 1), (3,)]).tolist() == [[2, 1], [1, 1], [0, 1]]


def test_all_sets_and_their_ranks():
    kinds = AdapterClasses(((0, 2, 4), (1, 3)))
    sets = kinds.all_sets()
    assert len(sets) == kinds.number_of_sets == 4 * 3 - 1
    assert len({tuple(s) for s in sets.tolist()}) == len(sets)
    assert (sets.sum(axis=1) > 0).all() and (sets <= kinds.counts).all()


def test_adapters_that_are_all_different_have_the_usual_subsets():
    kinds = AdapterClasses(tuple((i,) for i in range(5)))
    assert kinds.number_of_sets == 31
    assert {kinds.adapters(s) for s in kinds.all_sets()} == {
        tuple(i for i in range(5) if number >> i & 1) for number in range(1, 32)
    }
