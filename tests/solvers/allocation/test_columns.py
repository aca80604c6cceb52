from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.spaces import best_objective, random_space

from cappuccino.costs import MemoryModel
from cappuccino.errors import InfeasibleError
from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.columns import ReplicaSpace


def columns_of(space: ReplicaSpace) -> dict[tuple, Column]:
    """Return the columns of all sets by adapters, GPU type and depth."""
    columns = [
        space.column(place, numbers, makespan)
        for place, makespans in enumerate(space.set_bounds)
        for numbers, makespan in zip(space.sets, makespans, strict=True)
    ]
    return {(c.adapters, c.gpu, c.num_stages): c for c in columns}


def depths_of(space: ReplicaSpace) -> set[int]:
    return {p.num_stages for p in space.places(Objective.GPU_TIME)}


def test_every_set_pool_and_depth_is_a_column():
    instance = make_instance(([3], 1), ([4], 1), gpus={"x": 2, "y": 1}, prices={"x": 3600.0, "y": 7200.0})
    space = ReplicaSpace.of(instance, {"x": make_costs(), "y": make_costs(gpu="y")})
    columns = columns_of(space)
    assert set(columns) == {(s, gpu, g) for s in ((0,), (1,), (0, 1)) for gpu, g in (("x", 1), ("x", 2), ("y", 1))}
    # a0 alone: 3 tokens forward and backward on each stage
    assert columns[(0,), "x", 2].makespan_s == pytest.approx(18)
    assert columns[(0, 1), "x", 1].makespan_s == pytest.approx(21)
    assert columns[(0,), "y", 1].price_per_second == pytest.approx(2.0)
    assert columns[(0,), "x", 2].cost == pytest.approx(36.0)


def test_fixed_and_profiled_depths():
    instance = make_instance(([3], 1), gpus=6)
    costs = {"x": make_costs(stages=(2, 3))}
    assert depths_of(ReplicaSpace.of(instance, costs)) == {1, 2, 3, 4, 5, 6}
    assert depths_of(ReplicaSpace.of(instance, costs, profiled_only=True)) == {2, 3}
    assert depths_of(ReplicaSpace.of(instance, costs, num_stages=5)) == {5}
    with pytest.raises(InfeasibleError, match="no allowed number of stages fits the pools"):
        ReplicaSpace.of(instance, costs, num_stages=5, profiled_only=True)
    with pytest.raises(InfeasibleError, match="no allowed number of stages fits the pools"):
        ReplicaSpace.of(instance, costs, num_stages=7)


def test_infeasible_names_adapter_tokens_memory_and_remedy():
    # 500 tokens need 10 + 500 + 500 GiB; in 100 GiB, 90 / 2 = 45 tokens fit
    instance = replace(make_instance(([3], 1), ([7, 500], 2), gpus=2), source="i.json")
    with pytest.raises(InfeasibleError) as error:
        ReplicaSpace.of(instance, {"x": make_costs(usable=100.0)})
    message = str(error.value)
    assert message.startswith('i.json: adapters[1] "a1" fits nowhere: its longest sample has 500 tokens; ')
    assert "1 stage " in message and "2 stages " in message
    assert message.count("1010.0 GiB of 100.0 usable") == 2
    assert "set max_sequence_length to at most 45" in message
    assert message.endswith("or use GPUs with more memory")


def test_infeasible_says_how_many_gpus_would_do():
    # 50 GiB of weights at one stage, 25 at two: 10 tokens of 2 GiB fit in 45 GiB from two stages on
    memory = {1: MemoryModel(50.0, 1.0, 1.0), 2: MemoryModel(25.0, 1.0, 1.0)}
    costs = {"x": replace(make_costs(usable=45.0), memory=memory)}
    instance = make_instance(([10], 1), gpus=1)
    with pytest.raises(InfeasibleError, match=r"; give x at least 2 GPUs or use GPUs with more memory$"):
        ReplicaSpace.of(instance, costs)
    with pytest.raises(InfeasibleError, match=r"give x at least 2 GPUs instead of the fixed depth or "):
        ReplicaSpace.of(replace(instance, gpu_pools=make_instance(([1], 1), gpus=4).gpu_pools), costs, num_stages=1)


