import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import contents, one_by_one, random_replica, violations

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.annealing import _windows, anneal
from cappuccino.solvers.scheduling.construction import list_schedule
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.settings import SchedulingSettings

FOREVER, WHOLE = Clock(None), SchedulingSettings()
SHORT = SchedulingSettings(whole=6, window=4, lookahead=1)
"""Windows of 4 micro-batches where there are more than 6."""


def first(problem, target=1.0):
    return list_schedule(problem, PackingRule(target * problem.launch_bound_work))


def annealed(start, moves, seed=0, target_s=0.0, settings=WHOLE, clock=FOREVER):
    return anneal(start.problem, start, 0.0, clock, moves, target_s, np.random.default_rng(seed), settings=settings)


def content(schedule: ScheduledOrder):
    return contents(schedule.order), schedule.operations, schedule.makespan_s


def test_annealing_by_windows_gains():
    gains = []
    for seed in range(12):
        problem = random_replica(seed, tight=seed % 2 == 0)
        start = first(problem, 0.3)
        if len(start.order) > 2 * SHORT.whole:
            found = annealed(start, 3000, seed, settings=SHORT)
            gains.append(1 - found.makespan_s / start.makespan_s)
    assert len(gains) >= 4
    assert np.median(gains) > 0.02


def test_what_helps_a_window_and_harms_the_whole_is_dropped(monkeypatch):
    # a window sees one micro-batch per stage behind it, which tells little
    window, seen = ScheduledOrder.window, []

    def recorded(self, *arguments):
        seen.append(self.makespan_s)
        return window(self, *arguments)

    monkeypatch.setattr(ScheduledOrder, "window", recorded)
    for seed in range(0, 24, 4):
        seen.clear()
        problem = random_replica(seed, tight=True)
        annealed(first(problem, 0.3), 3000, seed, settings=SHORT)
        assert seen
        assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("settings", [WHOLE, SHORT])
@pytest.mark.parametrize("seed", [2, 5, 10])
def test_equal_seeds_and_moves_give_equal_schedules(seed, settings):
    problem = random_replica(seed)
    start = first(problem, 0.3)
    one, two = (annealed(start, 900, 1, settings=settings) for _ in range(2))
    assert content(one) == content(two)


def test_windows_cover_everything():
    counts, size = [], SHORT.window
    for seed in range(30):
        problem = random_replica(seed)
        current = ScheduledOrder.of(problem, first(problem, 0.1).order, 0.0)
        count = len(current.order)
        if count <= SHORT.whole:
            continue
        counts.append(count)
        lows = _windows(current, size, np.random.default_rng(seed))
        covered = {k for low in lows for k in range(min(low, count - size), min(low, count - size) + size)}
        assert covered == set(range(count))
        # most idle time first
        idle = current.idle_time()
        gaps = [idle[min(low + size, count - 1)] - idle[low] for low in lows]
        assert gaps == sorted(gaps, reverse=True)
    assert len(set(counts)) >= 10


def test_annealing_stops_at_the_target():
    start = first(random_replica(1))
    ends = ({"target_s": start.makespan_s}, {"clock": Clock(0.0)}, {"moves": 0})
    for end in ends:
        found = annealed(start, **{"moves": 10**9, "settings": SHORT, **end})
        assert found is None or content(found.schedule()) == content(start)


@pytest.mark.parametrize("settings", [WHOLE, SHORT])
def test_annealing_ends_when_the_target_is_reached(settings):
    problem = random_replica(10)
    start = first(problem, 0.3)
    assert len(start.order) > 6
    reached = annealed(start, 1000, settings=settings).makespan_s
    assert reached < start.makespan_s
    # with the moves of a lifetime
    found = annealed(start, 10**9, 1, reached, settings)
    assert found.makespan_s <= reached
    assert violations(found.schedule()) == ()


@pytest.mark.parametrize("seed", [2, 5, 10])
def test_a_target_out_of_reach_changes_nothing(seed):
    # not even for windows that end before the time the whole is to take
    problem = random_replica(seed)
    start, beyond = first(problem, 0.3), 0.99 * problem.lower_bound_s
    one, two = (annealed(start, 900, 1, target, SHORT) for target in (0.0, beyond))
    assert content(one) == content(two)


def test_a_start_worse_than_the_list_schedule_of_its_order():
    # one micro-batch at a time takes 12 s, as a list schedule the order takes 9 s, and no order takes less
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    order = problem.batches([[(0, 0)], [(0, 1)]])
    assert ScheduledOrder.of(problem, order).makespan_s == 9
    start = one_by_one(problem, order)
    assert start.makespan_s == 12
    assert annealed(start, 20).makespan_s == 9
    assert annealed(start, 20, target_s=9.5).makespan_s == 9
