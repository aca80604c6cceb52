import numpy as np
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds
from helpers.schedules import contents, random_replica, violations

from cappuccino.solvers.scheduling.construction import list_schedule
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.schedule import build_schedule


def test_two_micro_batches_on_two_stages():
    # stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7; stage 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    found = ScheduledOrder.of(problem, problem.batches([[(0, 0)], [(0, 1)]]))
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
        assert ScheduledOrder.of(problem, batches, patience).operations[0] == expected


def test_memory_limits_the_micro_batches_in_flight():
    # 2 tokens each: one in flight needs 10 + 2 + 2 = 14, two 16; one at a time each takes (2 + 4) x 2 stages = 12
    instance = make_instance(([2, 2, 2], 3))
    groups = [[(0, n)] for n in range(3)]
    tight = make_problem(instance, make_costs(usable=14.0), 2)
    found = ScheduledOrder.of(tight, tight.batches(groups))
    assert found.operations == ((0, ~0, 1, ~1, 2, ~2),) * 2
    assert found.makespan_s == 36
    schedule = build_schedule(tight, found.order, found.operations)
    assert schedule.peak_memory_gib == (14, 14)
    # two in flight: stage 0 runs ahead by one; stage 1 is the bottleneck: 2 + 3 x 6 + 4
    wider = make_problem(instance, make_costs(usable=16.0), 2)
    found = ScheduledOrder.of(wider, wider.batches(groups))
    assert max(build_schedule(wider, found.order, found.operations).peak_memory_gib) == 16
    assert found.makespan_s == 24


def test_steps_wait_for_the_steps_before_and_the_optimizer():
    # 2 steps of one token on 2 stages: each passes in 1 + 1 + 2 + 2; an optimizer step of 0.5 s between, one after
    problem = make_problem(make_instance(([1], 1, 2)), make_costs(optimizer_s=0.5), 2)
    found = ScheduledOrder.of(problem, problem.batches([[(0, 0)], [(0, 1)]]))
    assert found.makespan_s == 12.5
    schedule = build_schedule(problem, found.order, found.operations)
    assert schedule.makespan_s == 13
    assert schedule.programs[0] == (("F", 0), ("B", 0), ("S", 0, 0), ("F", 1), ("B", 1), ("S", 0, 1))
    assert violations(schedule) == ()


def test_an_order_against_the_steps_is_none():
    problem = make_problem(make_instance(([1], 1, 2)), make_costs(), 1)
    assert ScheduledOrder.of(problem, problem.batches([[(0, 1)], [(0, 0)]])) is None


def test_cutoff():
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    batches = problem.batches([[(0, 0)], [(0, 1)]])
    assert ScheduledOrder.of(problem, batches, cutoff_s=8.9) is None
    assert ScheduledOrder.of(problem, batches, cutoff_s=9.0).makespan_s == 9


def rule_and_patience(problem, seed):
    rng = np.random.default_rng(seed)
    target, urgency = float(rng.uniform(0.3, 6)) * problem.launch_bound_work, (0.0, 10.0, 40.0)[seed % 3]
    rule = PackingRule(target, (0.75, 0.5, 1.0)[seed % 3], float(seed % 2), (1.0, 0.4)[seed % 2], urgency)
    return rule, float(seed % 3) * 5


@seeds(20)
def test_packing_on_the_fly_gives_the_schedule_of_its_order(seed):
    # one way to the schedule forms micro-batches when they are needed, the other knows them beforehand
    layout = "padded" if seed % 5 == 0 else "packed"
    problem = random_replica(seed, tight=seed % 2 == 0, layout=layout, linear=True)
    rule, patience = rule_and_patience(problem, seed)
    rng = np.random.default_rng(seed)
    for noise in (0.0, 0.3):
        found = list_schedule(problem, rule, patience, noise=noise, rng=rng)
        again = ScheduledOrder.of(problem, found.order, patience).schedule()
        assert again.operations == found.operations
        assert again.makespan_s == found.makespan_s


