import os
from itertools import pairwise

import numpy as np
import pytest
from helpers.builders import make_instance
from helpers.schedules import contents, one_by_one, random_costs, violations
from helpers.spaces import context_of

from cappuccino.plan import Objective
from cappuccino.solvers import improvement
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Context, Incumbent
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.improvement import improve
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import PlacedReplica, ReplicaSchedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.settings import PlannerSettings, SchedulingSettings

FIRST = Budget(seconds=None, constructions=1, moves=0, windows=0)
REPLICAS = ((0, 1), (2, 3), (4,))


SMALL = PlannerSettings(SchedulingSettings(window_operations=(6, 14)), moves_per_iteration=100)


def chosen_replicas(
    jobs_seed: int = 0, objective: Objective = Objective.GPU_TIME, replicas=REPLICAS, **options
) -> Context:
    """Return replicas of two stages, with one micro-batch in flight at a time: there is much to gain."""
    rng = np.random.default_rng(jobs_seed)
    jobs = [(rng.integers(1, 20, size=6).tolist(), 2, 3) for _ in range(5)]
    instance = make_instance(*jobs, gpus=6)
    costs = random_costs(instance, rng, tight=False)
    options = {"gap": 0.0, "settings": SMALL, **options}
    context = context_of(ReplicaSpace.of(instance, {"x": costs}), objective, **options)
    problems = [ReplicaProblem(instance, costs, adapters, 2, 1e6) for adapters in replicas]
    schedules = [one_by_one(p, schedule_replica(p, FIRST, 0).order) for p in problems]
    assert context.incumbent.offer([PlacedReplica(s, "x") for s in schedules])
    return context


def chosen(context: Context) -> list[ReplicaSchedule]:
    return [r.schedule for r in context.incumbent.replicas]


def content(context: Context):
    return [(s.problem.adapters, contents(s.order), s.operations, s.makespan_s) for s in chosen(context)]


def with_cores(monkeypatch, count: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: count)


