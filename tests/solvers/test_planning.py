import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.naive import is_valid
from helpers.spaces import context_of

from cappuccino.backbone import LayerShape
from cappuccino.checker import check
from cappuccino.costs import MemoryModel, SmoothMaximum, fit_instance_costs
from cappuccino.errors import InfeasibleError, InputError
from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.lengths import read_length_distribution
from cappuccino.plan import Objective, Plan, Status
from cappuccino.prototype.formats import read_adapter_config
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.planning import PlanOptions, Progress, _meet_deadline, make_plan
from cappuccino.solvers.settings import Method, with_method

REPEATABLE = PlanOptions(time_limit_s=None, iterations=2)
FLAT = make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0))
"""10 + 20 s up to 10 tokens, then 1 + 2 s a token."""
LINEAR = make_costs()


def several(count: int = 3, seed: int = 0, **options) -> Instance:
    rng = np.random.default_rng(seed)
    jobs = [(rng.integers(1, 15, size=6).tolist(), 1 + i % 3, 2) for i in range(count)]
    return make_instance(*jobs, **options)


def content(plan: Plan) -> dict:
    data = plan.dump()
    data["solver"].pop("wall_time_s")
    data.pop("incumbents")  # which are noted depends on how fast they follow each other
    return data


@pytest.mark.parametrize("method", list(Method))
def test_a_plan_tells_how_the_search_came_to_it(method):
    options = replace(REPEATABLE, iterations=20, settings=with_method(method))
    plan = make_plan(several(), options, {"x": FLAT})
    objectives = [found.objective for found in plan.incumbents]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == pytest.approx(plan.objective_value, rel=1e-12)
    assert [found.time_s for found in plan.incumbents] == sorted(found.time_s for found in plan.incumbents)
    assert all(found.bound <= found.objective * (1 + 1e-9) for found in plan.incumbents)
    assert plan.incumbents[0].method == "allocation"
    unused = {Method.SEARCH: {"packing_window", "whole_replica", "order_window"}, Method.CP_SAT: {"annealing"}}
    assert not unused.get(method, set()) & {found.method for found in plan.incumbents}


@pytest.mark.parametrize("objective", list(Objective))
def test_plans_of_every_objective_are_valid(objective):
    instance = several(gpus={"x": 3, "y": 2}, prices={"x": 3600.0, "y": 5400.0})
    fast = replace(FLAT, gpu="y", stage_forward={g: c.scaled(0.6) for g, c in FLAT.stage_forward.items()})
    costs = {"x": FLAT, "y": fast}
    plan = make_plan(instance, replace(REPEATABLE, objective=objective), costs)
    assert check(plan, instance, costs).violations == ()
    assert is_valid(plan, instance, costs)
    assert plan.objective is objective
    assert plan.cost is not None
    assert 0 < plan.lower_bound <= plan.objective_value
    assert plan.gap == pytest.approx(1 - plan.lower_bound / plan.objective_value)
    assert plan.replicas[0].lower_bound_s <= plan.replicas[0].makespan_s


def test_adapters_of_launch_bound_work_share_a_replica():
    # two samples of 1 token cost 30 s together (to a part in 2^16) and 60 GPU-seconds apart
    instance = make_instance(([1], 1), ([1], 1))
    plan = make_plan(instance, REPEATABLE, {"x": FLAT})
    assert [r.adapters for r in plan.replicas] == [("a0", "a1")]
    assert plan.gpu_time_s == pytest.approx(30, rel=1e-3)
    assert plan.status is Status.OPTIMAL


def test_adapters_that_differ_in_rank_alone_have_savings_of_their_own():
    # on one data set: rank 1 and 64 of the same modules, work per token 1 + 0.2 and 1 + 12.8 seconds forward
    charged = {g: replace(c, per_parameter_s=0.025) for g, c in LINEAR.stage_forward.items()}
    shape = LayerShape(hidden=4, intermediate=8, query=4, key_value=2)
    costs = {"x": replace(LINEAR, stage_forward=charged, layer_shape=shape)}
    instance = make_instance(([3, 5, 4], 1), ([3, 5, 4], 1), ([3, 5, 4], 1))
    ranks = (1, 64, 1)
    adapters = [
        a.model_copy(update={"rank": r, "target_modules": ("q_proj",)})
        for a, r in zip(instance.adapters, ranks, strict=True)
    ]
    plan = make_plan(replace(instance, adapters=tuple(adapters)), REPEATABLE, costs)
    said = {name: s for r in plan.replicas for name, s in zip(r.adapters, r.savings, strict=True)}
    # 12 tokens at 3.2 and 15.8 seconds
    assert [said[f"a{i}"].alone_gpu_time_s for i in range(3)] == pytest.approx([38.4, 189.6, 38.4])
    assert [said[f"a{i}"].added_gpu_time_s for i in range(3)] == pytest.approx([38.4, 189.6, 38.4])


