import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem, with_unlike_stages
from helpers.drawn import seeds

from cappuccino.bounds.passage import combinations, membership, packings, passage_bounds
from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.solvers.budget import Budget
from cappuccino.solvers.scheduling.construction import list_schedule
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.scheduler import schedule_replica


@pytest.mark.parametrize(("samples", "partitions"), [(1, 1), (2, 2), (3, 5), (4, 15), (5, 52), (8, 4140)])
def test_packings_are_all_partitions(samples, partitions):
    table = packings(samples)
    assert len(table) == partitions  # the Bell numbers
    found = {frozenset(row[row > 0].tolist()) for row in table}
    assert len(found) == partitions
    assert all(sum(parts) == 2**samples - 1 for parts in found)  # disjoint bit sets that hold every sample


def test_combinations_are_convex():
    weights = combinations()
    assert (weights >= 0).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)))


def bound(lengths, stages, max_tokens=10**9):
    """Return the bound of one step; a token takes 1 s forward and 2 s backward on every stage."""
    held = membership(len(lengths))
    tokens = (held @ np.array(lengths)).astype(float)[None]
    ways = np.stack([tokens, (stages - 1) * tokens, tokens], axis=1)
    found, _ = passage_bounds(ways, 2 * ways, tokens <= max_tokens, packings(len(lengths)), combinations(), stages)
    return float(found[0])


def test_one_sample_passes_every_stage_twice():
    assert bound([3], 4) == pytest.approx(4 * (3 + 6))


def test_two_samples_on_two_stages():
    # apart: the last stage works 6 s, after 1 s on the way down and before 2 s on the way up; together 2 x 6
    assert bound([1, 1], 2) == pytest.approx(9)


def test_a_packing_that_does_not_fit_does_not_count():
    # on one stage all packings take the same; a sample that does not fit never passes
    assert bound([2, 2], 1, max_tokens=2) == pytest.approx(12)
    assert bound([5], 3, max_tokens=4) == np.inf


def test_a_large_sample_is_a_chain_of_its_own():
    # 6 tokens on 3 stages pass in 3 x 18 s; beside them the last stage would need 24 + 2 x 3 s only. Each token more
    # stands before or after it on the first stage: 1 s at least
    assert bound([6], 3) == pytest.approx(54)
    assert bound([6, 1, 1], 3) >= 56


@seeds(20)
def test_no_schedule_is_faster(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, int(rng.integers(1, 6))).tolist()
    stages = int(rng.integers(1, 5))
    problem = make_problem(make_instance((lengths, len(lengths))), make_costs(), stages)
    found = schedule_replica(problem, Budget(None, constructions=12, moves=3000, windows=3), seed)
    least = bound(lengths, stages)
    assert least <= found.makespan_s * (1 + 1e-9)
    assert least >= 0.9 * found.makespan_s  # and it is worth something


@seeds(30)
def test_no_schedule_on_stages_that_differ_is_faster(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, int(rng.integers(1, 6))).tolist()
    stages = int(rng.integers(2, 5))
    problem = make_problem(make_instance((lengths, len(lengths))), with_unlike_stages(make_costs(), seed), stages)
    assert len(set(problem.kinds)) > 1
    found = schedule_replica(problem, Budget(None, constructions=12, moves=3000, windows=3), seed)
    path = float(ReplicaBounds(problem.instance, problem.costs, stages, problem.memory_gib).paths[0])
    assert path <= found.makespan_s * (1 + 1e-9)
    assert path >= 0.8 * found.makespan_s


@seeds(12)
def test_fastest_places_pass_as_fast_as_the_bound(seed):
    rng = np.random.default_rng(seed)
    steps, batch, stages = 3, int(rng.integers(2, 7)), int(rng.integers(2, 6))
    problem = make_problem(make_instance((rng.integers(1, 40, steps * batch).tolist(), batch)), make_costs(), stages)
    bounds = ReplicaBounds(problem.instance, problem.costs, stages, problem.memory_gib)
    places = bounds.fastest_places(0)
    assert places.shape == (steps, batch)
    assert (np.sort(np.unique(places)) == np.arange(places.max() + 1)).all()
    rule = PackingRule(problem.launch_bound_work, critical_urgency_s=10 * problem.launch_bound_work)
    found = list_schedule(problem, rule, fastest=(0, places))
    assert [b.samples for b in found.order if b.steps == ((0, 0),)] == [
        tuple((0, int(n)) for n in np.flatnonzero(places[0] == k)) for k in range(places[0].max() + 1)
    ]
    assert bounds.paths[0] <= found.makespan_s * (1 + 1e-9)
    assert found.makespan_s <= 1.15 * bounds.paths[0]


def test_steps_that_are_too_large_have_no_fastest_places():
    problem = make_problem(make_instance((list(range(1, 10)), 9)), make_costs(), 2)
    assert ReplicaBounds(problem.instance, problem.costs, 2, problem.memory_gib).fastest_places(0) is None
