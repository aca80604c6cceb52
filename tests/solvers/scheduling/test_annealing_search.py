from itertools import pairwise

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import built, contents, random_replica, violations

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling import annealing_search, stretch
from cappuccino.solvers.scheduling.annealing_search import _windows, anneal
from cappuccino.solvers.scheduling.list_scheduling import ListSchedule, list_schedule
from cappuccino.solvers.scheduling.order_scheduling import schedule_order
from cappuccino.solvers.scheduling.packing import PackingRule
from cappuccino.solvers.scheduling.stretch import ScheduledOrder

FOREVER = Clock(None)


def first(problem, target=1.0):
    return list_schedule(problem, PackingRule(target * problem.launch_bound_work))


def content(schedule: ListSchedule):
    return contents(schedule.order), schedule.operations, schedule.makespan_s


@pytest.fixture
def short_windows(monkeypatch):
    """Make windows of 4 micro-batches, with a lookahead of one per stage, where there are more than 6."""
    monkeypatch.setattr(annealing_search, "WHOLE", 6)
    monkeypatch.setattr(annealing_search, "WINDOW", 4)
    monkeypatch.setattr(stretch, "LOOKAHEAD", 1)


@pytest.mark.parametrize("seed", range(10))
def test_annealing_never_worsens_and_stays_valid(seed):
    layout = "padded" if seed % 3 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed % 3 == 0, layout=layout)
    start, reported = first(problem), []
    found = anneal(problem, start, 0.0, FOREVER, 600, 0.0, np.random.default_rng(seed), reported.append)
    assert found.makespan_s <= start.makespan_s
    assert violations(built(problem, found)) == ()
    # the best found is what was reported last
    assert reported[-1:] == ([found] if found is not start else [])


@pytest.mark.parametrize("seed", range(12))
def test_annealing_by_windows_never_worsens_and_stays_valid(seed, short_windows):
    layout = "padded" if seed % 5 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed % 4 == 0, layout=layout)
    patience = (0.0, 0.25 * problem.launch_bound_work)[seed % 2]
    start, reported = list_schedule(problem, PackingRule(0.3 * problem.launch_bound_work), patience), []
    found = anneal(problem, start, patience, FOREVER, 2000, 0.0, np.random.default_rng(seed), reported.append)
    assert found.makespan_s <= start.makespan_s
    makespans = [s.makespan_s for s in (start, *reported)]
    assert all(later < earlier for earlier, later in pairwise(makespans))
    for schedule in (found, *reported):
        assert violations(built(problem, schedule)) == ()
    assert reported[-1:] == ([found] if found is not start else [])


def test_annealing_by_windows_gains(short_windows):
    gains = []
    for seed in range(12):
        problem = random_replica(seed, tight=seed % 2 == 0)
        start = first(problem, 0.3)
        if len(start.order) > 2 * annealing_search.WHOLE:
            found = anneal(problem, start, 0.0, FOREVER, 3000, 0.0, np.random.default_rng(seed))
            gains.append(1 - found.makespan_s / start.makespan_s)
    assert len(gains) >= 4
    assert np.median(gains) > 0.02


def test_what_helps_a_window_and_harms_the_whole_is_dropped(short_windows, monkeypatch):
    # a window sees one micro-batch per stage behind it, which tells little
    window, seen = ScheduledOrder.window, []

    def recorded(self, low, size):
        seen.append(self.makespan_s)
        return window(self, low, size)

    monkeypatch.setattr(ScheduledOrder, "window", recorded)
    for seed in range(0, 24, 4):
        seen.clear()
        problem = random_replica(seed, tight=True)
        anneal(problem, first(problem, 0.3), 0.0, FOREVER, 3000, 0.0, np.random.default_rng(seed))
        assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("seed", [2, 5, 10])
def test_equal_seeds_and_moves_give_equal_schedules(seed, windowed, request):
    if windowed:
        request.getfixturevalue("short_windows")
    problem = random_replica(seed)
    start = first(problem, 0.3)
    one, two = (anneal(problem, start, 0.0, FOREVER, 900, 0.0, np.random.default_rng(1)) for _ in range(2))
    assert content(one) == content(two)


def test_windows_cover_everything(short_windows):
    counts, size = [], annealing_search.WINDOW
    for seed in range(30):
        problem = random_replica(seed)
        current = ScheduledOrder.of(problem, first(problem, 0.1).order, 0.0)
        count = len(current.order)
        if count <= annealing_search.WHOLE:
            continue
        counts.append(count)
        lows = _windows(current, np.random.default_rng(seed))
        covered = {k for low in lows for k in range(min(low, count - size), min(low, count - size) + size)}
        assert covered == set(range(count))
        # most idle time first
        idle = current.idle_time()
        gaps = [idle[min(low + size, count - 1)] - idle[low] for low in lows]
        assert gaps == sorted(gaps, reverse=True)
    assert len(set(counts)) >= 10


def test_annealing_stops_at_the_target(short_windows):
    problem = random_replica(1)
    start = first(problem)
    rng = np.random.default_rng(0)
    assert anneal(problem, start, 0.0, FOREVER, 10**9, start.makespan_s, rng) is start
    assert anneal(problem, start, 0.0, Clock(0.0), 10**9, 0.0, rng) is start
    assert anneal(problem, start, 0.0, FOREVER, 0, 0.0, rng) is start


@pytest.mark.parametrize("windowed", [False, True])
def test_annealing_ends_when_the_target_is_reached(windowed, request):
    if windowed:
        request.getfixturevalue("short_windows")
    problem = random_replica(10)
    start = first(problem, 0.3)
    assert len(start.order) > 6
    reached = anneal(problem, start, 0.0, FOREVER, 1000, 0.0, np.random.default_rng(0)).makespan_s
    assert reached < start.makespan_s
    # with the moves of a lifetime
    found = anneal(problem, start, 0.0, FOREVER, 10**9, reached, np.random.default_rng(1))
    assert found.makespan_s <= reached
    assert violations(built(problem, found)) == ()


@pytest.mark.parametrize("seed", [2, 5, 10])
def test_a_target_out_of_reach_changes_nothing(seed, short_windows):
    # not even for windows that end before the time the whole is to take
    problem = random_replica(seed)
    start, beyond = first(problem, 0.3), 0.99 * problem.lower_bound_s
    one, two = (anneal(problem, start, 0.0, FOREVER, 900, t, np.random.default_rng(1)) for t in (0.0, beyond))
    assert content(one) == content(two)


def test_a_start_worse_than_the_list_schedule_of_its_order():
    # one micro-batch at a time takes 12 s, as a list schedule the order takes 9 s, and no order takes less
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    order = problem.batches([[(0, 0)], [(0, 1)]])
    assert schedule_order(problem, order).makespan_s == 9
    start = ListSchedule(tuple(order), ((0, ~0, 1, ~1),) * 2, 12.0)
    assert anneal(problem, start, 0.0, FOREVER, 20, 0.0, np.random.default_rng(0)).makespan_s == 9
    assert anneal(problem, start, 0.0, FOREVER, 20, 9.5, np.random.default_rng(0)).makespan_s == 9