def packing(problem, *rule) -> list[tuple[tuple[int, int], ...]]:
    """Return the samples of the micro-batches that a rule forms on the fly."""
    return [b.samples for b in list_schedule(problem, PackingRule(*rule)).order]


def test_below_the_target_adapters_share_a_micro_batch():
    problem = make_problem(make_instance(([2], 1), ([2], 1), ([2], 1)), make_costs(), 1)
    # 2 tokens are 6 s of work: a target of 18 holds three samples, one of 6 a single one
    assert packing(problem, 18.0) == [((0, 0), (1, 0), (2, 0))]
    assert packing(problem, 6.0) == [((0, 0),), ((1, 0),), ((2, 0),)]


def test_steps_are_split_evenly_into_parts_of_the_target():
    # 10 tokens are 30 s: two parts of 15, the longest samples first, each to the lighter part
    instance = make_instance(([4, 3, 2, 1], 4))
    problem = make_problem(instance, make_costs(), 1)
    assert packing(problem, 15.0) == [((0, 0), (0, 3)), ((0, 1), (0, 2))]
    assert packing(problem, 30.0) == [((0, 0), (0, 1), (0, 2), (0, 3))]
    assert packing(problem, 0.1) == [((0, 0),), ((0, 1),), ((0, 2),), ((0, 3),)]
    # no more than 4 tokens fit: three parts
    tight = make_problem(instance, make_costs(usable=18.0), 1)
    assert packing(tight, 30.0) == [((0, 0),), ((0, 1),), ((0, 2), (0, 3))]
    # padded, two parts take 2 x 4 and 2 x 3 tokens, three 4, 3 and 2 x 2
    padded = make_instance(([4, 3, 2, 1], 4), layout="padded")
    assert packing(make_problem(padded, make_costs(usable=10.0 + 2 * 8), 1), 30.0) == [
        ((0, 0), (0, 3)),
        ((0, 1), (0, 2)),
    ]
    assert packing(make_problem(padded, make_costs(usable=10.0 + 2 * 7), 1), 30.0) == [
        ((0, 0),),
        ((0, 1),),
        ((0, 2), (0, 3)),
    ]


def test_micro_batches_far_below_the_target_are_filled():
    # 4 tokens are 12 s of 20, 1 token is 3 s; the longer step leads
    problem = make_problem(make_instance(([1], 1), ([4], 1)), make_costs(), 1)
    alone, together = [((1, 0),), ((0, 0),)], [((0, 0), (1, 0))]
    assert packing(problem, 20.0, 0.59) == alone  # 12 s are 0.6 of the target
    assert packing(problem, 20.0, 0.61) == together
    # not if the memory has room for 4 tokens
    tight = make_problem(problem.instance, make_costs(usable=18.0), 1)
    assert packing(tight, 20.0, 0.61) == alone
    # padded, the two are 8 tokens
    padded = make_instance(([1], 1), ([4], 1), layout="padded")
    assert packing(make_problem(padded, make_costs(usable=10.0 + 2 * 7), 1), 20.0) == alone
    assert packing(make_problem(padded, make_costs(usable=10.0 + 2 * 8), 1), 20.0) == together


def test_filling_up_leads_a_tenth_above_the_target_at_most():
    problem = make_problem(make_instance(([4], 1), ([4], 1)), make_costs(), 1)
    assert packing(problem, 21.0) == [((0, 0),), ((1, 0),)]  # 24 s are more than 23.1
    assert packing(problem, 22.0) == [((0, 0), (1, 0))]


def test_the_longest_remaining_path_fills_first():
    # after 4 tokens of a0 (12 s of 20, to be filled up to 15), a1 has 3 steps of 3 s before it, a2 one of 6. One stage
    # does the B of each micro-batch before the next F; then a1 and a2 have 6 s each, and both fit
    problem = make_problem(make_instance(([4], 1), ([1, 1, 1], 1), ([2], 1)), make_costs(), 1)
    assert packing(problem, 20.0) == [((0, 0), (1, 0)), ((1, 1), (2, 0)), ((1, 2),)]


