from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.naive import is_valid

from cappuccino.checker import check
from cappuccino.costs import SmoothMaximum
from cappuccino.errors import InfeasibleError, InputError
from cappuccino.plan import Objective
from cappuccino.solvers import pareto
from cappuccino.solvers.allocation.milp import TimeUpError
from cappuccino.solvers.pareto import FrontProgress, PointStatus, pareto_front
from cappuccino.solvers.planning import PlanOptions

REPEATABLE = PlanOptions(time_limit_s=None, iterations=1)
FLAT = make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0))
"""10 + 20 s up to 10 tokens, then 1 + 2 s a token."""
COSTS = {"x": FLAT}


def four():
    """Return four adapters of one sample of 6 tokens on four GPUs.

    With T tokens a micro-batch takes 3 max(10, T) s, to a part in 300: 30 s alone, 36.1 s in pairs, 72 s all in one. So
    from 72 s on all share one GPU for 72 GPU-s, from 36.1 s on two pairs take 72.2, and before only four GPUs of 30 s
    do: 120.
    """
    return make_instance(*[([6], 1)] * 4)


def front_of(instance=None, costs=COSTS, options=REPEATABLE, **arguments):
    return pareto_front(instance or four(), options, costs=costs, **arguments)


def test_the_front_of_four_adapters():
    front = front_of(points=3)
    assert [p.deadline_s for p in front] == [
        pytest.approx(30, rel=1e-3),
        pytest.approx((30 * 72) ** 0.5, rel=1e-3),
        pytest.approx(72, rel=1e-3),
    ]
    assert [p.value for p in front] == [pytest.approx(v, rel=1e-3) for v in (120, 72.24, 72)]
    assert [len(p.plan.replicas) for p in front] == [4, 2, 1]
    assert {p.status for p in front} <= {PointStatus.OPTIMAL, PointStatus.WITHIN_GAP}
    assert not any(p.dominated or p.reason for p in front)


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.COST])
def test_fronts_are_monotone_their_bounds_too_and_their_plans_valid(objective):
    rng = np.random.default_rng(4)
    jobs = [(rng.integers(1, 15, size=6).tolist(), 1 + i % 3, 2) for i in range(3)]
    instance = make_instance(*jobs, gpus={"x": 3, "y": 2}, prices={"x": 3600.0, "y": 5400.0})
    fast = replace(FLAT, gpu="y", stage_forward={g: c.scaled(0.6) for g, c in FLAT.stage_forward.items()})
    costs = {"x": FLAT, "y": fast}
    front = front_of(instance, costs, replace(REPEATABLE, objective=objective), points=4)
    assert [p.deadline_s for p in front] == sorted(p.deadline_s for p in front)
    for tighter, looser in pairwise(front):
        assert looser.value <= tighter.value
        assert looser.lower_bound <= tighter.lower_bound
        assert looser.dominated == (looser.value >= tighter.value * (1 - 1e-9))
    for point in front:
        assert check(point.plan, instance, costs).violations == ()
        assert is_valid(point.plan, instance, costs)
        assert point.plan.objective is objective
        assert point.plan.deadline_s == point.deadline_s >= point.plan.makespan_s * (1 - 1e-9)
        assert 0 < point.lower_bound == point.plan.lower_bound <= point.value
        assert point.gap == pytest.approx(1 - point.lower_bound / point.value)


def test_same_seed_same_front():
    first, second = (front_of(points=2, options=replace(REPEATABLE, seed=1)) for _ in range(2))
    assert [(p.deadline_s, p.value, p.lower_bound) for p in first] == [
        (p.deadline_s, p.value, p.lower_bound) for p in second
    ]


def test_further_deadlines():
    front = front_of(points=1, deadlines=(20.0, 40.0, 50.0, 100.0))
    assert [p.deadline_s for p in front] == [20, 40, 50, pytest.approx(72, rel=1e-3), 100]
    infeasible, forty, fifty, loosest, hundred = front
    assert (infeasible.status, infeasible.plan, infeasible.value) == (PointStatus.INFEASIBLE, None, None)
    assert (infeasible.lower_bound, infeasible.gap) == (None, None)
    assert "no plan can end before 30" in infeasible.reason
    assert [p.value for p in (forty, loosest)] == [pytest.approx(72.24, rel=1e-3), pytest.approx(72, rel=1e-3)]
    # nobody needs to wait until 50 s for what is there after 40, or until 100 for what is there after 72
    assert [p.dominated for p in front] == [False, False, True, False, True]
    assert (fifty.plan.replicas, hundred.plan.replicas) == (forty.plan.replicas, loosest.plan.replicas)
    assert (fifty.plan.deadline_s, hundred.plan.deadline_s) == (50, 100)


