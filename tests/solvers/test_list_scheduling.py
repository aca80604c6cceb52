import numpy as np
import pytest
from builders import make_costs, make_instance, make_problem
from schedules import FixedOrder, random_replica, schedule_of_random_plan, violations

from cappuccino.solvers.list_scheduling import list_schedule
from cappuccino.solvers.order_scheduling import schedule_order
from cappuccino.solvers.packing import DynamicPacking, PackingRule
from cappuccino.solvers.programs import build_schedule


def test_two_micro_batches_on_two_stages():
    # stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7; stage 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    found = schedule_order(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    assert found.operations == ((0, 1, ~0, ~1), (0, ~0, 1, ~1))
    assert found.makespan_s == 9
    schedule = build_schedule(problem, found.order, found.operations)
    assert schedule.makespan_s == 9
    assert schedule.gpu_time_s == 18
    assert violations(schedule) == ()


def test_patience_waits_for_a_backward():
    # 4, 5 and 1 tokens. Stage 0: F0 0-4, F1 4-9; stage 1: F0 4-8, B0 8-16. At 9 stage 0 could start F2, or wait 7 s
    # for B0 (16-24); then stage 1 has F1 16-21, B1 21-31, and the choice is again F2 at 24 or B1 at 31
    problem = make_problem(make_instance(([4, 5, 1], 3)), make_costs(), 2)
    batches = problem.batches([[(0, 0)], [(0, 1)], [(0, 2)]])
    for patience, expected in ((6.9, (0, 1, 2, ~0, ~1, ~2)), (7.0, (0, 1, ~0, ~1, 2, ~2))):
        assert schedule_order(problem, batches, patience).operations[0] == expected


def test_memory_limits_the_micro_batches_in_flight():
    # 2 tokens each: one in flight needs 10 + 2 + 2 = 14, two 16; one at a time each takes (2 + 4) x 2 stages = 12
    instance = make_instance(([2, 2, 2], 3))
    groups = [[(0, n)] for n in range(3)]
    tight = make_problem(instance, make_costs(usable=14.0), 2)
    found = schedule_order(tight, tight.batches(groups))
    assert found.operations == ((0, ~0, 1, ~1, 2, ~2),) * 2
    assert found.makespan_s == 36
    schedule = build_schedule(tight, found.order, found.operations)
    assert schedule.peak_memory_gib == (14, 14)
    # two in flight: stage 0 runs ahead by one; stage 1 is the bottleneck: 2 + 3 x 6 + 4
    wider = make_problem(instance, make_costs(usable=16.0), 2)
    found = schedule_order(wider, wider.batches(groups))
    assert max(build_schedule(wider, found.order, found.operations).peak_memory_gib) == 16
    assert found.makespan_s == 24


def test_steps_wait_for_the_steps_before_and_the_optimizer():
    # 2 steps of one token on 2 stages: each passes in 1 + 1 + 2 + 2; an optimizer step of 0.5 s between, one after
    problem = make_problem(make_instance(([1], 1, 2)), make_costs(optimizer_s=0.5), 2)
    found = schedule_order(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    assert found.makespan_s == 12.5
    schedule = build_schedule(problem, found.order, found.operations)
    assert schedule.makespan_s == 13
    assert schedule.timeline.programs[0] == (("F", 0), ("B", 0), ("S", 0, 0), ("F", 1), ("B", 1), ("S", 0, 1))
    assert violations(schedule) == ()


def test_an_order_against_the_steps_is_none():
    problem = make_problem(make_instance(([1], 1, 2)), make_costs(), 1)
    assert schedule_order(problem, problem.batches([[(0, 1)], [(0, 0)]])) is None


def test_cutoff():
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    batches = problem.batches([[(0, 0)], [(0, 1)]])
    assert schedule_order(problem, batches, cutoff_s=8.9) is None
    assert schedule_order(problem, batches, cutoff_s=9.0).makespan_s == 9


@pytest.mark.parametrize("seed", range(30))
def test_fixed_orders_give_valid_schedules(seed):
    problem = random_replica(seed, clip=seed % 4 == 0, layout="padded" if seed % 5 == 0 else "packed")
    order = list(schedule_of_random_plan(problem, seed).order)  # its steps follow each other
    found = schedule_order(problem, order, patience_s=float(seed % 3) * 5)
    schedule = build_schedule(problem, found.order, found.operations)
    assert violations(schedule) == ()
    assert schedule.makespan_s >= problem.lower_bound_s * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_packing_on_the_fly_gives_valid_schedules(seed):
    layout = "padded" if seed % 5 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, layout=layout, clip=seed % 4 == 0)
    rng = np.random.default_rng(seed)
    rule = PackingRule(float(rng.uniform(0.3, 6)) * problem.knee_work, 0.75, 0.1 * (seed % 2))
    found = list_schedule(problem, DynamicPacking(problem, rule, rng), patience_s=float(seed % 3) * 5)
    schedule = build_schedule(problem, found.order, found.operations)
    assert violations(schedule) == ()
    # what the list scheduler computes is what the simulator finds, but for clipping and the last optimizer steps
    if not problem.clipped and not problem.costs.optimizer_s:
        assert schedule.makespan_s == pytest.approx(found.makespan_s)
    assert schedule.makespan_s >= problem.lower_bound_s * (1 - 1e-9)


def test_below_the_target_adapters_share_a_micro_batch():
    problem = make_problem(make_instance(([2], 1), ([2], 1), ([2], 1)), make_costs(), 1)
    rng = np.random.default_rng(0)
    # 2 tokens are 6 s of work: a target of 18 holds three samples, one of 6 a single one
    shared = list_schedule(problem, DynamicPacking(problem, PackingRule(18.0), rng))
    assert [b.samples for b in shared.order] == [((0, 0), (1, 0), (2, 0))]
    alone = list_schedule(problem, DynamicPacking(problem, PackingRule(6.0), rng))
    assert [len(b.samples) for b in alone.order] == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_given_order_is_scheduled_as_from_a_source(seed):
    # two implementations of the same rules: one forms micro-batches on the way, one knows the order beforehand
    problem = random_replica(seed, tight=seed % 2 == 0, layout="padded" if seed % 5 == 0 else "packed")
    rng = np.random.default_rng(seed)
    order = list(list_schedule(problem, DynamicPacking(problem, PackingRule(problem.knee_work), rng)).order)
    for _ in range(5):
        rng.shuffle(order)
        patience = float(rng.choice([0.0, 5.0]))
        slow = list_schedule(problem, FixedOrder(order), patience)
        fast = schedule_order(problem, order, patience)
        assert (slow is None) == (fast is None)
        if slow is not None:
            assert fast.operations == slow.operations
            assert fast.makespan_s == pytest.approx(slow.makespan_s)
