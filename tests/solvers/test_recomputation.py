"""Where the cost table has stages with and without recomputation, every replica gets the one that is better for it."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.naive import is_valid

from cappuccino.adapter import Adapter
from cappuccino.analytic.efficiency import FUSED
from cappuccino.analytic.table import estimated_table
from cappuccino.backbone import BACKBONES
from cappuccino.checker import check
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum, fit_instance_costs
from cappuccino.errors import InfeasibleError, InputError
from cappuccino.instance import GpuPool, Instance
from cappuccino.plan import Plan, Recompute
from cappuccino.solvers.baselines import BASELINES, Baseline, baseline_plan
from cappuccino.solvers.planning import PlanOptions, make_plan

QUICK = PlanOptions(time_limit_s=None, iterations=1, num_stages=1)


def costs_of_both() -> CostModel:
    """Return costs of 1 + 1 s a token and 1 GiB held, or of 1 + 2 s and a quarter, beside 10 GiB of 30."""
    linear = SmoothMaximum(0.001, 1.0, 0.0, 16.0), SmoothMaximum(0.001, 1.0, 0.0, 16.0)
    none = make_costs(forward=linear[0], backward=linear[1], usable=30.0, stages=(1,))
    none = replace(none, memory={1: MemoryModel(10.0, 0.0, 1.0)}, recompute=Recompute.NONE)
    twice, quarter = {1: linear[1].scaled(2.0)}, {1: MemoryModel(10.0, 0.0, 0.25)}
    full = replace(none, stage_backward=twice, memory=quarter, recompute=Recompute.FULL)
    return replace(none, alternatives=(full,))


def modes(plan: Plan) -> dict[str, str | None]:
    return {name: replica.recompute for replica in plan.replicas for name in replica.adapters}


def test_a_replica_recomputes_only_where_it_has_to():
    # 20 tokens fit without recomputation, 80 with it
    instance, costs = make_instance(([20], 1), ([40], 1), ([10, 5], 2), gpus=3), {"x": costs_of_both()}
    plan = make_plan(instance, QUICK, costs)
    assert check(plan, instance, costs).valid
    assert is_valid(plan, instance, costs)
    found = modes(plan)
    assert found["a1"] == "full"
    assert found["a0"] == found["a2"] == "none"
    # 20 and 15 tokens at 2 s, 40 at 3 s
    assert plan.gpu_time_s == pytest.approx(2 * 35 + 3 * 40, rel=1e-3)
    assert plan.lower_bound == pytest.approx(plan.gpu_time_s, rel=1e-3)


def test_one_kind_can_be_asked_for():
    instance, costs = make_instance(([20], 1), ([10], 1), gpus=2), {"x": costs_of_both()}
    plan = make_plan(instance, replace(QUICK, recompute=Recompute.FULL), costs)
    assert check(plan, instance, costs).valid
    assert set(modes(plan).values()) == {"full"}
    assert plan.gpu_time_s == pytest.approx(3 * 30, rel=1e-3)
    with pytest.raises(InfeasibleError, match=r"needs 50\.0 GiB of 30\.0 usable"):
        make_plan(make_instance(([40], 1)), replace(QUICK, recompute=Recompute.NONE), costs)


def test_a_kind_that_nobody_measured_is_refused():
    costs = {"x": replace(costs_of_both(), alternatives=())}
    with pytest.raises(InputError, match='the rows on "x" are of recomputation none, not full; profile it too'):
        make_plan(make_instance(([20], 1)), replace(QUICK, recompute=Recompute.FULL), costs)


def test_the_checker_refuses_other_recomputation_than_the_costs_are_of():
    instance, costs = make_instance(([20], 1)), costs_of_both()
    plan = make_plan(instance, QUICK, {"x": costs})
    only = {"x": replace(costs.of_recomputation(Recompute.FULL), alternatives=())}
    (violation,) = check(plan, instance, only).violations
    assert violation.rule == 1
    assert "recompute is none, the costs on x are of recompute full" in violation.message
    # and the figures of one kind are not those of the other
    (replica,) = plan.replicas
    other = plan.model_copy(update={"replicas": (replica.model_copy(update={"recompute": Recompute.FULL}),)})
    assert {v.rule for v in check(other, instance, {"x": costs}).violations} == {7}


@pytest.mark.parametrize("name", [b for b in BASELINES if b is not Baseline.REFERENCE])
def test_baselines_recompute_where_nothing_else_fits(name):
    instance, costs = make_instance(([10], 1), ([40], 1), gpus=4), {"x": costs_of_both()}
    plan = baseline_plan(name, instance, costs)
    assert check(plan, instance, costs).valid
    assert modes(plan)["a1"] == "full"


def test_the_choice_is_no_worse_than_either_kind_for_all(tmp_path):
    # without recomputation, bounds promise most where memory leaves the least room to come near them
    backbone, gpu = "Qwen2.5-32B-Instruct", "h100-80gb"
    table = tmp_path / "table.csv"
    shape, kinds = BACKBONES[backbone], tuple(Recompute)
    estimated_table(backbone, gpu, shape, (1, 2, 4), kinds, FUSED, "bfloat16").to_csv(table, index=False)
    rng = np.random.default_rng(0)
    lengths = {
        f"d{i}": np.clip(rng.lognormal(np.log(median), 0.6, 48), 16, 4096).astype(int)
        for i, median in enumerate((200, 400, 600, 1000))
    }
    adapters = tuple(Adapter(name=n, dataset=n, global_batch_size=8, num_steps=6) for n in lengths)
    pool = GpuPool(gpu=gpu, count=8, memory_gib=32.0)
    instance = Instance("tight", backbone, table, (pool,), 4096, lengths, adapters)
    costs = fit_instance_costs(instance)
    options = PlanOptions(time_limit_s=None, iterations=0, compare_separate=False)
    choices = (*kinds, None)
    found = {kind: make_plan(instance, replace(options, recompute=kind), costs).gpu_time_s for kind in choices}
    assert found[None] <= 1.015 * min(found.values())  # it has less time for each
    assert found[Recompute.FULL] < found[Recompute.NONE]
