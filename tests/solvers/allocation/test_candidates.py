from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.spaces import context_of, random_space

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.errors import InfeasibleError
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.candidates import Candidates, find_candidates
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.budget import Clock

COSTS = {"x": make_costs(stages=(1, 2))}


def candidates_of(
    *jobs, gpus: int, deadline: float | None = None, objective=Objective.GPU_TIME, most_sets: int = 4096
) -> Candidates:
    instance = replace(make_instance(*jobs, gpus=gpus), source="i.json")
    return find_candidates(context_of(ReplicaSpace.of(instance, COSTS, most_sets=most_sets), objective, deadline))


def test_columns_that_cannot_meet_the_deadline_are_left_out():
    # 9 and 12 s alone on one GPU, 21 s together
    loose, tight = (candidates_of(([3], 1), ([4], 1), gpus=2, deadline=d) for d in (21.5, 20.0))
    assert (loose.numbers[loose.place == 0] == [1, 1]).all(axis=1).any()
    assert not (tight.numbers[tight.place == 0] == [1, 1]).all(axis=1).any()
    assert tight.bounds_s.max() <= 20.0


def test_the_bound_is_that_of_the_best_partition_in_time():
    # 20 and 20 tokens: 60 s each, together 120 s on one GPU; 66 s on two with their bubbles of a token down and up
    assert candidates_of(([20], 1), ([20], 1), gpus=2).bound == pytest.approx(120)
    assert candidates_of(([20], 1), ([20], 1), gpus=2, deadline=60.0).bound == pytest.approx(120)
    assert candidates_of(([20], 1), ([20], 1), gpus=2, objective=Objective.MAKESPAN).bound == pytest.approx(60)


def test_reduced_costs_of_the_candidates_are_not_negative():
    found = candidates_of(*[([n, n + 3], 1) for n in (2, 5, 6, 9)], gpus=5, deadline=90.0)
    cost = np.arange(1, 5)[found.place] * found.bounds_s  # depths 1 to 4
    assert (cost + found.charge - found.paid >= -1e-6 * cost).all()


@pytest.mark.parametrize("enumerated", [True, False])
def test_impossible_deadlines_are_refused_with_the_reason(enumerated):
    most = 4096 if enumerated else 0
    with pytest.raises(
        InfeasibleError, match=r"i\.json: no plan can end within 29 s; give a deadline of at least 30 s"
    ):
        candidates_of(([10], 1), ([10], 1), gpus=2, deadline=29.0, most_sets=most)
    with pytest.raises(InfeasibleError, match="the pools are too small for a deadline of 50 s; give a longer one"):
        candidates_of(([10], 1), ([10], 1), ([10], 1), gpus=2, deadline=50.0, most_sets=most)


def test_pools_that_are_too_small_are_refused_with_the_reason():
    # 10 and 9 tokens fit the GPU of x, 14 GiB of y hold 2
    costs = {"x": make_costs(usable=30.0, stages=(1, 2)), "y": make_costs(usable=14.0, stages=(1,), gpu="y")}
    instance = make_instance(([10], 1), ([9], 1), gpus={"x": 1, "y": 1})
    space = ReplicaSpace.of(instance, costs)
    found = find_candidates(context_of(space))
    assert found.bound == pytest.approx(57.0)  # both fit x only, on one GPU
    with pytest.raises(InfeasibleError, match="too small for a deadline of 40 s"):
        find_candidates(context_of(space, deadline_s=40.0))


def test_little_time_leaves_bound_and_partitions():
    instance = make_instance(*[([n, n + 3], 1) for n in range(2, 16)], gpus=6)
    space = ReplicaSpace.of(instance, COSTS)
    found = find_candidates(context_of(space, clock=Clock(0.0)))
    assert found.bound >= space.objective_bound(Objective.GPU_TIME) > 0
    assert found.partitions


@pytest.mark.parametrize("objective", [Objective.MAKESPAN, Objective.GPU_TIME])
@pytest.mark.parametrize("digits", [-1, 1])
def test_bounds_that_differ_in_the_last_digit_are_bounds_of_one_set(objective, digits, monkeypatch):
    # one set's bound, worked out among different others, may differ in the last digit: no partition may get lost by it
    bounds_of, times = ReplicaBounds.lower_bounds, iter(range(10**6))

    def blurred(self, members):
        return bounds_of(self, members) * (1 + digits * 2e-16 * (next(times) % 2))

    for seed in range(12):
        space = random_space(seed, most=4)
        monkeypatch.setattr(ReplicaBounds, "lower_bounds", blurred)
        try:
            ends = find_candidates(context_of(space, Objective.MAKESPAN, gap=1e-4)).bound
            deadline = None if objective is Objective.MAKESPAN else ends
            found = find_candidates(context_of(space, objective, deadline, gap=1e-4))
        except InfeasibleError:
            continue
        finally:
            monkeypatch.setattr(ReplicaBounds, "lower_bounds", bounds_of)
        assert found.partitions
