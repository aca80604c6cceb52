from itertools import permutations

import numpy as np
import pytest
from helpers.brute_force_orders import best_schedule, interleavings
from helpers.builders import BACKWARD, FORWARD, make_costs, make_instance, make_problem, with_memory
from helpers.drawn import seeds
from helpers.plans import random_plan
from helpers.schedules import one_by_one, violations

from cappuccino.costs import MemoryModel, SmoothMaximum
from cappuccino.solvers.scheduling.neighbourhoods import Neighbourhood
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.schedule import build_schedule
from cappuccino.solvers.scheduling.windows import improve_window

GRID_ERROR = 1e-5
"""Of a makespan: 18 operations are rounded to a grid of a million points."""
KNEES = SmoothMaximum(6.0, 1.0, 0.01, 4.0), SmoothMaximum(9.0, 2.0, 0.02, 4.0)


def tiny_replica(seed):
    """Return a replica of 1 to 3 stages and 1 to 3 micro-batches of it; in most, memory limits what is in flight."""
    rng = np.random.default_rng(seed)
    count, stages = int(rng.choice([1, 2, 3, 3, 3])), int(rng.choice([1, 2, 2, 3, 3]))
    batches = ()
    while len(batches) != count:
        jobs = []
        for _ in range(int(rng.integers(1, 4))):
            size, steps = int(rng.integers(1, 4)), int(rng.integers(1, 3))
            jobs.append((rng.integers(1, 12, size=size * steps).tolist(), size, steps))
        instance = make_instance(*jobs, gpus=3)
        batches = random_plan(instance, 1, int(rng.integers(2**31))).replicas[0].micro_batches
    working, held = (float(x) for x in rng.choice([0.0, 0.5, 1.0], 2))
    forward, backward = (FORWARD, BACKWARD) if rng.random() < 0.5 else KNEES
    transfer = float(rng.choice([0.0, 2.0])), float(rng.choice([0.0, 0.1]))
    memory = MemoryModel(10.0, working, held)
    costs = make_costs(forward=forward, backward=backward, memory=memory, transfer=transfer)
    tokens = [b.tokens for b in make_problem(instance, costs, stages).batches([b.samples for b in batches])]
    if rng.random() < 0.7 and working + held > 0:
        least, most = memory.peak(max(tokens), max(tokens)), memory.peak(max(tokens), sum(tokens))
        costs = with_memory(costs, float(least + rng.random() * (most - least)))
    problem = make_problem(instance, costs, stages)
    return problem, problem.batches([b.samples for b in batches])


def solved(problem, order, seed):
    """Return what CP-SAT makes of the schedule in a window of all operations."""
    start, rng = one_by_one(problem, order), np.random.default_rng(seed)
    everything = 4 * len(order) * problem.num_stages
    anywhere = Neighbourhood.ANYWHERE
    return improve_window(start, everything, anywhere, 0, rng, time_limit_s=None, deterministic_limit=10.0) or start


def agreement(seeds) -> list[bool]:
    """Return for each replica whether CP-SAT's schedule is the best of all.

    It may be missed in one way: the window counts the largest micro-batch as running at every moment, the checker the
    one that runs. Then it must be the best of the schedules that are as cautious.
    """
    result = []
    for seed in seeds:
        problem, order = tiny_replica(seed)
        best, _ = best_schedule(problem, order)
        found = solved(problem, order, seed)
        assert violations(found) == ()
        assert found.makespan_s >= best * (1 - 1e-9)
        result.append(found.makespan_s <= best * (1 + GRID_ERROR))
        if not result[-1]:
            cautious, _ = best_schedule(problem, order, cautious=True)
            assert best < cautious
            assert found.makespan_s == pytest.approx(cautious, rel=GRID_ERROR)
    return result


def test_cp_sat_finds_the_best_of_all_orders():
    found = agreement(range(50))
    assert sum(found) >= 46


@pytest.mark.slow
def test_cp_sat_finds_the_best_of_all_orders_of_200_replicas():
    found = agreement(range(200))
    assert sum(found) >= 190


def test_the_tiny_replicas_have_every_feature():
    counts = dict.fromkeys(("overlap", "memory", "steps", "transfer", "three"), 0)
    for seed in range(50):
        problem, order = tiny_replica(seed)
        best, _ = best_schedule(problem, order)
        roomy = make_problem(problem.instance, with_memory(problem.costs, None), problem.num_stages)
        counts["overlap"] += best < one_by_one(problem, order).makespan_s * (1 - 1e-9)
        counts["memory"] += best_schedule(roomy, order)[0] < best * (1 - 1e-9)
        counts["steps"] += any(j for b in order for _, j in b.steps)
        counts["transfer"] += order[0].transfer_s > 0 and problem.num_stages > 1
        counts["three"] += len(order) == 3 and problem.num_stages == 3
    assert min(counts.values()) >= 5, counts


@seeds(20)
def test_the_best_of_all_orders_is_valid_and_below_every_list_schedule(seed):
    # the brute force and the rest of the project agree on what a schedule is and takes
    problem, order = tiny_replica(seed)
    best, programs = best_schedule(problem, order)
    first = [op for op in programs[0] if op >= 0]
    rank = {k: place for place, k in enumerate(first)}
    renamed = [[rank[op] if op >= 0 else ~rank[~op] for op in program] for program in programs]
    schedule = build_schedule(problem, [order[k] for k in first], renamed)
    assert schedule.makespan_s == pytest.approx(best, rel=1e-12)
    assert violations(schedule) == ()
    assert problem.lower_bound_s <= best * (1 + 1e-9)
    for permuted in permutations(order):
        found = ScheduledOrder.of(problem, permuted)
        assert found is None or found.makespan_s >= best * (1 - 1e-9)


def test_interleavings():
    # as many as there are ways to set two pairs of brackets
    assert set(interleavings((0, 1), (0, 1))) == {(0, ~0, 1, ~1), (0, 1, ~0, ~1)}
    assert set(interleavings((0, 1), (1, 0))) == {(0, 1, ~1, ~0)}
    assert [len(set(interleavings(range(n), range(n)))) for n in (1, 2, 3, 4)] == [1, 2, 5, 14]


def test_hand_computed_optima():
    # 1 + 1 tokens on 2 stages: stage 1 F0 1-2, B0 2-4, F1 4-5, B1 5-7, then B1 7-9 on stage 0; one at a time 2 x 6
    instance, groups = make_instance(([1, 1], 2)), [[(0, 0)], [(0, 1)]]
    for usable, least in ((None, 9), (12.0, 12)):
        problem = make_problem(instance, make_costs(usable=usable), 2)
        order = problem.batches(groups)
        assert best_schedule(problem, order)[0] == least
        assert solved(problem, order, 0).makespan_s == least
    # 1 and 3 tokens on 2 stages, the short one first: stage 0 F0 0-1, F1 1-4, stage 1 F0 1-2, B0 2-4, F1 4-7, B1 7-13,
    # stage 0 B1 13-19. The long one first: stage 1 F1 3-6, B1 6-12, stage 0 B1 12-18 and B0 18-20
    problem = make_problem(make_instance(([1, 3], 2)), make_costs(), 2)
    order = problem.batches(groups)
    assert best_schedule(problem, order)[0] == 19
    assert solved(problem, order, 0).makespan_s == 19
