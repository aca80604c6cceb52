import pytest
from builders import make_costs, make_instance, make_problem
from schedules import random_replica, violations

from cappuccino.costs import SmoothMaximum
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.programs import ReplicaSchedule
from cappuccino.solvers.scheduling import schedule_replica

SMALL = Budget(seconds=None, constructions=12, moves=100, windows=4)


def content(schedule: ReplicaSchedule):
    return [b.samples for b in schedule.order], schedule.operations, schedule.makespan_s


@pytest.mark.parametrize("seed", [2, 5, 11])
def test_same_seed_and_iterations_give_the_same_schedule(seed):
    problem = random_replica(seed)
    assert content(schedule_replica(problem, SMALL, 7)) == content(schedule_replica(problem, SMALL, 7))


@pytest.mark.parametrize("seed", range(8))
def test_schedules_are_valid_and_above_the_bound(seed):
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed % 3 == 0, layout="padded" if seed == 5 else "packed")
    reported: list[float] = []
    found = schedule_replica(problem, SMALL, seed, on_better=lambda s: reported.append(s.makespan_s))
    assert violations(found) == ()
    assert problem.lower_bound_s <= found.makespan_s * (1 + 1e-9)
    assert reported == sorted(reported, reverse=True)
    assert reported[-1] == found.makespan_s


def test_a_start_is_never_worsened():
    problem = random_replica(8)
    best = schedule_replica(problem, Budget(None, constructions=48, moves=400, windows=6), 0)
    again = schedule_replica(problem, Budget(None, constructions=1, moves=0, windows=0), 1, start=best)
    assert again.makespan_s <= best.makespan_s


def test_reaches_a_hand_computed_optimum():
    # 6 adapters of one token, floor 10 + 20 of a high power: all in one micro-batch, 2 x (10 + 20)
    costs = make_costs(
        forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0),
        backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0),
    )
    problem = make_problem(make_instance(*[([1], 1)] * 6), costs, 2)
    found = schedule_replica(problem, SMALL, 0)
    assert len(found.order) == 1
    assert found.makespan_s == pytest.approx(60, rel=1e-3)


def test_no_time_still_gives_a_schedule():
    problem = random_replica(4)
    found = schedule_replica(problem, Budget(seconds=0.0), 0)
    assert violations(found) == ()


def test_clock_and_its_parts():
    endless = Clock(None)
    assert endless.left is None and not endless.over and endless.part(0.5).left is None
    spent = Clock(0.0)
    assert spent.over and spent.left == 0.0 and spent.part(0.5).over
    assert Clock(1000.0).part(0.5).left <= 500.0
