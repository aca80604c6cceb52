"""No plan is worse than a baseline that the options admit."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from helpers.baseline_instances import random_instance
from helpers.spaces import context_of

from cappuccino.checker import check
from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.baselines import BASELINES, baseline_plan
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.planning import PlanOptions, make_plan
from cappuccino.solvers.seeding import offer_baselines
from cappuccino.solvers.settings import DEFAULT

# with a search so short, and a gap so wide, that most plans were worse than a baseline
HASTY = PlanOptions(
    time_limit_s=None, iterations=0, gap=0.5, compare_separate=False,
    settings=replace(DEFAULT, allocation=replace(DEFAULT.allocation, first_attempt=replace(
        DEFAULT.allocation.first_attempt, constructions=1, moves=0
    ))),
)  # fmt: skip


def value_of(plan: Plan, objective: Objective) -> float | None:
    return {Objective.GPU_TIME: plan.gpu_time_s, Objective.MAKESPAN: plan.makespan_s, Objective.COST: plan.cost}[
        objective
    ]


def baselines(instance: Instance, costs: Mapping[str, CostModel]) -> list[Plan]:
    found = []
    for name in BASELINES:
        try:
            found.append(baseline_plan(name, instance, costs))
        except InfeasibleError:
            continue
    return found


def priced(seed: int) -> tuple[Instance, Mapping[str, CostModel]]:
    instance, costs = random_instance(seed)
    pools = tuple(p.model_copy(update={"price_per_hour": 1.0 + k}) for k, p in enumerate(instance.gpu_pools))
    return replace(instance, gpu_pools=pools), costs


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("seed", range(12))
def test_no_plan_is_worse_than_a_baseline(seed: int, objective: Objective) -> None:
    instance, costs = priced(seed)
    others = baselines(instance, costs)
    plan = make_plan(instance, replace(HASTY, objective=objective), costs)
    assert check(plan, instance, costs).violations == ()
    for other in others:
        theirs = value_of(other, objective)
        assert theirs is not None
        assert plan.objective_value <= theirs * (1 + 1e-9), other.solver["baseline"]


def test_some_plans_are_a_baselines() -> None:
    found = [make_plan(*priced_options(seed)) for seed in range(12)]
    assert any(f.method == "baseline" for plan in found for f in plan.incumbents)


def priced_options(seed: int) -> tuple[Instance, PlanOptions, Mapping[str, CostModel]]:
    instance, costs = priced(seed)
    return instance, HASTY, costs


@pytest.mark.parametrize("seed", range(8))
def test_a_fixed_depth_and_a_deadline_are_kept(seed: int) -> None:
    instance, costs = priced(seed)
    others = baselines(instance, costs)
    for stages in (1, 2):
        try:
            plan = make_plan(instance, replace(HASTY, num_stages=stages), costs)
        except InfeasibleError:
            continue
        assert {r.num_stages for r in plan.replicas} == {stages}
        for other in others:
            if {r.num_stages for r in other.replicas} == {stages}:
                assert plan.gpu_time_s <= other.gpu_time_s * (1 + 1e-9)
    for other in others:
        plan = make_plan(instance, replace(HASTY, deadline_s=other.makespan_s), costs)
        assert plan.makespan_s <= other.makespan_s
        assert plan.gpu_time_s <= other.gpu_time_s * (1 + 1e-9)


def test_no_baseline_is_begun_without_time_for_it() -> None:
    instance, costs = priced(1)
    space = ReplicaSpace.of(instance, costs)
    late, early = context_of(space, clock=Clock(0.0)), context_of(space)
    offer_baselines(late)
    assert not late.incumbent
    offer_baselines(early)
    assert early.incumbent
    assert early.incumbent.found[-1].method == "baseline"
    # where the bound is reached, nothing is looked for
    proven = context_of(space)
    proven.incumbent.bound = proven.incumbent.objective
    offer_baselines(proven)
    assert not proven.incumbent
