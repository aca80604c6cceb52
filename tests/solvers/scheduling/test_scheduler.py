from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import contents, one_by_one, random_replica, violations

from cappuccino.costs import SmoothMaximum
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling import construction, scheduler
from cappuccino.solvers.scheduling.construction import construct, list_schedule
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.settings import DEFAULT, Method

USUAL = DEFAULT.scheduling
SMALL = Budget(seconds=None, constructions=12, moves=500, windows=4)
FIRST = Budget(seconds=None, constructions=1, moves=0, windows=0)
ENDLESS = Budget(seconds=None)
"""Only a target ends it within the life of a tester."""


def content(schedule: ReplicaSchedule):
    return contents(schedule.order), schedule.operations, schedule.makespan_s


@pytest.mark.parametrize("seed", [2, 5, 11])
def test_same_seed_and_iterations_give_the_same_schedule(seed):
    problem = random_replica(seed)
    assert content(schedule_replica(problem, SMALL, 7)) == content(schedule_replica(problem, SMALL, 7))


def test_every_phase_of_the_search_gains():
    # over some replicas each phase adds something to the ones before
    budgets = [
        FIRST,
        Budget(None, constructions=24, moves=0, windows=0),
        Budget(None, constructions=24, moves=2000, windows=0),
        Budget(None, constructions=24, moves=2000, windows=2),
    ]
    problems = [random_replica(seed, tight=seed % 2 == 0) for seed in (1, 4, 7, 10)]
    totals = [sum(schedule_replica(p, b, 0).makespan_s / p.lower_bound_s for p in problems) for b in budgets]
    assert totals[0] > totals[1] > totals[2] >= totals[3]


def test_constructions_never_worsen_with_their_number():
    problem = random_replica(10)
    makespans = []
    for count in (1, 5, 20, 60):
        found, patience = construct(problem, count, Clock(None), 0.0, np.random.default_rng(0))
        assert violations(found) == ()
        assert patience >= 0
        makespans.append(found.makespan_s)
    assert makespans == sorted(makespans, reverse=True)
    # the first one is that of the first settings
    rule = PackingRule(USUAL.targets[0] * problem.launch_bound_work, USUAL.fills[0], USUAL.loads[0])
    assert makespans[0] == list_schedule(problem, rule, USUAL.patiences[0] * problem.launch_bound_work).makespan_s


def test_settings_are_varied_one_by_one_around_the_best(monkeypatch):
    problem, tried = random_replica(10), []

    def recorded(problem, rule, patience_s, cutoff_s, noise, rng, fastest):
        launch_bound = problem.launch_bound_work
        times = rule.target_work_s / launch_bound, rule.critical_urgency_s / launch_bound, patience_s / launch_bound
        tried.append((times[0], rule.load, times[1], rule.critical_target, rule.fill, times[2], noise))
        found = list_schedule(problem, rule, patience_s, cutoff_s, noise, rng, fastest)
        makespans.append(found.makespan_s if found else float("inf"))
        return found

    makespans: list[float] = []
    monkeypatch.setattr(construction, "list_schedule", recorded)
    construct(problem, 60, Clock(None), 0.0, np.random.default_rng(0))
    assert len(tried) == 60
    expected = [
        USUAL.targets,
        USUAL.loads,
        USUAL.critical_urgencies,
        USUAL.critical_targets,
        USUAL.fills,
        USUAL.patiences,
    ]
    systematic = 1 + sum(len(values) - 1 for values in expected)
    for i, values in enumerate(expected):
        assert sorted({round(t[i], 9) for t in tried[:systematic]}) == sorted(values)
    for k in range(1, systematic):
        best = tried[int(np.argmin(makespans[:k]))]
        assert sum(abs(x - y) > 1e-9 for x, y in zip(tried[k], best, strict=True)) == 1
    assert {t[-1] for t in tried[:systematic]} == {0.0}
    # then around the best of them, with noise and targets a little off
    assert {t[-1] for t in tried[systematic:]} == {USUAL.noise}


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


@pytest.mark.parametrize("seed", [4, 7, 9])
def test_no_time_still_gives_a_schedule(seed):
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed == 9)
    found = schedule_replica(problem, Budget(seconds=0.0), 0)
    assert violations(found) == ()


@pytest.mark.parametrize("seed", [4, 7, 10])
def test_a_good_enough_first_schedule_ends_the_search(seed):
    problem = random_replica(seed)
    first = schedule_replica(problem, FIRST, 3)
    assert schedule_replica(problem, Budget(None, moves=0, windows=0), 3).makespan_s < first.makespan_s
    assert content(schedule_replica(problem, ENDLESS, 3, target_s=first.makespan_s)) == content(first)
    gap = 1 - problem.lower_bound_s / first.makespan_s + 1e-9
    assert content(schedule_replica(problem, ENDLESS, 3, target_gap=gap)) == content(first)
    # any schedule is within a gap of 1
    assert content(schedule_replica(problem, ENDLESS, 3, target_gap=1.0)) == content(first)
    # a start that is good enough
    assert content(schedule_replica(problem, ENDLESS, 5, start=first, target_s=first.makespan_s)) == content(first)


