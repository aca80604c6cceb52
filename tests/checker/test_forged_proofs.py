"""Certificates made by hand to prove too much: none of them is taken for a proof, however the sets are looked at."""

from dataclasses import replace

import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.certificate import Certificate, StageLayers
from cappuccino.checker import certificate as module
from cappuccino.checker import check
from cappuccino.errors import InputError
from cappuccino.plan import Objective, Plan, Status
from cappuccino.remaining import remaining_instance
from cappuccino.solvers.planning import PlanOptions, make_plan

COSTS = {"x": make_costs(stages=(1, 2))}
INSTANCE = make_instance(*[([10], 1)] * 3, gpus=3, prices={"x": 3600.0})


@pytest.fixture(params=["listed", "on a grid"], autouse=True)
def looking(request, monkeypatch):
    if request.param == "on a grid":
        monkeypatch.setattr(module, "MOST_SETS", 0)


def planned(**options) -> Plan:
    return make_plan(INSTANCE, PlanOptions(time_limit_s=None, iterations=0, compare_separate=False, **options), COSTS)


def with_certificate(plan: Plan, **values) -> Plan:
    """Return the plan with a certificate of equal prices; it states its own objective as the bound."""
    fields = {"bound": plan.objective_value, "limit_s": plan.deadline_s, **values}
    price, charge = fields.pop("price"), fields.pop("charge")
    found = Certificate(prices=dict.fromkeys(["a0", "a1", "a2"], price), charges={"x": charge}, **fields)
    figures = {"certificate": found, "lower_bound": plan.objective_value, "gap": 0.0, "status": Status.OPTIMAL}
    return plan.model_copy(update={**figures, "incumbents": ()})


def refused(plan: Plan) -> str:
    report = check(plan, INSTANCE, COSTS)
    assert not report.valid and not report.bound.certified
    assert {v.rule for v in report.violations} == {7}
    return str(report.violations[0])


@pytest.mark.parametrize("price", [1e307, 1e308, 1e300])
def test_prices_without_end_prove_nothing(price):
    # alone they take 30 s: no two end together within the deadline, so no set is paid what all are together
    assert "claims" in refused(with_certificate(planned(deadline_s=31.0), price=price, charge=0.0, bound=1e6))


@pytest.mark.parametrize("charge", [0.0, 5e-324, 1e-310])
def test_makespans_without_charges_are_not_refuted(charge):
    plan = planned(objective=Objective.MAKESPAN)
    assert "claims" in refused(with_certificate(plan, price=1.0, charge=charge, limit_s=1e6, bound=1e6))


def test_a_makespan_is_not_refuted_by_the_last_digit():
    # one GPU: charges and prices that are equal but for rounding
    charge, prices = 0.9111869137715352, (2.9199517, 1.92949168)
    instance = make_instance(([10], 1), ([12], 1), gpus=1)
    plan = make_plan(instance, PlanOptions(Objective.MAKESPAN, None, iterations=0, compare_separate=False), COSTS)
    for limit in (1e3, 1e6):
        found = Certificate(
            prices={"a0": prices[0], "a1": prices[1]}, charges={"x": charge}, limit_s=limit, bound=limit
        )
        forged = plan.model_copy(update={"certificate": found})
        assert not check(forged, instance, COSTS).valid


def test_what_ends_with_the_deadline_but_for_rounding_is_looked_at():
    plan = planned(deadline_s=30.0)  # what each takes alone
    for less in (0.0, 1e-9, 5e-7):
        deadline = 30.0 * (1 - less)  # which the plan still keeps, as the checker counts
        late = with_certificate(plan, price=1e6, charge=0.0, limit_s=deadline, bound=2e6)
        assert "claims" in refused(late.model_copy(update={"deadline_s": deadline}))


def test_the_plan_is_one_of_those_that_its_certificate_is_about():
    plan = planned()
    assert check(plan, INSTANCE, COSTS).bound.certified
    depth = plan.replicas[0].num_stages
    for values, words in (
        ({"num_stages": depth + 1}, f"about depth {depth + 1}"),
        ({"layers": (StageLayers(gpu="z", layers=(1,)),)}, 'layers on "z"'),
        ({"layers": (StageLayers(gpu="x", layers=(3,)), StageLayers(gpu="x", layers=(4,)))}, "given twice"),
    ):
        other = plan.model_copy(update={"certificate": plan.certificate.model_copy(update=values)})
        assert words in refused(other)


def test_a_gap_that_a_file_allows_itself_is_no_gap():
    plan = planned()
    for tolerance in (1.0, 1e9, float("nan"), -1.0, True):
        solver = {**plan.solver, "gap_tolerance": tolerance}
        update = {"solver": solver, "lower_bound": 0.0, "gap": 1.0, "status": Status.WITHIN_GAP, "certificate": None}
        changed = plan.model_copy(update={**update, "incumbents": ()})
        assert "within_gap with a gap of 1" in refused_status(changed)


def refused_status(plan: Plan) -> str:
    report = check(plan, INSTANCE, COSTS)
    assert not report.valid
    return str(report.violations[0])


def test_no_incumbent_has_a_bound_above_the_plans():
    plan = planned()
    last = plan.incumbents[-1]
    changed = plan.model_copy(update={"incumbents": (last.model_copy(update={"bound": 1.01 * plan.lower_bound}),)})
    assert "an incumbent's bound" in refused_status(changed)


def test_steps_of_unknown_adapters_are_not_done():
    with pytest.raises(InputError, match='steps of "ghost" are done'):
        remaining_instance(INSTANCE, {"ghost": 1})


def test_words_name_what_the_costs_leave_out():
    kept = {"x": replace(COSTS["x"], profiled_tokens=(1, 12), largest_tokens=12)}
    plan = make_plan(INSTANCE, PlanOptions(time_limit_s=None, iterations=0, compare_separate=False), kept)
    assert "with micro-batches of at most 12 tokens" in str(check(plan, INSTANCE, kept).bound)
