import numpy as np
import pytest
from builders import make_costs, make_instance, make_problem

from cappuccino.passage import combinations, membership, packings, passage_bounds
from cappuccino.solvers.budget import Budget
from cappuccino.solvers.scheduling import schedule_replica


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
    found, _ = passage_bounds(tokens, 2 * tokens, tokens <= max_tokens, packings(len(lengths)), combinations(), stages)
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


@pytest.mark.parametrize("seed", range(25))
def test_no_schedule_is_faster(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, int(rng.integers(1, 6))).tolist()
    stages = int(rng.integers(1, 5))
    problem = make_problem(make_instance((lengths, len(lengths))), make_costs(), stages)
    found = schedule_replica(problem, Budget(None, constructions=12, moves=3000, windows=3), seed)
    least = bound(lengths, stages)
    assert least <= found.makespan_s * (1 + 1e-9)
    assert least >= 0.8 * found.makespan_s  # and it is worth something
