import os
from itertools import pairwise

import numpy as np
import pytest
from helpers.builders import make_instance
from helpers.schedules import contents, one_by_one, random_costs, violations

from cappuccino.plan import Objective
from cappuccino.solvers import improvement
from cappuccino.solvers.allocation.allocator import Allocation
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.improvement import SearchLimits, improve
from cappuccino.solvers.scheduling import scheduler
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.scheduler import schedule_replica

FIRST = Budget(seconds=None, constructions=1, moves=0, windows=0)
REPLICAS = ((0, 1), (2, 3), (4,))


@pytest.fixture(autouse=True)
def small_searches(monkeypatch):
    monkeypatch.setattr(improvement, "MOVES_PER_ITERATION", 100)
    monkeypatch.setattr(scheduler, "WINDOW_OPERATIONS", (6, 14))


def chosen_replicas(seed: int = 0, objective: Objective = Objective.GPU_TIME, replicas=REPLICAS) -> Allocation:
    """Return replicas of two stages, with one micro-batch in flight at a time: there is much to gain."""
    rng = np.random.default_rng(seed)
    jobs = [(rng.integers(1, 20, size=6).tolist(), 2, 3) for _ in range(5)]
    instance = make_instance(*jobs, gpus=6)
    costs = random_costs(instance, rng, tight=False)
    state = Allocation(space=ReplicaSpace.of(instance, {"x": costs}), objective=objective, deadline_s=None, bound=0.0)
    problems = [ReplicaProblem(instance, costs, adapters, 2, 1e6) for adapters in replicas]
    schedules = [one_by_one(p, schedule_replica(p, FIRST, 0).order) for p in problems]
    assert state.offer(schedules, ["x"] * len(problems))
    return state


def content(state: Allocation):
    return [(s.problem.adapters, contents(s.order), s.operations, s.makespan_s) for s in state.chosen]


def with_cores(monkeypatch, count: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: count)


class Recorder:
    """Stands in for the search on one replica; notes what it is asked and finds nothing."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple[tuple[int, ...], Budget, int]] = []
        monkeypatch.setattr(improvement, "schedule_replica", self)

    def __call__(self, problem, budget, seed, *, start, target_gap, on_better):
        assert start.problem is problem
        self.calls.append((problem.adapters, budget, seed))
        return start


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.MAKESPAN])
def test_the_number_of_cores_changes_nothing_where_iterations_limit_the_search(objective, monkeypatch):
    results = []
    for cores in (1, 2, 2):
        with_cores(monkeypatch, cores)
        state = chosen_replicas(objective=objective)
        improve(state, SearchLimits(gap=0.0, seed=3, iterations=2), Clock(None))
        results.append(content(state))
    assert results[0] == results[1] == results[2]
    assert results[0] != content(chosen_replicas(objective=objective))


@pytest.mark.parametrize("seed", range(3))
def test_replicas_only_get_better(seed, monkeypatch):
    with_cores(monkeypatch, 2)
    state, values, makespans = chosen_replicas(seed), [], []

    def report(now: Allocation) -> None:
        values.append(now.best)
        makespans.append([s.makespan_s for s in now.chosen])

    before = state.chosen
    values.append(state.best)
    improve(state, SearchLimits(gap=0.0, seed=seed, iterations=2), Clock(None), report)
    assert len(values) > 1
    assert all(later < earlier for earlier, later in pairwise(values))
    assert values[-1] == state.best == sum(s.gpu_time_s for s in state.chosen)
    for old, new in zip(before, state.chosen, strict=True):
        assert new.problem is old.problem
        assert new.makespan_s <= old.makespan_s
    for earlier, later in pairwise(makespans):
        assert sum(x != y for x, y in zip(earlier, later, strict=True)) == 1
    assert state.chosen_gpus == ["x"] * 3
    # the checker knows plans of whole instances only
    alone = chosen_replicas(seed, replicas=((0, 1, 2, 3, 4),))
    improve(alone, SearchLimits(gap=0.0, seed=seed, iterations=1), Clock(None))
    assert violations(alone.chosen[0]) == ()


def test_every_replica_is_searched_with_a_seed_of_its_own_most_to_gain_first(monkeypatch):
    with_cores(monkeypatch, 1)
    recorder, state = Recorder(monkeypatch), chosen_replicas()
    improve(state, SearchLimits(gap=0.0, seed=7, iterations=5), Clock(None))
    gains = {s.problem.adapters: s.makespan_s - s.problem.lower_bound_s for s in state.chosen}
    assert [adapters for adapters, _, _ in recorder.calls] == sorted(gains, key=gains.get, reverse=True)
    assert [seed for _, _, seed in recorder.calls] == [7, 8, 9]
    assert all(b.seconds is None and b.windows == 5 and b.moves == 500 for _, b, _ in recorder.calls)


def test_where_the_makespan_counts_the_longest_replica_is_searched(monkeypatch):
    with_cores(monkeypatch, 2)
    recorder, state = Recorder(monkeypatch), chosen_replicas(objective=Objective.MAKESPAN)
    improve(state, SearchLimits(gap=0.0, seed=7, iterations=5), Clock(None))
    longest = max(state.chosen, key=lambda s: s.makespan_s)
    assert [adapters for adapters, _, _ in recorder.calls] == [longest.problem.adapters]


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.MAKESPAN])
def test_no_core_is_idle_while_there_is_time(objective, monkeypatch):
    # three replicas or one on four cores: as many searches as it takes, and when they find nothing it is over
    with_cores(monkeypatch, 4)
    recorder, state = Recorder(monkeypatch), chosen_replicas(objective=objective)
    improve(state, SearchLimits(gap=0.0, seed=0, iterations=None), Clock(1000.0))
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
    state = chosen_replicas(objective=Objective.MAKESPAN)
    searched = []

    def constructed(problem, budget, seed, *, start, target_gap, on_better):
        searched.append(problem.adapters)
        better = schedule_replica(problem, FIRST, 0)
        on_better(better)
        return better

    monkeypatch.setattr(improvement, "schedule_replica", constructed)
    improve(state, SearchLimits(gap=0.0, seed=0, iterations=None), Clock(1000.0))
    # round after round, until one finds nothing
    assert len(set(searched)) >= 2
    assert searched[-1] == max(state.chosen, key=lambda s: s.makespan_s).problem.adapters


def test_nothing_is_searched_without_time_or_need(monkeypatch):
    recorder, state = Recorder(monkeypatch), chosen_replicas()
    improve(state, SearchLimits(gap=0.0, seed=0, iterations=None), Clock(0.0))
    state.bound = state.best * 0.95
    improve(state, SearchLimits(gap=0.05, seed=0, iterations=3), Clock(None))
    assert recorder.calls == []
    improve(state, SearchLimits(gap=0.04, seed=0, iterations=3), Clock(None))
    assert len(recorder.calls) == 3


def test_an_error_in_a_search_is_not_lost(monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(improvement, "schedule_replica", broken)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        improve(chosen_replicas(), SearchLimits(gap=0.0, seed=0, iterations=1), Clock(None))