COST = replace(REPEATABLE, objective=Objective.COST)


def test_gpus_that_cost_nothing_are_planned_by_gpu_time():
    instance = several(gpus={"x": 4}, prices={"x": 0.0})
    plan = make_plan(instance, COST, {"x": FLAT})
    assert (plan.cost, plan.lower_bound, plan.gap, plan.status) == (0.0, 0.0, 0.0, Status.OPTIMAL)
    assert plan.gpu_time_s == make_plan(instance, REPEATABLE, {"x": FLAT}).gpu_time_s


def test_gpus_that_cost_nothing_are_used_before_rented_ones():
    costs = {"x": FLAT, "y": replace(FLAT, gpu="y")}
    instance = several(gpus={"x": 1, "y": 4}, prices={"x": 0.0, "y": 1.0})
    plan = make_plan(instance, COST, costs)
    assert (plan.cost, plan.lower_bound, {r.gpu for r in plan.replicas}) == (0.0, 0.0, {"x"})


def test_where_free_gpus_are_too_few_for_the_deadline_the_rest_is_rented():
    # three jobs of 120 s each, one of which the free GPU can do in time
    costs = {"x": LINEAR, "y": replace(LINEAR, gpu="y")}
    instance = make_instance(*[([10] * 4, 1, 4)] * 3, gpus={"x": 1, "y": 4}, prices={"x": 0.0, "y": 3600.0})
    plan = make_plan(instance, replace(COST, deadline_s=125.0), costs)
    assert check(plan, instance, costs).violations == ()
    assert plan.cost == pytest.approx(240)
    assert plan.lower_bound == pytest.approx(240)
    assert sorted(r.gpu for r in plan.replicas) == ["x", "y", "y"]


def test_where_only_free_places_are_deep_enough_a_missed_deadline_is_no_crash():
    # three jobs one after the other on three stages, a deadline that bounds allow and no schedule meets
    rng = np.random.default_rng(3)
    jobs = [(rng.integers(5, 40, size=6).tolist(), 3, 2) for _ in range(3)]
    costs = make_costs(stages=(1, 2, 3), transfer=(1.0, 0.1), optimizer_s=2.0)
    instance = make_instance(*jobs, gpus={"x": 3, "y": 2}, prices={"x": 0.0, "y": 1.0})
    options = replace(COST, num_stages=3)
    found = make_plan(instance, options, {"x": costs, "y": replace(costs, gpu="y")})
    bound = found.replicas[0].lower_bound_s
    with pytest.raises(InfeasibleError, match="deadline"):
        make_plan(instance, replace(options, deadline_s=bound * 1.0001), {"x": costs, "y": replace(costs, gpu="y")})


def test_the_shortest_plan_is_offered_where_no_other_meets_the_deadline():
    # two jobs of 120 s each, one after the other on one GPU: side by side they meet 121 s
    instance = make_instance(*[([10] * 4, 1, 4)] * 2)
    space = ReplicaSpace.of(instance, {"x": LINEAR})
    for deadline, met in ((121.0, True), (119.0, False)):
        context = context_of(space, deadline_s=deadline, iterations=1)
        assert _meet_deadline(context) is met
        assert len(context.incumbent.replicas) == (2 if met else 0)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_money_of_any_size_is_planned_alike(factor):
    def planned(prices, deadline):
        costs = {"x": FLAT, "y": replace(FLAT, gpu="y")}
        instance = several(4, gpus={"x": 3, "y": 3}, prices=prices)
        return make_plan(instance, replace(COST, deadline_s=deadline), costs)

    for deadline in (None, 400.0):
        for other in (5.0, 0.0):
            usual = planned({"x": 3.0, "y": other}, deadline)
            scaled = planned({"x": 3.0 * factor, "y": other * factor}, deadline)
            assert scaled.cost == pytest.approx(usual.cost * factor, rel=1e-6, abs=0)
            assert scaled.lower_bound == pytest.approx(usual.lower_bound * factor, rel=1e-6, abs=0)


def test_the_makespan_uses_all_gpus():
    # 10 tokens each take 30 s on a GPU of their own, 60 s on one
    instance = make_instance(([10], 1), ([10], 1), gpus=2)
    plan = make_plan(instance, replace(REPEATABLE, objective=Objective.MAKESPAN), {"x": LINEAR})
    assert plan.makespan_s == pytest.approx(30)
    assert len(plan.replicas) == 2
    assert plan.status is Status.OPTIMAL