def test_many_adapters_are_not_enumerated():
    instance = make_instance(*[([1 + i], 1) for i in range(13)])
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert not space.enumerates_all
    assert space.kinds.number_of_sets == 2**13 - 1


@pytest.mark.parametrize("count", [1, 4, 12])
def test_few_adapters_are_enumerated(count):
    space = ReplicaSpace.of(make_instance(*[([1 + i], 1) for i in range(count)]), {"x": make_costs(stages=(1,))})
    assert space.enumerates_all
    assert {space.kinds.adapters(s) for s in space.sets} == {
        tuple(i for i in range(count) if number >> i & 1) for number in range(1, 2**count)
    }


def test_adapters_alike_are_enumerated_by_their_number():
    # 40 and 60 of two kinds: 41 x 61 - 1 sets, each in 4 depths
    instance = make_instance(*[([3], 1)] * 40, *[([4], 1)] * 60)
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert space.enumerates_all
    assert space.set_bounds.shape == (4, 41 * 61 - 1)
    columns = columns_of(space)
    assert len(columns) == 4 * (41 * 61 - 1)
    # 2 of 3 tokens and one of 4, 3 s a token
    assert columns[(0, 1, 40), "x", 1].makespan_s == pytest.approx(30)


def test_places_carry_the_additive_bounds():
    instance = make_instance(
        ([3], 1), ([3], 1), ([4, 2], 1, 2), gpus={"x": 2, "y": 1}, prices={"x": 3600.0, "y": 7200.0}
    )
    space = ReplicaSpace.of(instance, {"x": make_costs(), "y": make_costs(gpu="y")})
    places = space.places(Objective.COST)
    assert [(p.gpu, p.num_stages, p.rate) for p in places] == [("x", 1, 1.0), ("x", 2, 2.0), ("y", 1, 2.0)]
    assert [p.rate for p in space.places(Objective.GPU_TIME)] == [1.0, 2.0, 1.0]
    assert {p.rate for p in space.places(Objective.MAKESPAN)} == {0.0}
    # without a floor the shares are the work: 9 s, and 18 s for two steps; on 2 stages the shortest sample's 6 s on top
    assert places[1].shares == pytest.approx([9.0, 18.0])
    assert places[1].ramp_s == pytest.approx(6.0)
    assert places[1].makespans(np.array([[2, 1]])) == pytest.approx(6.0 + 2 * 9 + 18)
    assert places[1].makespans(np.array([[1, 0]])) == pytest.approx(places[1].paths[0])


def test_columns_stand_for_their_kinds():
    space = ReplicaSpace.of(
        make_instance(([3], 1), ([4], 1), ([3], 1), gpus={"x": 1}, prices={"x": 7200.0}), {"x": make_costs()}
    )
    column = space.column(0, np.array([2, 0]), 18.0)
    assert (column.adapters, column.gpu, column.num_stages, column.makespan_s) == ((0, 2), "x", 1, 18.0)
    assert column.cost == pytest.approx(36.0)


def test_objective_bound_of_linear_costs_is_the_work():
    # without a floor, sharing gains nothing: 3 x (3 + 4) GPU-seconds on one stage each; with 2 GPUs at best half the
    # time, and at least the longer adapter's path
    instance = make_instance(([3], 1), ([4], 1), gpus=2, prices={"x": 7200.0})
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert space.objective_bound(Objective.GPU_TIME) == pytest.approx(21)
    assert space.objective_bound(Objective.COST) == pytest.approx(42)
    assert space.objective_bound(Objective.MAKESPAN) == pytest.approx(12)


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_for_all_partitions_is_below_the_best_of_them(seed, objective):
    space = random_space(seed)
    assert 0 < space.objective_bound(objective) <= best_objective(space, objective, None) * (1 + 1e-9)
