from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers.builders import changed, make_costs, make_instance, with_adapters
from helpers.drawn import seeds
from helpers.spaces import best_objective, random_space

from cappuccino.certificate import Certificate
from cappuccino.checker import check
from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError, NoPlanFoundError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan, Recompute, objective_gap, plan_status
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.planning import PlanOptions, make_plan
from cappuccino.solvers.settings import DEFAULT

QUICK = PlanOptions(time_limit_s=None, iterations=0, compare_separate=False)
KNAPSACKS = replace(DEFAULT, allocation=replace(DEFAULT.allocation, most_sets=0))
COSTS = {
    "x": make_costs(optimizer_s=1.0, transfer=(0.5, 0.0), stages=(1, 2, 3)),
    "y": make_costs(gpu="y", stages=(1, 2)),
}


def problem(seed: int, most: int = 5) -> tuple[Instance, dict[str, CostModel], PlanOptions]:
    """Return up to `most` adapters, in every second of unlike ranks and with two kinds of recomputation, and a goal."""
    space = random_space(seed, most)
    instance, costs = space.instance, dict(space.costs)
    if seed % 2:
        for gpu, model in costs.items():
            instance, costs[gpu] = with_adapters(space.instance, model, seed)
        slower = {gpu: replace(m, recompute=Recompute.FULL, transfer=(1.0, 0.0)) for gpu, m in costs.items()}
        costs = {g: replace(m, recompute=Recompute.NONE, alternatives=(slower[g],)) for g, m in costs.items()}
    options = replace(QUICK, objective=list(Objective)[seed // 2 % 3], settings=(DEFAULT, KNAPSACKS)[seed // 6 % 2])
    return instance, costs, options


def plan_of(instance: Instance, costs: dict[str, CostModel], options: PlanOptions, deadline: float | None) -> Plan:
    """Return a plan, within a multiple of the makespan that it would have without a deadline."""
    plan = make_plan(instance, options, costs)
    if deadline is None:
        return plan
    return make_plan(instance, replace(options, deadline_s=deadline * plan.makespan_s), costs)


@seeds(15)
def test_drawn_plans_are_certified_and_no_partition_beats_their_bounds(seed):
    try:
        instance, costs, options = problem(seed)
        plan = plan_of(instance, costs, options, (None, 1.0, 1.3)[seed // 12 % 3])
    except (InfeasibleError, NoPlanFoundError):
        return
    report = check(plan, instance, costs)
    assert report.valid, report.violations
    assert report.bound.certified, (seed, report.bound)
    assert plan.certificate is not None
    least = best_objective(ReplicaSpace.of(instance, costs), plan.objective, plan.deadline_s)
    for bound in (plan.lower_bound, plan.certificate.bound, report.bound.proven):
        assert bound <= least * (1 + 1e-6), seed


@pytest.mark.parametrize("mode", list(Recompute))
@pytest.mark.parametrize("depth", [None, 2])
def test_restrictions_of_the_search_are_those_of_its_certificate(mode, depth):
    model = replace(COSTS["x"], recompute=Recompute.NONE)
    costs = {"x": replace(model, alternatives=(replace(model, recompute=Recompute.FULL, optimizer_s=3.0),))}
    instance = make_instance(([5, 7, 4], 1), ([9, 2], 2), ([6], 1))
    plan = make_plan(instance, replace(QUICK, num_stages=depth, recompute=mode), costs)
    report = check(plan, instance, costs)
    assert report.valid and report.bound.certified, report
    among = "among plans of depth 2 with" if depth else "among plans with"
    assert f"{among} recompute {mode.value}" in str(report.bound)


@cache
def example(objective: Objective, enumerated: bool = True) -> tuple[Plan, Instance]:
    """Return a plan for two pools whose bound is above 0 and below its objective."""
    jobs = [([5, 7, 4, 9], 2), ([9, 2, 8], 1), ([6, 12], 1), ([6, 12], 1), ([20, 3, 4], 3)]
    instance = make_instance(*jobs, gpus={"x": 3, "y": 2}, prices={"x": 3600.0, "y": 3000.0})
    plan = make_plan(
        instance, replace(QUICK, objective=objective, settings=DEFAULT if enumerated else KNAPSACKS), COSTS
    )
    report = check(plan, instance, COSTS)
    assert report.valid and report.bound.certified, report
    return plan, instance


def forged(plan: Plan, **values) -> Plan:
    """Return the plan with another certificate, no field of which has been looked at."""
    assert plan.certificate is not None
    return plan.model_copy(update={"certificate": plan.certificate.model_copy(update=values)})


def claiming(plan: Plan, bound: float) -> Plan:
    """Return the plan with another bound, and all that follows from it."""
    gap = objective_gap(plan.objective_value, bound)
    return plan.model_copy(update={"lower_bound": bound, "gap": gap, "status": plan_status(gap, 1e-3)})


FORGERIES = {
    "bound": lambda c, rng: {"bound": c.bound * rng.uniform(1.00001, 2)},
    "all prices and bound": lambda c, rng: {
        "prices": {n: 1.01 * p for n, p in c.prices.items()},
        "bound": c.bound * 1.005,
    },
    "a price": lambda c, rng: {"prices": c.prices | {(n := some(c.prices, rng)): c.prices[n] * 0.9}},
    "no such adapter": lambda c, rng: {"prices": c.prices | {"other": 1.0}},
    "adapter dropped": lambda c, rng: {"prices": without(c.prices, rng)},
    "adapter renamed": lambda c, rng: {"prices": without(c.prices, rng) | {"other": 1.0}},
    "no such GPU": lambda c, rng: {"charges": c.charges | {"z": 0.0}},
    "GPU dropped": lambda c, rng: {"charges": without(c.charges, rng)},
    "negative price": lambda c, rng: {"prices": c.prices | {some(c.prices, rng): -1e-9}},
    "no number": lambda c, rng: {"prices": c.prices | {some(c.prices, rng): float("nan")}},
    "infinite charge": lambda c, rng: {"charges": c.charges | {some(c.charges, rng): float("inf")}},
    "bound is no number": lambda c, rng: {"bound": float("nan")},
    "recomputation that nobody profiled": lambda c, rng: {"recompute": "full"},
}


def some(names: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice([n for n, value in names.items() if value > 0] or list(names)))


def without(names: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    gone = some(names, rng)
    return {n: value for n, value in names.items() if n != gone}


@pytest.mark.parametrize("kind", list(FORGERIES))
@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.COST])
@pytest.mark.parametrize("enumerated", [True, False])
def test_what_a_certificate_claims_without_proving_it_breaks_rule_7(kind, objective, enumerated):
    plan, instance = example(objective, enumerated)
    for seed in range(4):
        false = forged(plan, **FORGERIES[kind](plan.certificate, np.random.default_rng(seed)))
        report = check(false, instance, COSTS)
        assert {v.rule for v in report.violations} == {7}
        assert "certificate" in report.violations[0].message
        assert not report.bound.certified


@seeds(60)
def test_no_mutated_certificate_proves_more_than_the_best_partition(seed):
    rng = np.random.default_rng(seed)
    objective = list(Objective)[seed % 3]
    plan, instance = example(objective, bool(rng.integers(2)))
    c = plan.certificate
    assert c is not None
    factors = {name: float(rng.choice([0.0, 0.5, 0.9, 1.0, 1.1, 2.0])) for name in (*c.prices, *c.charges)}
    bound = c.bound * float(rng.choice([1.0, 1.01, 1.2]))
    limit = bound if objective is Objective.MAKESPAN else None
    false = forged(
        plan,
        prices={n: p * factors[n] for n, p in c.prices.items()},
        charges={g: p * factors[g] for g, p in c.charges.items()},
        bound=bound,
        limit_s=limit,
    )
    report = check(claiming(false, min(bound, plan.objective_value)), instance, COSTS)
    least = best_objective(ReplicaSpace.of(instance, COSTS), objective, None)
    if report.valid:
        assert bound <= least * (1 + 2e-6)
    if report.bound.certified:
        assert min(bound, plan.objective_value) <= least * (1 + 2e-6)


def test_another_limit_is_refused():
    plan, instance = example(Objective.MAKESPAN)
    for limit in (None, plan.certificate.limit_s * 1.01, plan.makespan_s * 1.01, float("nan")):
        bound = limit or plan.certificate.bound
        assert {v.rule for v in check(forged(plan, limit_s=limit, bound=bound), instance, COSTS).violations} == {7}
    plan, instance = example(Objective.GPU_TIME)
    assert {v.rule for v in check(forged(plan, limit_s=plan.makespan_s), instance, COSTS).violations} == {7}
    late = changed(plan, deadline_s=2 * plan.makespan_s)
    assert check(late, instance, COSTS).bound.certified  # what holds without a deadline holds with one
    for limit, valid in ((2.0, True), (3.0, True), (1.9, False)):
        report = check(forged(late, limit_s=limit * plan.makespan_s), instance, COSTS)
        assert (report.valid, report.bound.certified) == (valid, valid)


def test_charges_of_another_gpu_are_refused():
    # 30 s each, two in a row too late: one adapter on y for 15, two on x for 30: y is worth 15 more than it costs
    instance = make_instance(*[([10], 1)] * 3, gpus={"x": 3, "y": 1}, prices={"x": 3600.0, "y": 1800.0})
    costs = {"x": make_costs(stages=(1,)), "y": make_costs(stages=(1,), gpu="y")}
    plan = make_plan(instance, replace(QUICK, objective=Objective.COST, deadline_s=35.0), costs)
    report = check(plan, instance, costs)
    assert report.valid and report.bound.certified
    assert plan.lower_bound == pytest.approx(75)
    assert plan.certificate.charges == pytest.approx({"x": 0, "y": 15})
    swapped = forged(plan, charges={"x": plan.certificate.charges["y"], "y": plan.certificate.charges["x"]})
    (violation,) = check(swapped, instance, costs).violations
    assert "claims a bound of 75, and proves" in violation.message


@pytest.mark.parametrize("objective", list(Objective))
def test_a_plan_without_its_certificate_is_valid_and_not_certified(objective):
    plan, instance = example(objective)
    report = check(changed(plan, certificate=None), instance, COSTS)
    assert report.valid
    assert str(report.bound) == "bound not certified: the plan has no certificate"


def test_a_bound_above_what_is_proven_is_not_certified():
    space = random_space(1)
    plan = make_plan(space.instance, QUICK, space.costs)
    least = best_objective(space, Objective.GPU_TIME, None)
    assert least < plan.objective_value * (1 - 1e-4)
    above = claiming(plan, (least + plan.objective_value) / 2)
    report = check(above, space.instance, space.costs)
    assert report.valid
    assert str(report.bound).startswith("bound not certified: the certificate proves ")
    assert str(report.bound).endswith(f" of {above.lower_bound:.9g}")
    assert plan.lower_bound * (1 - 1e-6) <= report.bound.proven <= least * (1 + 1e-9)


def test_where_prices_prove_less_the_best_partition_does():
    space = random_space(4)
    plan = make_plan(space.instance, QUICK, space.costs)
    report = check(plan, space.instance, space.costs)
    least = best_objective(space, Objective.GPU_TIME, None)
    assert plan.certificate.bound < least * (1 - 1e-4)
    assert plan.lower_bound == pytest.approx(least, rel=1e-6)
    assert report.bound.certified
    assert report.bound.by_prices < report.bound.proven == pytest.approx(least, rel=1e-9)
    assert "by all partitions" in str(report.bound)


def test_certificates_survive_their_file(tmp_path):
    plan, _ = example(Objective.GPU_TIME)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert isinstance(plan.certificate, Certificate)