def test_cost_prefers_the_cheaper_type():
    # y takes half the time for three times the money
    half = {g: c.scaled(0.5) for g, c in LINEAR.stage_forward.items()}
    half_back = {g: c.scaled(0.5) for g, c in LINEAR.stage_backward.items()}
    costs = {"x": LINEAR, "y": replace(LINEAR, gpu="y", stage_forward=half, stage_backward=half_back)}
    instance = make_instance(([10], 1), gpus={"x": 1, "y": 1}, prices={"x": 3600.0, "y": 10800.0})
    plan = make_plan(instance, replace(REPEATABLE, objective=Objective.COST), costs)
    assert (plan.replicas[0].gpu, plan.cost) == ("x", pytest.approx(30.0))
    plan = make_plan(instance, REPEATABLE, costs)
    assert (plan.replicas[0].gpu, plan.gpu_time_s) == ("y", pytest.approx(15.0))


def test_a_deadline_spreads_the_adapters():
    # 12 tokens each: 72 s together, 36 s apart
    instance = make_instance(([12], 1), ([12], 1), gpus=2)
    plan = make_plan(instance, replace(REPEATABLE, deadline_s=40.0), {"x": LINEAR})
    assert plan.makespan_s == pytest.approx(36)
    assert plan.deadline_s == 40.0
    assert len(plan.replicas) == 2


def test_a_deadline_before_any_plan_says_what_is_possible():
    instance = replace(make_instance(([10], 1), ([10], 1), gpus=2), source="i.json")
    with pytest.raises(
        InfeasibleError, match=r"i\.json: no plan can end within 29 s; give a deadline of at least 30 s"
    ):
        make_plan(instance, replace(REPEATABLE, deadline_s=29.0), {"x": LINEAR})


def test_the_deadline_advised_is_not_below_the_bound():
    # 4115 tokens take 12345 s
    with pytest.raises(InfeasibleError) as error:
        make_plan(make_instance(([4115], 1), gpus=1), replace(REPEATABLE, deadline_s=100.0), {"x": LINEAR})
    advised = re.search(r"at least (\S+) s", str(error.value))
    assert advised is not None
    assert float(advised[1]) >= 12345


def test_a_deadline_that_the_pool_cannot_meet():
    # three adapters of 30 s on two GPUs: one GPU takes two of them, 60 s
    instance = make_instance(*[([10], 1)] * 3, gpus=2)
    with pytest.raises(InfeasibleError, match="pools are too small for a deadline of 50 s; give a longer one"):
        make_plan(instance, replace(REPEATABLE, deadline_s=50.0), {"x": LINEAR})


def test_adapters_go_where_their_longest_sample_fits():
    # on x, 14 GiB hold 2 tokens: a0 needs y
    instance = make_instance(([10], 1), ([2], 1), gpus={"x": 1, "y": 1})
    small = make_costs(usable=14.0)
    plan = make_plan(instance, REPEATABLE, {"x": small, "y": make_costs(gpu="y")})
    assert {r.gpu for r in plan.replicas if "a0" in r.adapters} == {"y"}