@pytest.fixture
def models_solved(monkeypatch):
    """Return a list that learns of every CP-SAT model."""
    calls: list[str] = []
    for name in ("improve_window", "solve_whole"):
        original = getattr(scheduler, name)

        def recorded(*args, name=name, original=original, **options):
            calls.append(name)
            return original(*args, **options)

        monkeypatch.setattr(scheduler, name, recorded)
    return calls


@pytest.mark.parametrize("seed", [7, 10])
def test_a_target_reached_by_annealing_ends_the_search(seed, models_solved):
    problem = random_replica(seed)
    constructed = schedule_replica(problem, Budget(None, constructions=12, moves=0, windows=0), 3)
    annealed = schedule_replica(problem, Budget(None, constructions=12, moves=500, windows=0), 3)
    assert annealed.makespan_s < constructed.makespan_s
    gap = 1 - problem.lower_bound_s / annealed.makespan_s + 1e-9
    for target in ({"target_s": annealed.makespan_s}, {"target_gap": gap}):
        assert content(schedule_replica(problem, SMALL, 3, **target)) == content(annealed)
    assert models_solved == []


def test_a_target_reached_by_a_window_ends_the_search(models_solved):
    # one in flight at a time takes 12 s, the least is 9 s: one window gets there, no other follows
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    order = problem.batches([[(0, 0)], [(0, 1)]])
    start = one_by_one(problem, order)
    assert start.makespan_s == 12
    found = schedule_replica(problem, Budget(None, constructions=1, moves=0, windows=50), 0, start=start, target_s=9.0)
    assert found.makespan_s == 9
    assert len(models_solved) <= 1


def test_the_target_counts_the_last_optimizer_steps():
    # one adapter, 5 samples, an optimizer step of 20 s at the end, which list schedules leave out: the target is
    # between what the first construction takes with and without it
    problem = make_problem(make_instance(([3, 1, 4, 1, 5], 5)), make_costs(optimizer_s=20.0), 2)
    first = schedule_replica(problem, FIRST, 0)
    better = schedule_replica(problem, Budget(None, constructions=1, moves=2000, windows=0), 0)
    assert first.makespan_s - 20 < better.makespan_s < first.makespan_s
    budget = Budget(None, constructions=1, moves=2000, windows=0)
    assert schedule_replica(problem, budget, 0, target_s=better.makespan_s).makespan_s <= better.makespan_s


def test_the_target_counts_the_last_optimizer_steps_of_a_start_too():
    problem = make_problem(make_instance(([3, 1, 4, 1, 5, 9, 2, 6], 8)), make_costs(optimizer_s=20.0), 3)
    first, start, better = (
        schedule_replica(problem, Budget(None, constructions=1, moves=moves, windows=0), 0) for moves in (0, 200, 4000)
    )
    assert better.makespan_s < start.makespan_s < first.makespan_s < better.makespan_s + 20
    budget = Budget(None, constructions=1, moves=20000, windows=0)
    found = schedule_replica(problem, budget, 0, start=start, target_s=better.makespan_s)
    assert found.makespan_s <= better.makespan_s


@pytest.mark.parametrize(
    ("method", "unused"), [(Method.CP_SAT, ["anneal"]), (Method.SEARCH, ["solve_whole", "improve_window"])]
)
def test_a_method_uses_nothing_else(monkeypatch, method, unused):
    used = []
    for name in ("anneal", "solve_whole", "improve_window"):
        original = getattr(scheduler, name)

        def noted(*arguments, name=name, original=original, **options):
            used.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(scheduler, name, noted)
    problem = make_problem(make_instance(([2, 5, 3, 4], 2, 2), ([4, 1, 2], 1, 3)), make_costs(optimizer_s=0.5), 2)
    settings = replace(DEFAULT.scheduling, method=method)
    found = schedule_replica(problem, Budget(None, constructions=3, moves=200, windows=3), 0, settings=settings)
    assert violations(found) == ()
    assert not set(unused) & set(used)
    assert used


def test_clock_and_its_parts():
    endless = Clock(None)
    assert endless.left is None and not endless.over and endless.part(0.5).left is None
    spent = Clock(0.0)
    assert spent.over and spent.left == 0.0 and spent.part(0.5).over
    assert Clock(1000.0).part(0.5).left <= 500.0
