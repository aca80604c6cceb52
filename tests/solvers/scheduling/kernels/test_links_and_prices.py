import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds
from helpers.schedules import contents, random_order, random_replica

from cappuccino.solvers.scheduling.kernels.arrays import empty_jobs
from cappuccino.solvers.scheduling.kernels.moves import link, price
from cappuccino.solvers.scheduling.order import OrderArrays


def linked(problem, order, begun=frozenset()):
    """Return the micro-batches by rank with their dependencies, None when the order contradicts the steps."""
    arrays, jobs = OrderArrays.of(problem, order, begun), empty_jobs(len(order), len(set(problem.kinds)))
    return jobs if link(arrays.window, arrays.packed, arrays.links(), jobs) else None


def test_steps_follow_each_other():
    # a0: 2 steps of 2, samples 0 1 | 2 3; a1: 2 steps of 1
    problem = make_problem(make_instance(([1, 1, 1, 1], 2), ([1, 1], 1)), make_costs(), 1)
    for groups, expected in (
        ([[(0, 0)], [(0, 1)], [(0, 2), (1, 0)], [(0, 3), (1, 1)]], True),
        ([[(0, 1), (1, 0)], [(1, 1)], [(0, 0)], [(0, 3)], [(0, 2)]], True),  # within a step any order
        ([[(0, 0)], [(0, 2)], [(0, 1)], [(0, 3)], [(1, 0)], [(1, 1)]], False),
        ([[(0, 0), (0, 1), (1, 1)], [(1, 0), (0, 2), (0, 3)]], False),
        ([[(0, 0)], [(0, 1), (0, 2)], [(0, 3)]], False),  # two steps of an adapter in one micro-batch
        ([], True),
    ):
        assert (linked(problem, problem.batches(groups)) is not None) is expected


def test_two_steps_apart_share_no_micro_batch():
    problem = make_problem(make_instance(([1, 1, 1], 1)), make_costs(), 1)
    assert linked(problem, problem.batches([[(0, 1)], [(0, 0), (0, 2)]])) is None
    assert linked(problem, problem.batches([[(0, 0), (0, 2)], [(0, 1)]])) is None


def test_what_a_micro_batch_waits_for():
    # a0: steps 0 1 | 2 3 | 4 5; a1: steps 0 | 1. An optimizer step takes 0.5 s
    problem = make_problem(make_instance(([1, 2, 3, 4, 5, 6], 2), ([7, 8], 1)), make_costs(optimizer_s=0.5), 2)
    groups = [[(0, 1)], [(0, 0), (1, 0)], [(0, 2)], [(0, 3), (1, 1)], [(0, 5)], [(0, 4)]]
    jobs = linked(problem, problem.batches(groups))
    # step 1 of a0 waits for ranks 0 and 1, of a1 for rank 1; step 2 of a0 for ranks 2 and 3
    assert jobs.needed.tolist() == [-1, -1, 1, 1, 3, 3]
    # step 1 of a0 begins with rank 2, of a1 with rank 3; step 2 of a0 with rank 4
    assert jobs.waits_s.tolist() == [0.0, 0.0, 0.5, 0.5, 0.5, 0.0]
    assert jobs.tokens.tolist() == [2, 8, 3, 12, 6, 5]
    assert jobs.forward_s.tolist() == [[2], [8], [3], [12], [6], [5]]
    assert jobs.backward_s.tolist() == [[4], [16], [6], [24], [12], [10]]
    # both begin with one micro-batch: the optimizer works twice
    both = linked(problem, problem.batches([[(0, 0), (0, 1), (1, 0)], [(0, 2), (0, 3), (1, 1)], [(0, 4), (0, 5)]]))
    assert both.waits_s.tolist() == [0.0, 1.0, 0.5]
    # the same from rank 3 on: step 1 of a0 has begun before; what is done needs no waiting for
    rest = linked(problem, problem.batches(groups[3:]), frozenset({(0, 0), (1, 0), (0, 1)}))
    assert rest.needed.tolist() == [-1, 0, 0]
    assert rest.waits_s.tolist() == [0.5, 0.5, 0.0]


@seeds(20)
def test_needed_ranks_are_those_of_the_steps_before(seed):
    problem = random_replica(seed)
    order = random_order(problem, seed)
    jobs = linked(problem, order)
    for k, batch in enumerate(order):
        before = {(a, j - 1) for a, j in batch.steps} if batch.evaluation is None else {batch.evaluation[:2]}
        assert jobs.needed[k] == max((m for m, b in enumerate(order) if before & set(b.steps)), default=-1)
        begun = [key for b in order[:k] for key in b.steps]
        stepped = [b.evaluation[:2] for b in order[:k] if b.evaluation is not None]
        first = sum(j > 0 and (a, j) not in begun and (a, j - 1) not in stepped for a, j in batch.steps)
        first += batch.evaluation is not None and batch.evaluation[:2] not in stepped
        assert jobs.waits_s[k] == first * problem.costs.optimizer_s


@seeds(10)
def test_arrays_hold_the_micro_batches(seed):
    problem = random_replica(seed, layout="padded" if seed % 2 else "packed")
    order = random_order(problem, seed, urgent=True)
    arrays = OrderArrays.of(problem, order, spare=3)
    assert contents(arrays.batches(problem, arrays.packed)) == contents(order)
    assert len(arrays.packed.order) == len(order) + 3
    assert arrays.packed.tokens[: len(order)].tolist() == [b.tokens for b in order]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("seed", range(5))
def test_prices_are_those_of_the_cost_model(seed, layout):
    problem = random_replica(seed, tight=True, layout=layout)
    order, costs, rng = random_order(problem, seed), problem.stage_costs, np.random.default_rng(seed)
    arrays = OrderArrays.of(problem, order, spare=1)
    packed, slot = arrays.packed, len(order)
    fitted = set()
    for _ in range(50):
        chosen = rng.random(len(arrays.samples)) < rng.choice([0.02, 0.1, 0.3])
        packed.batch_of[:] = np.where(chosen, slot, 0)
        fits = price(costs, arrays.window, packed, slot)
        samples = [s for s, inside in zip(arrays.samples, chosen, strict=True) if inside]
        expected = problem.batch(samples) if samples else None
        assert fits is (expected is not None and expected.tokens <= problem.max_tokens)
        fitted.add(fits)
        if fits:
            assert packed.tokens[slot] == expected.tokens
            assert packed.forward_s[slot] == pytest.approx(expected.forward_s, rel=1e-12)
            assert packed.backward_s[slot] == pytest.approx(expected.backward_s, rel=1e-12)
            assert packed.transfer_s[slot] == pytest.approx(expected.transfer_s, rel=1e-12)
    assert fitted == {True, False}