@pytest.mark.parametrize("wrong", [{"num_stages": 0}, {"num_stages": -1}, {"seed": -1}, {"deadline_s": float("nan")}])
def test_options_out_of_range_are_input_errors(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        make_plan(several(), replace(REPEATABLE, **wrong), {"x": FLAT})


def test_objective_cost_needs_prices():
    instance = several(gpus={"x": 2, "y": 2}, prices={"x": 1.0})
    with pytest.raises(InputError, match=r"gpu_pools\[1\]\.price_per_hour: is missing; the objective cost needs every"):
        make_plan(instance, PlanOptions(objective=Objective.COST), {"x": FLAT, "y": FLAT})


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_fixed_depth(num_stages):
    plan = make_plan(several(), replace(REPEATABLE, num_stages=num_stages), {"x": FLAT})
    assert {r.num_stages for r in plan.replicas} == {num_stages}
    assert all(len(r.programs) == num_stages for r in plan.replicas)


def test_profiled_depths_only():
    # one stage would be cheapest, but only 3 were profiled
    costs = replace(make_costs(stages=(3,)), stage_forward={}, stage_backward={})
    assert {r.num_stages for r in make_plan(several(), REPEATABLE, {"x": costs}).replicas} != {3}
    plan = make_plan(several(), replace(REPEATABLE, profiled_only=True), {"x": costs})
    assert {r.num_stages for r in plan.replicas} == {3}


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_plan(seed):
    options = replace(REPEATABLE, seed=seed)
    plans = [make_plan(several(4, seed=3), options, {"x": FLAT}) for _ in range(2)]
    assert content(plans[0]) == content(plans[1])


def test_more_adapters_than_can_be_enumerated():
    instance = several(14, gpus=6)
    plan = make_plan(instance, replace(REPEATABLE, iterations=0), {"x": FLAT})
    assert check(plan, instance, {"x": FLAT}).violations == ()
    assert sorted(name for r in plan.replicas for name in r.adapters) == sorted(a.name for a in instance.adapters)
    assert 0 < plan.lower_bound <= plan.gpu_time_s


def test_many_adapters_under_a_deadline_that_enumeration_would_meet():
    # 14 adapters of 30 s on 14 GPUs: alone each meets 30 s
    instance = make_instance(*[([10], 1)] * 14, gpus=14)
    plan = make_plan(instance, replace(REPEATABLE, deadline_s=31.0, iterations=0), {"x": LINEAR})
    assert len(plan.replicas) == 14


def test_many_adapters_under_a_deadline_that_needs_pairs():
    # linear costs, work of 1 to 14 tokens x 3 s: pairs (1, 14), (2, 13), ... of 15 tokens take 45 s on 7 GPUs, and no
    # other partition into 7 sets does; the merged sets must hold it, or the refusal must not claim that none exists
    instance = make_instance(*[([n], 1) for n in range(1, 15)], gpus=7)
    options = replace(REPEATABLE, deadline_s=45.5, iterations=0)
    try:
        plan = make_plan(instance, options, {"x": LINEAR})
    except InfeasibleError as error:
        assert "too small" not in str(error) and "no plan can" not in str(error)
    else:
        assert plan.makespan_s == pytest.approx(45)


def test_progress_improves():
    seen: list[Progress] = []
    plan = make_plan(several(), REPEATABLE, {"x": FLAT}, on_progress=seen.append)
    objectives = [p.objective for p in seen]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == pytest.approx(plan.gpu_time_s)
    assert {p.bound for p in seen} == {plan.lower_bound}


def test_layers_are_split_where_known():
    plan = make_plan(several(), replace(REPEATABLE, num_stages=3), {"x": replace(FLAT, num_layers=8)})
    assert {r.layers_per_stage for r in plan.replicas} == {(3, 3, 2)}


def test_memory_that_binds_is_kept():
    # the longest sample of 14 tokens needs 10 + 14 + 14; little more is there for what is in flight
    instance = several(4, seed=1)
    longest = max(int(x.max()) for x in instance.step_lengths)
    costs = replace(FLAT, usable_memory_gib=10.0 + 2 * longest + 3)
    plan = make_plan(instance, replace(REPEATABLE, num_stages=2, iterations=1), {"x": costs})
    assert max(p for r in plan.replicas for p in r.peak_memory_gib) <= 10 + 2 * longest + 3
    assert is_valid(plan, instance, {"x": costs})


def test_time_limit_is_no_obstacle_to_a_plan():
    instance = several(4)
    plan = make_plan(instance, PlanOptions(time_limit_s=0.0), {"x": FLAT})
    assert is_valid(plan, instance, {"x": FLAT})


def test_memory_of_extrapolated_depths_carries_its_margin():
    # profiled at 1 stage with 40 GiB; 2 stages: 40 x 1.1 static and 12 tokens of 0.022, above the 43 usable
    costs = replace(make_costs(stages=(1,), usable=43.0), memory={1: MemoryModel(40.0, 0.01, 0.01)})
    assert {r.num_stages for r in make_plan(several(), REPEATABLE, {"x": costs}).replicas} == {1}
    with pytest.raises(InfeasibleError, match=r"2 stages .*need 44\.3 GiB of 43\.0 usable"):
        make_plan(several(), replace(REPEATABLE, num_stages=2), {"x": costs})


@pytest.mark.slow
def test_the_seeds_four_adapters_on_qwen(reference_data):
    distribution = read_length_distribution(reference_data / "dataset_lengths.json")
    adapters, lengths = [], {}
    for i, job in enumerate(read_adapter_config(reference_data / "adapter_config.json")):
        key = distribution.entry(job.dataset_idx, "adapter_config.json", f"adapters[{i}].dataset_idx")
        lengths[key[0]] = distribution.lengths(*key)
        adapters.append(
            Adapter(
                name=key[0],
                dataset=key[0],
                global_batch_size=job.global_batch_size,
                micro_batch_size=job.microbatch_size,
                num_steps=10,
            )
        )
    instance = Instance(
        name="seed4",
        backbone="Qwen2.5-32B-Instruct",
        cost_table=reference_data / "profile_a100_40gb.csv",
        gpu_pools=(GpuPool(gpu="a100-40gb", count=16, memory_gib=40.0),),
        max_sequence_length=4096,
        dataset_lengths=lengths,
        adapters=tuple(adapters),
    )
    assert {a.global_batch_size for a in adapters} == {8}
    plan = make_plan(instance, PlanOptions(time_limit_s=60.0))
    assert check(plan, instance, fit_instance_costs(instance)).violations == ()
    assert is_valid(plan, instance, fit_instance_costs(instance))
    assert plan.gpu_time_s <= 300
    assert plan.lower_bound >= 250
