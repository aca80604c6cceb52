"""The four baselines as plans: times by hand on tiny instances, and the checker's word on random ones."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.baseline_instances import random_instance, replicas_of, with_micro_batches
from helpers.builders import make_costs, make_instance
from helpers.naive import is_valid

from cappuccino.checker import check
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.solvers.baselines import BASELINES, baseline_plan

DEEP = make_costs(stages=(2,), usable=20.0)
"""One stage does not fit (twice the static memory of two, and a margin); two hold micro-batches of up to 5 tokens."""
FLAT = {
    "forward": SmoothMaximum(10.0, 1.0, 0.0, 64.0),
    "backward": SmoothMaximum(20.0, 2.0, 0.0, 64.0),
}
"""10 + 20 s up to 10 tokens, then 1 + 2 s a token."""


def made(name: str, instance: Instance, costs: CostModel) -> Plan:
    return baseline_plan(name, instance, {"x": costs})


def test_the_names():
    assert BASELINES == ("sequential", "mlora", "reference", "grouped")
    with pytest.raises(ValueError, match="best"):
        baseline_plan("best", make_instance(([1], 1)), {"x": make_costs()})


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("seed", range(16))
def test_plans_of_random_instances_are_valid(name, seed):
    instance, costs = random_instance(seed)
    plan = baseline_plan(name, instance, costs)
    assert check(plan, instance, costs).violations == ()
    assert is_valid(plan, instance, costs)
    assert plan.lower_bound is None
    assert plan.solver["baseline"] == name


@pytest.mark.parametrize("name", BASELINES)
def test_plans_are_repeatable(name):
    instance, costs = random_instance(3)
    first, second = (baseline_plan(name, instance, costs) for _ in range(2))
    assert first.replicas == second.replicas


@pytest.mark.parametrize("name", BASELINES)
def test_an_adapter_that_fits_nowhere_is_named(name):
    instance = replace(make_instance(([10], 1), ([2], 1), gpus=2), source="i.json")
    with pytest.raises(InfeasibleError, match=r'i\.json: adapters\[0\] "a0" fits nowhere.*GPU'):
        made(name, instance, make_costs(usable=14.0))


# sequential


def test_sequential_flushes_at_every_step():
    # a step of two tokens on two stages takes 9 s (F0 0-1, F1 1-2, B0 4-6, B1 7-9 on stage 0), two steps 18 s
    plan = made("sequential", make_instance(([1, 1], 2, 2), gpus=2), DEEP)
    assert (plan.gpu_time_s, plan.makespan_s) == (36, 18)
    assert [op for op in plan.replicas[0].programs[0] if op[0] != "S"] == [
        *[("F", 0), ("F", 1), ("B", 0), ("B", 1)],
        *[("F", 2), ("F", 3), ("B", 2), ("B", 3)],
    ]


def test_sequential_uses_the_jobs_own_micro_batches():
    # two tokens in one micro-batch: 2 + 2 + 4 + 4
    plan = made("sequential", with_micro_batches(make_instance(([1, 1], 2), gpus=2), 2), DEEP)
    assert plan.makespan_s == 12


def test_sequential_runs_side_by_side_what_the_pool_admits():
    # 18 s each, 36 GPU-s each: one after the other on 2 GPUs, side by side on 4
    jobs = [([1, 1], 2, 2)] * 2
    narrow = made("sequential", make_instance(*jobs, gpus=3), DEEP)
    assert (narrow.gpu_time_s, narrow.makespan_s) == (72, 36)
    assert replicas_of(narrow) == [("x", 2, ("a0", "a1"))]
    forwards = [op[1] for op in narrow.replicas[0].programs[0] if op[0] == "F"]
    owners = [narrow.replicas[0].micro_batches[m].samples[0][0] for m in forwards]
    assert owners == [0] * 4 + [1] * 4
    wide = made("sequential", make_instance(*jobs, gpus=4), DEEP)
    assert (wide.gpu_time_s, wide.makespan_s) == (72, 18)
    assert replicas_of(wide) == [("x", 2, ("a0",)), ("x", 2, ("a1",))]


def test_sequential_gives_every_adapter_its_least_depth_where_there_is_room():
    # one stage holds 2 tokens, two hold 5. a0: 6 GPU-s on one, (2 + 2 + 4 + 4) x 2 on two; a1: (5 + 5 + 10 + 10) x 2
    costs = replace(make_costs(stages=(1, 2), usable=20.0), memory={1: MemoryModel(16, 1, 1), 2: MemoryModel(10, 1, 1)})
    jobs = [([2], 1), ([5], 1)]
    apart = made("sequential", make_instance(*jobs, gpus=3), costs)
    assert replicas_of(apart) == [("x", 1, ("a0",)), ("x", 2, ("a1",))]
    assert apart.gpu_time_s == 66
    together = made("sequential", make_instance(*jobs, gpus=2), costs)
    assert replicas_of(together) == [("x", 2, ("a0", "a1"))]
    assert (together.gpu_time_s, together.makespan_s) == (84, 42)


def test_sequential_takes_the_cheaper_pool():
    # a0 fits y only; a1 takes 6 s on x, 4 s on y, where a0 and a1 take turns: 20 + 4 s
    fast = make_costs(gpu="y", forward=SmoothMaximum(0.0, 0.5, 0.0, 2.0), backward=SmoothMaximum(0.0, 1.5, 0.0, 2.0))
    instance = make_instance(([10], 1), ([2], 1), gpus={"x": 1, "y": 1})
    plan = baseline_plan("sequential", instance, {"x": make_costs(usable=14.0), "y": fast})
    assert replicas_of(plan) == [("y", 1, ("a0", "a1"))]
    assert plan.gpu_time_s == 24


# mlora


def test_mlora_fills_the_bubbles_of_one_adapter_with_another():
    # 2 steps of one token each. Stage 0: F0 0-1, F1 1-2, B0 4-6, F2 6-7, B1 7-9, F3 9-10, B2 10-12, B3 13-15;
    # stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7, F2 7-8, B2 8-10, F3 10-11, B3 11-13. Alone each would take 12 s
    plan = made("mlora", make_instance(([1], 1, 2), ([1], 1, 2), gpus=4), DEEP)
    assert (plan.gpu_time_s, plan.makespan_s) == (30, 15)
    assert replicas_of(plan) == [("x", 2, ("a0", "a1"))]


def test_mlora_does_not_pack():
    plan = made("mlora", make_instance(*[([1, 1], 2)] * 3, gpus=1), make_costs(**FLAT))
    assert all(len(batch.samples) == 1 for batch in plan.replicas[0].micro_batches)
    assert plan.gpu_time_s == pytest.approx(6 * 30)


def test_mlora_takes_more_replicas_where_the_makespan_shrinks_at_equal_cost():
    # on one stage nothing is gained by sharing
    plan = made("mlora", make_instance(([2], 1), ([2], 1), ([4], 1), gpus=4), make_costs())
    assert (plan.gpu_time_s, plan.makespan_s) == (24, 12)
    assert len(plan.replicas) >= 2


def test_mlora_keeps_as_many_adapters_in_flight_as_its_own_executor():
    # 30 s as in test_eager.py; 1F1B takes 33: F2 only enters after B0, at 24
    plan = made(
        "mlora", make_instance(([4], 1), ([1], 1), ([1], 1), ([1], 1), gpus=2), make_costs(stages=(2,), usable=25.0)
    )
    assert (plan.replicas[0].num_stages, plan.makespan_s) == (2, 30)


# reference


def test_reference_packs_a_batch_of_launch_bound_work():
    # DEEP's memory, flat times: one group of two tokens (30 + 30) 2 = 120 against (30 + 60) 3 / 2; 10 + 10 + 20 + 20 s
    costs = make_costs(stages=(2,), usable=20.0, **FLAT)
    plan = made("reference", make_instance(([1, 1], 2, 2), gpus=2), costs)
    assert plan.gpu_time_s == pytest.approx(2 * 2 * 60)
    assert len(plan.replicas[0].micro_batches) == 2


def test_reference_gives_each_cluster_a_replica():
    rng = np.random.default_rng(0)
    jobs = [((rng.integers(1, 4, 8) + 90 * (i % 2)).tolist(), 4) for i in range(4)]
    instance = replace(make_instance(*jobs, gpus=8), max_sequence_length=100)
    assert [r.adapters for r in made("reference", instance, make_costs()).replicas] == [("a0", "a2"), ("a1", "a3")]
    # two replicas of two stages do not fit 3 GPUs
    plan = made("reference", replace(instance, gpu_pools=make_instance(*jobs, gpus=3).gpu_pools), deep_for_long())
    assert replicas_of(plan) == [("x", 2, ("a0", "a1", "a2", "a3"))]


def test_reference_puts_clusters_where_they_fit():
    # only y has the memory for a0; a1 takes 6 s on either type, and y is taken
    instance = replace(make_instance(([10], 1), ([2], 1), gpus={"x": 1, "y": 1}), max_sequence_length=20)
    plan = baseline_plan("reference", instance, {"x": make_costs(usable=14.0), "y": make_costs(gpu="y")})
    assert replicas_of(plan) == [("y", 1, ("a0",)), ("x", 1, ("a1",))]


def deep_for_long() -> CostModel:
    """Two stages hold 100 tokens, one holds nothing."""
    return make_costs(stages=(2,), usable=210.0, memory=MemoryModel(150.0, 0.3, 0.3))


def test_reference_adds_gpus_while_that_saves_gpu_time():
    # 8 samples of one token, stage times 1/g of 10 + 20 s. One stage holds 2 tokens: four groups, 120 GPU-s. Two hold
    # 8: one group, (15 + 15) s x 2. Three: one group, 3 x 10 s x 3 = 90
    costs = replace(
        make_costs(stages=(1, 2), usable=30.0, **FLAT),
        stage_forward={},
        stage_backward={},
        memory={1: MemoryModel(26, 1, 1), 2: MemoryModel(10, 1, 1)},
    )
    plan = made("reference", make_instance(([1] * 8, 8), gpus=4), costs)
    assert plan.replicas[0].num_stages == 2
    assert plan.gpu_time_s == pytest.approx(60)
    assert made("reference", make_instance(([1] * 8, 8), gpus=1), costs).gpu_time_s == pytest.approx(120)


# grouped


def test_grouped_alternates_the_steps_of_groups():
    # as mlora above: 15 s; both in one group would flush: 2 x 9 s with a micro-batch each, 2 x 12 s in one
    plan = made("grouped", make_instance(([1], 1, 2), ([1], 1, 2), gpus=2), DEEP)
    assert (plan.gpu_time_s, plan.makespan_s) == (30, 15)


def test_grouped_packs_of_launch_bound_work():
    # 4 tokens of both adapters in one micro-batch of 30 s, twice
    plan = made("grouped", make_instance(([1, 1], 2, 2), ([1, 1], 2, 2), gpus=1), make_costs(**FLAT))
    assert plan.gpu_time_s == pytest.approx(60)
    assert len(plan.replicas[0].micro_batches) == 2
