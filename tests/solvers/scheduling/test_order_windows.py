from dataclasses import replace

import numpy as np
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds
from helpers.schedules import one_by_one, random_replica, schedule_of_random_plan, violations

from cappuccino.costs import MemoryModel
from cappuccino.models.job_shop import JobShopWindow
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.order_windows import _window_data, improve_order, is_better, schedule_graph
from cappuccino.solvers.scheduling.schedule import build_schedule


def test_reordering_improves_bad_schedules():
    gains = []
    for seed in range(1, 12, 2):
        problem = random_replica(seed)
        schedule = best = schedule_of_random_plan(problem, seed)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            best = improve_order(best, 24, rng, time_limit_s=None, deterministic_limit=0.3) or best
        gains.append(1 - best.makespan_s / schedule.makespan_s)
    assert max(gains) > 0.05


def test_pairs_already_executed_on_an_earlier_stage_keep_their_order():
    # regression: a window that held two F's on stage 1 only could exchange them there, against the FIFO link.
    # Micro-batch 0 has 1 token, micro-batch 1 has 5; stage 0 runs 0 first, and so must stage 1
    problem = make_problem(make_instance(([1, 5], 2)), make_costs(), 2)
    order = problem.batches([[(0, 0)], [(0, 1)]])
    schedule = build_schedule(problem, order, [[0, 1, ~0, ~1], [0, 1, ~0, ~1]])
    graph = schedule_graph(schedule)
    data, nodes = _window_data(schedule, graph, [(2, 4), (0, 2)])  # F's of stage 1, B's of stage 0
    assert nodes == [(0, 2), (0, 3), (1, 0), (1, 1)]
    assert ("F", 0, 1) in data.fixed_order
    assert ("B", 0, 1) in data.fixed_order
    data, _ = _window_data(schedule, graph, [(0, 2), (0, 2)])  # all F's: free to change places on both stages
    assert data.fixed_order == ()


@seeds(20)
def test_windows_state_the_schedule_they_come_from(seed):
    # on the grid, the schedule at hand is feasible in its window: nothing starts before its earliest start, and the
    # tails lead to the makespan at most
    problem = random_replica(seed)
    schedule = schedule_of_random_plan(problem, seed)
    graph = schedule_graph(schedule)
    rng = np.random.default_rng(seed)
    window = [tuple(sorted(rng.integers(0, len(stage) + 1, size=2).tolist())) for stage in schedule.operations]
    data, _ = _window_data(schedule, graph, window)
    for o in data.operations:
        assert o.earliest <= o.start
        assert o.start + o.duration + o.tail <= data.makespan
    for i, j, lag in data.precedences:
        assert data.operations[i].start + data.operations[i].duration + lag <= data.operations[j].start
    if data.operations:
        JobShopWindow(data)


def test_only_better_schedules_are_accepted():
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    found = ScheduledOrder.of(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    best, worse = found.schedule(), one_by_one(problem, found.order)
    assert (best.makespan_s, worse.makespan_s) == (9, 12)
    assert is_better(best, worse)
    assert not is_better(worse, best)
    assert not is_better(best, best)
    full = replace(best, peak_memory_gib=(1e9, 1e9))
    assert not is_better(full, worse)


def test_memory_that_is_exactly_full_is_used():
    # 2 x 3 tokens of 0.1 GiB fill the 0.6 GiB that 10.6 leave beside 10, up to the last bit of rounding; one at a time
    # takes 2 x 18 s, both in flight 3 + 2 x 9 + 6
    memory = MemoryModel(static_gib=10.0, working_gib=0.0, held_gib=0.1)
    problem = make_problem(make_instance(([3, 3], 2)), make_costs(usable=10.6, memory=memory), 2)
    order = problem.batches([[(0, 0)], [(0, 1)]])
    assert ScheduledOrder.of(problem, order).makespan_s == 27
    start = one_by_one(problem, order)
    assert start.makespan_s == 36
    found = improve_order(start, 100, np.random.default_rng(0), time_limit_s=None)
    assert found is not None
    assert found.makespan_s == 27
    assert violations(found) == ()
