"""Memory that adapters take themselves: who can share a replica, what is refused, and who says so."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.schedules import one_by_one

from cappuccino.backbone import LayerShape
from cappuccino.checker import check
from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.solvers.assembly import assemble_plan
from cappuccino.solvers.baselines import BASELINES, Baseline, baseline_plan
from cappuccino.solvers.planning import PlanOptions, make_plan
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import PlacedReplica

LAYERS = 2**16
SHAPE = LayerShape(hidden=4, intermediate=8, query=4, key_value=2)
"""64 units of width in 7 modules: at rank 16 an adapter takes 1 GiB on one stage, at rank 64 it takes 4."""
FLAT = {"forward": SmoothMaximum(10.0, 1.0, 0.0, 16.0), "backward": SmoothMaximum(20.0, 2.0, 0.0, 16.0)}
"""10 + 20 s up to 10 tokens: sharing pays."""
QUICK = PlanOptions(time_limit_s=None, iterations=1)


def costs_of(usable: float, **options) -> CostModel:
    """Return costs of 10 GiB static and 2 GiB a token, of which one is worked on and held."""
    return replace(make_costs(usable=usable, num_layers=LAYERS, **options), layer_shape=SHAPE)


def jobs(*ranks: int, gpus: int = 4, length: int = 1) -> Instance:
    instance = make_instance(*[([length], 1)] * len(ranks), gpus=gpus)
    adapters = zip(instance.adapters, ranks, strict=True)
    changed = [a.model_copy(update={"rank": r, "target_modules": "all-linear"}) for a, r in adapters]
    return replace(instance, adapters=tuple(changed))


def test_adapters_share_a_replica_as_far_as_the_memory_holds_them():
    # 10 static, 2 for a token: beside 4 + 4 GiB that is 20, beside 4 + 1 + 1 it is 18; 19 GiB hold one large one
    instance, costs = jobs(64, 64, 16, 16), {"x": costs_of(19.0, stages=(1,), **FLAT)}
    plan = make_plan(instance, replace(QUICK, num_stages=1), costs)
    assert check(plan, instance, costs).valid
    assert len(plan.replicas) == 2
    by_name = dict(zip((a.name for a in instance.adapters), (64, 64, 16, 16), strict=True))
    for replica in plan.replicas:
        held = [by_name[name] for name in replica.adapters]
        assert sum(rank == 64 for rank in held) <= 1
        assert replica.peak_memory_gib[0] == pytest.approx(10 + sum(held) / 16 + 2 * len(held))
    # with more memory all share one, and one micro-batch
    roomy = {"x": costs_of(28.0, stages=(1,), **FLAT)}
    assert len(make_plan(instance, replace(QUICK, num_stages=1), roomy).replicas) == 1


def test_a_stage_takes_its_part_of_the_adapters():
    # 8 GiB of adapters: 22 on one stage, and 10 + 4 + 2 on each of two
    instance, costs = jobs(64, 64, gpus=2), {"x": costs_of(16.5, stages=(1, 2))}
    plan = make_plan(instance, replace(QUICK, num_stages=2), costs)
    (replica,) = plan.replicas
    assert replica.peak_memory_gib == pytest.approx((16, 16))


def test_adapters_that_fit_nowhere_are_told_with_what_they_need():
    # 10 + 64 + 2 GiB on one stage
    with pytest.raises(InfeasibleError, match=r"1 stage needs 76\.0 GiB of 20\.0 usable"):
        make_plan(jobs(1024), replace(QUICK, num_stages=1), {"x": costs_of(20.0, stages=(1,))})


@pytest.mark.parametrize("count", [9, 40])
def test_more_adapters_than_the_memory_holds_are_refused_by_proof(count):
    # two to a GPU, four GPUs: eight fit
    costs = {"x": costs_of(20.5, stages=(1,))}
    with pytest.raises(InfeasibleError, match="are too small to place every adapter"):
        make_plan(jobs(*[64] * count), replace(QUICK, num_stages=1), costs)
    plan = make_plan(jobs(*[64] * 8), replace(QUICK, num_stages=1), costs)
    assert sorted(len(r.adapters) for r in plan.replicas) == [2, 2, 2, 2]


def test_two_that_do_not_fit_together_are_refused_though_a_mixture_would():
    # of 10 GiB beside the weights, 4 tokens take 8 and 1 token 2, the adapters 1 and 4: parts of 1 / 2 and 4 / 8
    lengths = ([4], 1), ([1], 1)
    instance = make_instance(*lengths, gpus=1)
    adapters = zip(instance.adapters, (16, 64), strict=True)
    changed = [a.model_copy(update={"rank": r, "target_modules": "all-linear"}) for a, r in adapters]
    instance = replace(instance, adapters=tuple(changed))
    costs = {"x": costs_of(20.0, stages=(1,))}
    with pytest.raises(InfeasibleError, match="are too small to place every adapter"):
        make_plan(instance, replace(QUICK, num_stages=1), costs)
    two = replace(instance, gpu_pools=make_instance(*lengths, gpus=2).gpu_pools)
    assert len(make_plan(two, replace(QUICK, num_stages=1), costs).replicas) == 2


@pytest.mark.parametrize("seed", range(8))
def test_micro_batches_are_as_large_as_memory_allows_beside_the_adapters(seed):
    # where large micro-batches pay, packings of the adapter with the longest path alone guide the construction
    rng = np.random.default_rng(seed)
    steps = ([int(rng.integers(1, 4))], 1, 1), (rng.integers(1, 5, size=30).tolist(), 5, 6)
    instance = make_instance(*steps, gpus=1, layout=("packed", "padded")[seed % 2])
    changed = [a.model_copy(update={"rank": 32, "target_modules": "all-linear"}) for a in instance.adapters]
    instance = replace(instance, adapters=tuple(changed))
    # room for 9 tokens beside one adapter of 2 GiB, for 8 beside two
    plan = make_plan(instance, QUICK, {"x": costs_of(30.0, stages=(1,), **FLAT)})
    (replica,) = plan.replicas
    assert replica.peak_memory_gib[0] <= 30


@pytest.mark.parametrize("seed", range(4))
def test_where_memory_is_scarce_and_sets_are_many_there_is_a_plan(seed):
    # 16 adapters, all different, into a little more memory than they take
    rng = np.random.default_rng(seed)
    ranks = rng.integers(8, 96, size=16).tolist()
    usable = 10 + 2 + max(max(ranks) / 16, 1.3 * sum(ranks) / 16 / 8)
    instance, costs = jobs(*ranks, gpus=8), {"x": costs_of(usable, stages=(1,))}
    plan = make_plan(instance, replace(QUICK, num_stages=1), costs)
    assert check(plan, instance, costs).valid
    assert plan.lower_bound <= plan.objective_value


def test_the_checker_refuses_a_replica_of_too_many_adapters():
    instance, roomy, tight = jobs(64, 64), costs_of(30.0, stages=(1,)), costs_of(19.0, stages=(1,))
    problem = ReplicaProblem(instance, roomy, (0, 1), 1, 1e6)
    schedule = one_by_one(problem, problem.batches([[(0, 0)], [(1, 0)]]))
    plan = assemble_plan(instance, {"x": roomy}, [PlacedReplica(schedule, "x")])
    assert check(plan, instance, {"x": roomy}).valid
    found = check(plan, instance, {"x": tight}).violations
    assert [v.rule for v in found] == [6]


@pytest.mark.parametrize("name", [b for b in BASELINES if b is not Baseline.REFERENCE])
def test_baselines_hold_what_fits_or_say_why_not(name):
    costs = {"x": costs_of(20.5, stages=(1,))}
    instance = jobs(*[64] * 6)
    plan = baseline_plan(name, instance, costs)
    assert check(plan, instance, costs).valid
    with pytest.raises(InfeasibleError, match="memory"):
        baseline_plan(name, jobs(*[64] * 9), costs)


def test_clusters_too_large_for_the_memory_are_why_the_reference_cannot_run():
    # six that are alike are one cluster, whatever they take
    with pytest.raises(InfeasibleError, match="clusters hold more adapters than fit the memory"):
        baseline_plan(Baseline.REFERENCE, jobs(*[64] * 6), {"x": costs_of(20.5, stages=(1,))})
