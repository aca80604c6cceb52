import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds
from helpers.schedules import contents, random_order, random_replica, violations

from cappuccino.solvers.scheduling.annealing import move_rule
from cappuccino.solvers.scheduling.kernels.moves import anneal
from cappuccino.solvers.scheduling.order import ScheduledOrder


def scheduled(seed):
    layout = "padded" if seed % 5 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, layout=layout, clip=seed % 7 == 0)
    order = random_order(problem, seed, urgent=seed % 3 == 0)
    return ScheduledOrder.of(problem, order, (0.0, 20.0)[seed % 2])


def same_schedule(one: ScheduledOrder, other: ScheduledOrder) -> bool:
    a, b = one.schedule(), other.schedule()
    return (contents(a.order), a.operations, a.makespan_s) == (contents(b.order), b.operations, b.makespan_s)


@seeds(10)
def test_it_is_the_schedule_of_its_order(seed):
    whole = scheduled(seed)
    expected = ScheduledOrder.of(whole.problem, whole.order, whole.machine.patience_s)
    assert same_schedule(whole, expected)
    assert whole.whole(0.25).value(whole.machine) == whole.makespan_s


def test_an_order_against_the_steps_is_none():
    problem = make_problem(make_instance(([1], 1, 2)), make_costs(), 1)
    assert ScheduledOrder.of(problem, problem.batches([[(0, 1)], [(0, 0)]]), 0.0) is None


@seeds(16)
def test_the_state_carried_over_is_exact(seed):
    # what stands behind a window is looked at to the end: then its value is that of the whole schedule
    current = scheduled(seed)
    for low in range(len(current.order)):
        window = current.window(low, 3, 10**6, 0.25)
        assert window.value(current.machine) == current.makespan_s
        assert same_schedule(current.with_best_of(window), current)


@seeds(16)
def test_a_window_that_is_not_changed_leaves_the_schedule_as_it_is(seed):
    current = scheduled(seed)
    for low in range(len(current.order)):
        window = current.window(low, 4, 1, 0.25)
        assert same_schedule(current.with_best_of(window), current)
        assert window.first + window.low == low
        assert window.low >= 0
        assert window.first + window.length == min(low + 4 + current.problem.num_stages, len(current.order))
        assert window.tail == min(current.problem.num_stages, max(0, len(current.order) - low - 4))
        done = current.order[window.first : window.first + window.length]
        assert contents(window.arrays.batches(current.problem, window.arrays.packed)) == contents(done)


def test_a_window_begins_with_what_is_in_flight():
    # two stages, 4 micro-batches of 1 token: stage 0 F0 0-1, F1 1-2, F2 2-3, F3 3-4; stage 1 F0 1-2, B0 2-4, F1 4-5,
    # B1 5-7; B0 on stage 0 could start at 4, when F3 has been done: all are in flight when rank 3 begins
    problem = make_problem(make_instance(([1] * 4, 4)), make_costs(), 2)
    current = ScheduledOrder.of(problem, problem.batches([[(0, n)] for n in range(4)]), 0.0)
    assert current.schedule().operations[0] == (0, 1, 2, 3, ~0, ~1, ~2, ~3)
    window = current.window(3, 1, 5, 0.25)
    assert (window.first, window.low, window.length, window.tail) == (0, 3, 4, 0)
    assert window.begin.forwards.tolist() == [3, 1]
    assert window.begin.backwards.tolist() == [0, 0]
    assert window.begin.held_tokens.tolist() == [3, 1]
    assert window.begin.free_s.tolist() == [3, 2]
    # one in flight at a time (2 GiB for 1 token), 6 s each: when F2 has been done, 12-13, only B2 is to come
    tight = make_problem(problem.instance, make_costs(usable=12.0), 2)
    current = ScheduledOrder.of(tight, tight.batches([[(0, n)] for n in range(4)]), 0.0)
    window = current.window(3, 1, 5, 0.25)
    assert (window.first, window.low, window.length, window.tail) == (2, 1, 2, 0)
    assert window.begin.forwards.tolist() == [1, 0]
    assert window.begin.backwards.tolist() == [0, 0]
    assert window.begin.held_tokens.tolist() == [1, 0]
    assert window.begin.free_s.tolist() == [13, 10]
    assert window.value(current.machine) == 24


def test_a_step_that_has_begun_waits_for_no_optimizer():
    # one adapter, two steps of three micro-batches of 1 token, one stage, one in flight: 3 s each, 0.5 s after step 0
    problem = make_problem(make_instance(([1] * 6, 3)), make_costs(usable=12.0, optimizer_s=0.5), 1)
    current = ScheduledOrder.of(problem, problem.batches([[(0, n)] for n in range(6)]), 0.0)
    assert current.makespan_s == 18.5
    # a window holds the micro-batch before it, which is in flight; step 1 begins with rank 3
    for low, waits in ((0, [0.0, 0.5]), (3, [0.0, 0.5]), (4, [0.5]), (5, [0.0])):
        window = current.window(low, 4, 5, 0.25)
        assert window.first == max(0, low - 1)
        assert window.arrays.window.waits_s.tolist() == waits
        assert window.value(current.machine) == 18.5


@seeds(12)
def test_the_best_of_a_window_takes_its_place(seed):
    current = scheduled(seed)
    problem, rng = current.problem, np.random.default_rng(seed)
    low = int(rng.integers(len(current.order)))
    window = current.window(low, 5, 10**6, 0.25)
    values = np.full(2, window.value(current.machine))
    anneal(
        rng, current.machine, problem.stage_costs, window.arrays.window, window.arrays.packed, window.scratch,
        window.begin, window.low, window.tail, 200, 0.1 * problem.launch_bound_work,
        move_rule(problem), values, 0.0,
    )  # fmt: skip
    found = current.with_best_of(window)
    # a window that sees the end knows what the schedule becomes
    assert found.makespan_s == pytest.approx(values[1], rel=1e-12)
    assert found.makespan_s <= current.makespan_s
    assert violations(found.schedule()) == ()
    assert contents(found.order[:low]) == contents(current.order[:low])
    behind = len(current.order) - min(low + 5, len(current.order))
    assert contents(found.order[len(found.order) - behind :]) == contents(current.order[len(current.order) - behind :])


def test_idle_time_of_the_last_stage():
    # stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7: idle for the first second only
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    current = ScheduledOrder.of(problem, problem.batches([[(0, 0)], [(0, 1)]]), 0.0)
    assert current.idle_time().tolist() == [1, 1]
    # one at a time: F0 1-2, B0 2-4, and after B0 4-6, F1 6-7 on stage 0: F1 7-8, B1 8-10
    tight = make_problem(problem.instance, make_costs(usable=12.0), 2)
    current = ScheduledOrder.of(tight, tight.batches([[(0, 0)], [(0, 1)]]), 0.0)
    assert current.idle_time().tolist() == [1, 4]