class Recorder:
    """Stands in for the search on one replica; notes what it is asked and finds nothing."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple[tuple[int, ...], Budget, int]] = []
        monkeypatch.setattr(improvement, "schedule_replica", self)

    def __call__(self, problem, budget, seed, *, start, target_gap, on_better, settings):
        assert start.problem is problem
        self.calls.append((problem.adapters, budget, seed))
        return start


@pytest.mark.parametrize(
    "objective", [pytest.param(Objective.GPU_TIME, marks=pytest.mark.slow), Objective.MAKESPAN], ids=str
)
def test_the_number_of_cores_changes_nothing_where_iterations_limit_the_search(objective, monkeypatch):
    results = []
    for cores in (1, 2, 2):
        with_cores(monkeypatch, cores)
        context = chosen_replicas(objective=objective, seed=3, iterations=2)
        improve(context)
        results.append(content(context))
    assert results[0] == results[1] == results[2]
    assert results[0] != content(chosen_replicas(objective=objective))


@pytest.mark.parametrize("seed", range(3))
def test_replicas_only_get_better(seed, monkeypatch):
    with_cores(monkeypatch, 2)
    context, values, makespans = chosen_replicas(seed, seed=seed, iterations=2), [], []

    def report(now: Incumbent) -> None:
        values.append(now.objective)
        makespans.append([r.schedule.makespan_s for r in now.replicas])

    before, incumbent = chosen(context), context.incumbent
    values.append(incumbent.objective)
    incumbent.on_better = report
    improve(context)
    assert len(values) > 1
    assert all(later < earlier for earlier, later in pairwise(values))
    assert values[-1] == incumbent.objective == sum(s.gpu_time_s for s in chosen(context))
    for old, new in zip(before, chosen(context), strict=True):
        assert new.problem is old.problem
        assert new.makespan_s <= old.makespan_s
    for earlier, later in pairwise(makespans):
        assert sum(x != y for x, y in zip(earlier, later, strict=True)) == 1
    assert [r.gpu for r in incumbent.replicas] == ["x"] * 3
    # the checker knows plans of whole instances only
    alone = chosen_replicas(seed, replicas=((0, 1, 2, 3, 4),), seed=seed, iterations=1)
    improve(alone)
    assert violations(chosen(alone)[0]) == ()


def test_every_replica_is_searched_with_a_seed_of_its_own_most_to_gain_first(monkeypatch):
    with_cores(monkeypatch, 1)
    recorder, context = Recorder(monkeypatch), chosen_replicas(seed=7, iterations=5)
    improve(context)
    gains = {s.problem.adapters: s.makespan_s - s.problem.lower_bound_s for s in chosen(context)}
    assert [adapters for adapters, _, _ in recorder.calls] == sorted(gains, key=gains.get, reverse=True)
    assert [seed for _, _, seed in recorder.calls] == [7, 8, 9]
    assert all(b.seconds is None and b.windows == 5 and b.moves == 500 for _, b, _ in recorder.calls)


def test_where_the_makespan_counts_the_longest_replica_is_searched(monkeypatch):
    with_cores(monkeypatch, 2)
    recorder = Recorder(monkeypatch)
    context = chosen_replicas(objective=Objective.MAKESPAN, seed=7, iterations=5)
    improve(context)
    longest = max(chosen(context), key=lambda s: s.makespan_s)
    assert [adapters for adapters, _, _ in recorder.calls] == [longest.problem.adapters]


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.MAKESPAN])
def test_no_core_is_idle_while_there_is_time(objective, monkeypatch):
    # three replicas or one on four cores: as many searches as it takes, and when they find nothing it is over
    with_cores(monkeypatch, 4)
    recorder = Recorder(monkeypatch)
    improve(chosen_replicas(objective=objective, clock=Clock(1000.0)))
    assert len(recorder.calls) >= 4
    assert sorted(seed for _, _, seed in recorder.calls) == list(range(len(recorder.calls)))
    assert all(0 < b.seconds <= 1000 for _, b, _ in recorder.calls)
    assert len({adapters for adapters, _, _ in recorder.calls}) == (1 if objective is Objective.MAKESPAN else 3)


def test_several_work_on_the_replica_with_nearly_all_to_gain():
    assert improvement._with_copies([2, 0, 1], [3.0, 1.0, 9.0], 2) == [2, 2, 0, 1]
    assert improvement._with_copies([2, 0, 1], [8.0, 1.0, 9.0], 2) == [2, 0, 1]
    assert improvement._with_copies([0], [0.0], 2) == [0, 0]


def test_a_replica_that_is_no_longer_the_longest_gives_way(monkeypatch):
    with_cores(monkeypatch, 1)
    context = chosen_replicas(objective=Objective.MAKESPAN, clock=Clock(1000.0))
    searched = []

    def constructed(problem, budget, seed, *, start, target_gap, on_better, settings):
        searched.append(problem.adapters)
        better = schedule_replica(problem, FIRST, 0)
        on_better(better)
        return better

    monkeypatch.setattr(improvement, "schedule_replica", constructed)
    improve(context)
    # round after round, until one finds nothing
    assert len(set(searched)) >= 2
    assert searched[-1] == max(chosen(context), key=lambda s: s.makespan_s).problem.adapters


def test_nothing_is_searched_without_time_or_need(monkeypatch):
    recorder = Recorder(monkeypatch)
    improve(chosen_replicas(clock=Clock(0.0)))
    near, far = (chosen_replicas(gap=gap, iterations=3) for gap in (0.05, 0.04))
    for context in (near, far):
        context.incumbent.bound = context.incumbent.objective * 0.95
    improve(near)
    assert recorder.calls == []
    improve(far)
    assert len(recorder.calls) == 3


def test_an_error_in_a_search_is_not_lost(monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(improvement, "schedule_replica", broken)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        improve(chosen_replicas(iterations=1))
