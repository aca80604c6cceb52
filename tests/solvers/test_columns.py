from dataclasses import replace

import numpy as np
import pytest
from builders import make_costs, make_instance

from cappuccino.costs import MemoryModel
from cappuccino.errors import InfeasibleError
from cappuccino.plan import Objective
from cappuccino.solvers.columns import MOST_ENUMERATED, ReplicaSpace


def test_every_set_pool_and_depth_is_a_column():
    instance = make_instance(([3], 1), ([4], 1), gpus={"x": 2, "y": 1}, prices={"x": 3600.0, "y": 7200.0})
    space = ReplicaSpace.of(instance, {"x": make_costs(), "y": make_costs(gpu="y")})
    columns = {(c.adapters, c.gpu, c.num_stages): c for c in space.columns()}
    assert set(columns) == {(s, gpu, g) for s in ((0,), (1,), (0, 1)) for gpu, g in (("x", 1), ("x", 2), ("y", 1))}
    # a0 alone: 3 tokens forward and backward on each stage
    assert columns[(0,), "x", 2].makespan_s == pytest.approx(18)
    assert columns[(0, 1), "x", 1].makespan_s == pytest.approx(21)
    assert columns[(0,), "y", 1].price_per_second == pytest.approx(2.0)
    assert columns[(0,), "x", 2].cost == pytest.approx(36.0)


def test_columns_that_cannot_meet_the_deadline_are_left_out():
    instance = make_instance(([3], 1), ([4], 1), gpus=1)
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert {c.adapters for c in space.columns(deadline_s=20.0)} == {(0,), (1,)}
    assert {c.adapters for c in space.columns(deadline_s=21.5)} == {(0,), (1,), (0, 1)}


def test_fixed_and_profiled_depths():
    instance = make_instance(([3], 1), gpus=6)
    costs = {"x": make_costs(stages=(2, 3))}
    assert {c.num_stages for c in ReplicaSpace.of(instance, costs).columns()} == {1, 2, 3, 4, 5, 6}
    assert {c.num_stages for c in ReplicaSpace.of(instance, costs, profiled_only=True).columns()} == {2, 3}
    assert {c.num_stages for c in ReplicaSpace.of(instance, costs, num_stages=5).columns()} == {5}
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
    count = MOST_ENUMERATED + 2
    instance = make_instance(*[([1 + i], 1) for i in range(count)])
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert not space.enumerates_all
    sets = {tuple(np.flatnonzero(m).tolist()) for m in space.members}
    assert len(sets) == len(space.members) < 2**count - 1
    assert {(i,) for i in range(count)} <= sets
    assert tuple(range(count)) in sets


@pytest.mark.parametrize("count", [1, 4])
def test_few_adapters_are_enumerated(count):
    space = ReplicaSpace.of(make_instance(*[([1], 1)] * count), {"x": make_costs()})
    assert len({m.tobytes() for m in space.members}) == 2**count - 1


def test_objective_bound_of_linear_costs_is_the_work():
    # without a floor, sharing gains nothing: 3 x (3 + 4) GPU-seconds on one stage each; with 2 GPUs at best half the
    # time, and at least the longer adapter's path
    instance = make_instance(([3], 1), ([4], 1), gpus=2, prices={"x": 7200.0})
    space = ReplicaSpace.of(instance, {"x": make_costs()})
    assert space.objective_bound(Objective.GPU_TIME) == pytest.approx(21)
    assert space.objective_bound(Objective.COST) == pytest.approx(42)
    assert space.objective_bound(Objective.MAKESPAN) == pytest.approx(12)
