import numpy as np
import pytest
from helpers.baseline_instances import random_replica
from helpers.builders import make_costs, make_instance, make_problem
from helpers.drawn import seeds

from cappuccino.solvers.baselines.eager import eager_turns
from cappuccino.solvers.baselines.samples import Samples, own_micro_batches
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


def eager(problem: ReplicaProblem):
    samples = Samples.of(problem)
    return eager_turns(problem, samples, own_micro_batches(problem, samples))


def test_an_adapter_alone_has_one_micro_batch_in_flight():
    # two micro-batches of 1 + 1 + 2 + 2 one after the other, where 1F1B takes 9
    replica = eager(make_problem(make_instance(([1, 1], 2)), make_costs(), 2))
    assert replica.operations.tolist() == [[0, ~0, 1, ~1]] * 2
    assert replica.makespan_s == 12


def test_adapters_enter_while_a_long_one_is_on_its_way():
    # stage 0: F0 0-4, F1 4-5, F2 5-6, F3 6-7; stage 1: F0 4-8, B0 8-16, then F 1 s and B 2 s of each short one 16-25;
    # stage 0: B0 16-24, B1 24-26, B2 26-28, B3 28-30
    replica = eager(make_problem(make_instance(([4], 1), ([1], 1), ([1], 1), ([1], 1)), make_costs(), 2))
    assert replica.operations.tolist()[0] == [0, 1, 2, 3, ~0, ~1, ~2, ~3]
    assert replica.operations.tolist()[1] == [0, ~0, 1, ~1, 2, ~2, 3, ~3]
    assert replica.makespan_s == 30


def test_adapters_take_turns():
    # at 6 s, after its B0, a0 could enter again, but it is a2's turn
    problem = make_problem(make_instance(([1], 1, 2), ([1], 1, 2), ([1], 1, 2)), make_costs(usable=14.0), 2)
    entered = [b.samples[0] for b in eager(problem).schedule().order]
    assert entered == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


@seeds(20)
def test_times_are_the_simulators_and_memory_suffices(seed):
    problem = random_replica(seed)
    replica = eager(problem)
    schedule = replica.schedule()
    assert schedule.makespan_s == pytest.approx(replica.makespan_s, rel=1e-12)
    assert max(schedule.peak_memory_gib) <= problem.costs.memory_limit(problem.memory_gib) * (1 + 1e-9)
    in_flight = np.zeros(len(problem.adapters), int)
    for operation in schedule.operations[0]:
        batch = schedule.order[operation if operation >= 0 else ~operation]
        if batch.evaluation is not None:
            continue
        owner = batch.samples[0][0]
        in_flight[owner] += 1 if operation >= 0 else -1
        assert in_flight.max() <= 1
