import numpy as np
import pytest
from helpers.baseline_instances import random_replica
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds

from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.replica import ranks_of
from cappuccino.solvers.baselines.samples import Samples, own_micro_batches
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


def in_training_order(problem: ReplicaProblem, flushed: np.ndarray | None = None) -> OneFOneB:
    samples = Samples.of(problem)
    return OneFOneB(problem, samples, ranks_of(samples.position, own_micro_batches(problem, samples)), flushed)


def test_every_stage_fills_up_and_alternates():
    replica = in_training_order(make_problem(make_instance(([1] * 4, 4)), make_costs(), 3))
    assert replica.operations.tolist() == [
        [0, 1, 2, ~0, 3, ~1, ~2, ~3],
        [0, 1, ~0, 2, ~1, 3, ~2, ~3],
        [0, ~0, 1, ~1, 2, ~2, 3, ~3],
    ]


def test_two_micro_batches_on_two_stages():
    # stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7; stage 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9
    replica = in_training_order(make_problem(make_instance(([1, 1], 2)), make_costs(), 2))
    assert replica.makespan_s == 9
    assert replica.gpu_time_s == 18
    assert replica.schedule().makespan_s == 9


def test_a_step_waits_for_the_step_before():
    # each of the two steps passes in 1 + 1 + 2 + 2; an optimizer step of 0.5 s between them, one at the end
    replica = in_training_order(make_problem(make_instance(([1], 1, 2)), make_costs(optimizer_s=0.5), 2))
    assert replica.operations.tolist() == [[0, ~0, 1, ~1]] * 2
    assert replica.makespan_s == 13


def test_a_flush_empties_the_pipeline():
    problem = make_problem(make_instance(([1], 1), ([1], 1)), make_costs(), 2)
    assert in_training_order(problem).makespan_s == 9
    flushed = in_training_order(problem, np.array([True, True]))
    assert flushed.operations.tolist() == [[0, ~0, 1, ~1]] * 2
    assert flushed.makespan_s == 12


def test_memory_limits_the_micro_batches_in_flight():
    # 2 tokens each: one in flight needs 10 + 2 + 2 = 14 GiB, two 16
    instance = make_instance(([2, 2, 2], 3))
    assert in_training_order(make_problem(instance, make_costs(usable=14.0), 2)).makespan_s == 36
    wider = in_training_order(make_problem(instance, make_costs(usable=16.0), 2))
    assert wider.operations.tolist() == [[0, 1, ~0, 2, ~1, ~2], [0, ~0, 1, ~1, 2, ~2]]
    assert wider.makespan_s == 24


def test_ranks_count_distinct_keys():
    assert ranks_of(np.array([1, 0, 1, 0]), np.array([0, 5, 0, 2])).tolist() == [2, 1, 2, 0]


@seeds(20)
def test_times_are_the_simulators(seed):
    # any order of the adapters that keeps each one's micro-batches in order, flushes anywhere
    problem = random_replica(seed)
    rng = np.random.default_rng(seed)
    samples = Samples.of(problem)
    own = own_micro_batches(problem, samples)
    rank = ranks_of(own // int(rng.integers(1, 4)), samples.position, own)
    flushed = rng.random(rank.max() + 1) < 0.2
    replica = OneFOneB(problem, samples, rank, flushed if seed % 2 else None)
    schedule = replica.schedule()
    assert schedule.makespan_s == pytest.approx(replica.makespan_s, rel=1e-12)
    limit = problem.costs.memory_limit(problem.memory_gib)
    assert max(schedule.peak_memory_gib) <= limit * (1 + 1e-9)
