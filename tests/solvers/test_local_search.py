import numpy as np
import pytest
from builders import make_costs, make_instance, make_problem
from schedules import random_replica, violations

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.list_scheduling import list_schedule
from cappuccino.solvers.local_search import _neighbour, anneal
from cappuccino.solvers.order_scheduling import respects_steps
from cappuccino.solvers.packing import DynamicPacking, PackingRule
from cappuccino.solvers.programs import build_schedule


def test_respects_steps():
    # a0: 2 steps of 2, samples 0 1 | 2 3; a1: 2 steps of 1
    problem = make_problem(make_instance(([1, 1, 1, 1], 2), ([1, 1], 1)), make_costs(), 1)
    for groups, expected in (
        ([[(0, 0)], [(0, 1)], [(0, 2), (1, 0)], [(0, 3), (1, 1)]], True),
        ([[(0, 1), (1, 0)], [(1, 1)], [(0, 0)], [(0, 3)], [(0, 2)]], True),  # within a step any order
        ([[(0, 0)], [(0, 2)], [(0, 1)], [(0, 3)], [(1, 0)], [(1, 1)]], False),
        ([[(0, 0), (0, 1), (1, 1)], [(1, 0), (0, 2), (0, 3)]], False),
        ([], True),
    ):
        assert respects_steps(problem.batches(groups)) is expected


def first(problem, seed):
    rule = PackingRule(problem.knee_work)
    return list_schedule(problem, DynamicPacking(problem, rule, np.random.default_rng(seed)))


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_hold_the_same_samples_and_fit(seed):
    problem = random_replica(seed, tight=True, layout="padded" if seed % 3 == 0 else "packed")
    rng = np.random.default_rng(seed)
    order = list(first(problem, seed).order)
    samples = sorted(s for b in order for s in b.samples)
    for _ in range(100):
        new = _neighbour(problem, order, rng)
        if new is None:
            continue
        assert sorted(s for b in new for s in b.samples) == samples
        assert all(b.samples and b.tokens <= problem.max_tokens for b in new)
        assert all(len({a for a, _ in b.steps}) == len(b.steps) for b in new)
        if respects_steps(new):
            order = new


@pytest.mark.parametrize("seed", range(10))
def test_annealing_never_worsens_and_stays_valid(seed):
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed % 3 == 0)
    start = first(problem, seed)
    found = anneal(problem, start, 0.0, Clock(None), 150, 0.0, np.random.default_rng(seed))
    assert found.makespan_s <= start.makespan_s
    assert violations(build_schedule(problem, found.order, found.operations)) == ()


def test_annealing_stops_at_the_target():
    problem = random_replica(1)
    start = first(problem, 1)
    assert anneal(problem, start, 0.0, Clock(None), 10**9, start.makespan_s, np.random.default_rng(0)) is start
    assert anneal(problem, start, 0.0, Clock(0.0), 10**9, 0.0, np.random.default_rng(0)) is start