def test_an_adapter_that_is_fastest_where_it_is_cheapest_has_one_point():
    front = front_of(make_instance(([6], 1)), points=5)
    assert [p.value for p in front] == [pytest.approx(30, rel=1e-3)]


def spoilt(monkeypatch, spoil):
    """Let `spoil(options, plan)` answer in the planner's place; `plan(deadline)` is what the planner would."""
    make_plan = pareto.make_plan

    def planner(instance, options, costs, on_progress):
        def plan(deadline=None):
            return make_plan(instance, replace(options, deadline_s=deadline), costs, on_progress)

        return spoil(options, plan)

    monkeypatch.setattr(pareto, "make_plan", planner)


@pytest.mark.parametrize("error", [TimeUpError(), InfeasibleError("no schedule found")])
def test_a_deadline_nobody_planned_for_is_served_by_a_tighter_plan(monkeypatch, error):
    def spoil(options, plan):
        if options.deadline_s is not None:
            raise error
        return plan()

    spoilt(monkeypatch, spoil)
    tight, middle, loose = front_of(points=3)
    assert middle.reason == str(error)
    assert middle.plan.replicas == tight.plan.replicas  # the plan of least makespan
    assert middle.dominated
    assert (tight.value, loose.value) == (pytest.approx(120, rel=1e-3), pytest.approx(72, rel=1e-3))
    # what is proven without a deadline holds with one
    assert tight.lower_bound == middle.lower_bound == loose.lower_bound == pytest.approx(72, rel=1e-2)
    assert middle.status is PointStatus.FEASIBLE


def test_a_deadline_without_plan_or_proof_is_not_found(monkeypatch):
    def spoil(options, plan):
        if options.objective is Objective.MAKESPAN:
            return plan().model_copy(update={"lower_bound": 15.0, "gap": 0.5})
        if options.deadline_s == pytest.approx(20.0):
            raise InfeasibleError("no schedule found")
        return plan()

    spoilt(monkeypatch, spoil)
    point = front_of(points=1, deadlines=(20.0,))[0]
    assert (point.status, point.plan, point.reason) == (PointStatus.NOT_FOUND, None, "no schedule found")
    assert point.lower_bound == pytest.approx(72, rel=1e-2)


def test_a_plan_that_beats_that_of_a_looser_deadline_serves_both(monkeypatch):
    # the four replicas of the fastest plan are all that is found for 60 s, with a bound of its own
    def spoil(options, plan):
        if options.deadline_s == pytest.approx(60.0):
            return plan(31.0).model_copy(update={"lower_bound": 60.0, "gap": 0.5})
        return plan(options.deadline_s)

    spoilt(monkeypatch, spoil)
    forty, sixty, loosest = front_of(points=1, deadlines=(40.0, 60.0))
    assert sixty.value == forty.value == pytest.approx(72.24, rel=1e-3)
    assert sixty.dominated and not forty.dominated
    # nor is its bound below that of the looser one
    assert sixty.lower_bound == loosest.lower_bound > 60


def test_the_time_is_shared_by_all_plans(monkeypatch):
    limits = []
    make_plan = pareto.make_plan

    def planner(instance, options, costs, on_progress):
        limits.append(options.time_limit_s)
        return make_plan(instance, replace(options, time_limit_s=None, iterations=0), costs, on_progress)

    monkeypatch.setattr(pareto, "make_plan", planner)
    seen: list[FrontProgress] = []
    front_of(points=3, options=PlanOptions(time_limit_s=4000.0), on_progress=seen.append)
    # four plans: cheapest, fastest, and two deadlines; what one leaves is there for the next ones
    assert len(limits) == 4
    assert limits[0] == pytest.approx(1000, rel=1e-3)
    assert limits == sorted(limits)
    assert limits[-1] <= 4000
    assert {p.total for p in seen} == {4}
    assert sorted({p.solved for p in seen}) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"points": 0}, "points"),
        ({"options": replace(REPEATABLE, objective=Objective.MAKESPAN)}, "objective"),
        ({"options": replace(REPEATABLE, deadline_s=5.0)}, "deadline_s"),
        ({"deadlines": (-1.0,)}, "deadlines"),
        ({"deadlines": (float("nan"),)}, "deadlines"),
    ],
)
def test_contradictory_arguments_are_input_errors(wrong, word):
    with pytest.raises(InputError, match=word):
        front_of(**wrong)


def test_an_instance_without_any_plan_is_infeasible():
    with pytest.raises(InfeasibleError, match="fits nowhere"):
        front_of(costs={"x": make_costs(usable=12.0)})