def test_the_load_speaks_for_adapters_with_many_steps():
    # two stages; a micro-batch of the target takes 36 s. 12 tokens take 2 x 36 s, three steps of 2 tokens 3 x 2 x 12 s:
    # a0 leads. If each step waits for one more micro-batch, 108 s stand against 180 s
    instance = make_instance(([12], 1), ([2, 2, 2], 1))
    problem = make_problem(instance, make_costs(), 2)
    assert packing(problem, 36.0, 0.0, 0.0)[0] == ((0, 0),)
    assert packing(problem, 36.0, 0.0, 1.0)[0] == ((1, 0),)
    # nothing is waited for where no stage is behind the first
    assert packing(make_problem(instance, make_costs(), 1), 36.0, 0.0, 1.0)[0] == ((0, 0),)


def test_the_adapter_with_the_longest_path_has_a_target_of_its_own():
    # two adapters of 4 samples of 1 token (12 s of work) a step; that with two steps has the longer path. Its parts and
    # what it is filled up to follow its target, those of the other one do not
    problem = make_problem(make_instance(([1] * 4, 4), ([1] * 8, 4)), make_costs(), 1)
    whole = [((1, 0), (1, 1), (1, 2), (1, 3)), ((0, 0), (0, 1), (0, 2), (0, 3)), ((1, 4), (1, 5), (1, 6), (1, 7))]
    assert sorted(packing(problem, 12.0, 0.75, 0.0, 1.0)) == sorted(whole)
    halves = packing(problem, 12.0, 0.75, 0.0, 0.5)
    assert [b for b in halves if b[0][0] == 0] == whole[1:2]
    assert [len(b) for b in halves if b[0][0] == 1] == [2, 2, 2, 2]
    # 2 tokens of a0 (6 s, the longer path) are enough for a target of 6 s, and not for 12 s
    shared = make_problem(make_instance(([2, 2], 1), ([1], 1)), make_costs(), 1)
    assert packing(shared, 12.0, 0.75, 0.0, 0.5)[0] == ((0, 0),)
    assert packing(shared, 12.0, 0.75, 0.0, 1.0)[0] == ((0, 0), (1, 0))


def test_the_adapter_with_the_longest_path_is_urgent():
    # 4 tokens of a0, which has another step to come, lead; then 5 and 3 tokens of a1. Stage 0: F0 0-4, F1 4-9; stage 1:
    # F0 4-8, B0 8-16. At 9 stage 0 could start the 3 tokens, or wait 7 s for B0
    problem = make_problem(make_instance(([4, 4], 1), ([5, 3], 2)), make_costs(), 2)
    for urgency, operations in ((6.9, (0, 1, 2)), (7.0, (0, 1, ~0))):
        found = list_schedule(problem, PackingRule(9.0, 0.0, 0.0, 1.0, urgency))
        assert found.operations[0][:3] == operations
        assert sorted(contents(found.order)) == [
            (((0, 0),), urgency),
            (((0, 1),), urgency),
            (((1, 0),), 0.0),
            (((1, 1),), 0.0),
        ]


def test_equal_seeds_give_equal_noise():
    problem = random_replica(7)
    rule = PackingRule(problem.launch_bound_work)

    def noisy(noise: float, seed: int):
        found = list_schedule(problem, rule, noise=noise, rng=np.random.default_rng(seed))
        return contents(found.order), found.operations, found.makespan_s

    assert noisy(0.5, 1) == noisy(0.5, 1)
    assert len({str(noisy(0.5, seed)) for seed in range(10)}) > 1
    assert {str(noisy(0.0, seed)) for seed in range(3)} == {str(noisy(0.0, 0))}


def test_packing_on_the_fly_stops_at_the_cutoff():
    # one stage, two micro-batches of 3 s: the second one begins at 3
    problem = make_problem(make_instance(([1], 1), ([1], 1)), make_costs(), 1)
    rule = PackingRule(3.0)
    assert list_schedule(problem, rule, cutoff_s=6.0).makespan_s == 6
    assert list_schedule(problem, rule, cutoff_s=5.9) is None
    assert list_schedule(problem, rule, cutoff_s=2.9) is None
