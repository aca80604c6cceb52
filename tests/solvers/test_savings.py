from dataclasses import replace

import pytest
from helpers.builders import make_costs, make_instance
from helpers.drawn import seeds
from helpers.schedules import random_replica, violations
from helpers.spaces import context_of

from cappuccino.checker import check
from cappuccino.costs import MemoryModel, SmoothMaximum
from cappuccino.plan import AdapterSaving, Objective, Plan
from cappuccino.solvers import savings
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.assembly import assemble_plan
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.savings import SharingEvaluator, _projected, with_savings
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import PlacedReplica, build_schedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.settings import PlannerSettings

FOREVER = Clock(None)
SMALL = Budget(seconds=None, constructions=12, moves=20, windows=0)
FLAT = make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0))
"""10 + 20 s up to 10 tokens, then 1 + 2 s a token."""
LINEAR = make_costs()
ROOMY = MemoryModel(static_gib=0.0, working_gib=0.1, held_gib=0.1)
DEEPER = replace(make_costs(usable=18.0), memory={1: MemoryModel(10.0, 1.0, 1.0), 2: ROOMY})
"""One stage holds 4 tokens, two hold 90; every stage takes 3 s a token, so that two cost twice as much as one."""


def scheduled(instance, costs, adapters, num_stages=1, gpu="x"):
    problem = ReplicaProblem(instance, costs[gpu], adapters, num_stages, instance.pool(gpu).memory_gib)
    problem = replace(problem, known_bound_s=problem.lower_bound_s)  # which does not hold for a part of them
    return schedule_replica(problem, SMALL, seed=0)


def evaluator(instance, costs, objective=Objective.GPU_TIME, limit_s=None, seed=0):
    settings = PlannerSettings(sharing_effort=SMALL)
    space = ReplicaSpace.of(instance, costs)
    return SharingEvaluator(context_of(space, objective, limit_s, seed=seed, settings=settings))


def placed(schedules, gpus):
    return [PlacedReplica(s, g) for s, g in zip(schedules, gpus, strict=True)]


def parts(replicas):
    return [r.schedule for r in replicas], [r.gpu for r in replicas]


def assembled(instance, costs, schedules, gpus, objective=Objective.GPU_TIME):
    plan = assemble_plan(instance, costs, placed(schedules, gpus), objective=objective)
    assert check(plan, instance, costs).violations == ()
    return plan


def test_adapters_of_launch_bound_work_save_what_they_would_take_alone():
    # a sample of 1 token takes 30 s, two of them in one micro-batch as well (to a part in 2^16)
    instance, costs = make_instance(([1], 1), ([1], 1)), {"x": FLAT}
    together = scheduled(instance, costs, (0, 1))
    found = evaluator(instance, costs).savings(placed([together], ["x"]), FOREVER)
    assert list(found) == ["a0", "a1"]
    for saving in found.values():
        assert (saving.alone_gpu, saving.alone_num_stages) == ("x", 1)
        assert saving.alone_gpu_time_s == pytest.approx(30, rel=1e-3)
        assert saving.added_gpu_time_s == pytest.approx(0, abs=0.01)
        assert saving.alone_cost is saving.added_cost is None


def test_adapters_of_linear_cost_save_nothing_on_one_stage():
    # 4 tokens take 12 s wherever they are
    instance, costs = make_instance(([4], 1), ([6], 1), prices={"x": 3600.0}), {"x": LINEAR}
    found = evaluator(instance, costs).savings(placed([scheduled(instance, costs, (0, 1))], ["x"]), FOREVER)
    assert [(s.alone_gpu_time_s, s.added_gpu_time_s) for s in found.values()] == [
        (pytest.approx(12), pytest.approx(12)),
        (pytest.approx(18), pytest.approx(18)),
    ]
    assert (found["a0"].alone_cost, found["a0"].added_cost) == (pytest.approx(12), pytest.approx(12))


def test_the_others_may_go_on_with_fewer_gpus():
    # on two stages as dear as one each, either of two adapters of 8 tokens costs 24 GPU-s alone, on one stage
    instance, costs = make_instance(([4, 4], 1), ([4, 4], 1)), {"x": LINEAR}
    together = scheduled(instance, costs, (0, 1), num_stages=2)
    assert together.gpu_time_s > 2 * 48  # both stages process 16 tokens
    found = evaluator(instance, costs).savings(placed([together], ["x"]), FOREVER)
    assert [s.alone_num_stages for s in found.values()] == [1, 1]
    assert [s.alone_gpu_time_s for s in found.values()] == [pytest.approx(24)] * 2
    assert [s.added_gpu_time_s for s in found.values()] == [pytest.approx(together.gpu_time_s - 24)] * 2


def deeper_because_of_one():
    """Return a replica of two stages because of one sample of 8 tokens, its instance and costs.

    a1 of 8 samples of 4 tokens takes 96 s on one GPU. On two stages all 52 tokens take 156 s after the first F has
    come down and before the last B is up: more than 312 GPU-s. a0 alone takes its 20 tokens x 3 s and, with 4 tokens
    first and last, 12 s: 144 GPU-s and more.
    """
    instance, costs = make_instance(([8, 4, 4, 4], 4), ([4] * 8, 8), gpus=4), {"x": DEEPER}
    return instance, costs, scheduled(instance, costs, (0, 1), num_stages=2)


def test_adapters_alike_are_evaluated_once(monkeypatch):
    # three adapters of one kind in each of two replicas of equal makespan: one separate run and one replica less one
    instance, costs = make_instance(*[([3, 5], 1)] * 6, gpus=4), {"x": FLAT}
    both = [scheduled(instance, costs, adapters) for adapters in ((0, 1, 2), (3, 4, 5))]
    assert both[0].makespan_s == both[1].makespan_s
    calls = []

    def counted(problem, *arguments, **options):
        calls.append(problem.adapters)
        return schedule_replica(problem, *arguments, **options)

    monkeypatch.setattr(savings, "schedule_replica", counted)
    found = evaluator(instance, costs).savings(placed(both, ["x", "x"]), FOREVER)
    assert sorted(found) == [f"a{i}" for i in range(6)]
    assert len(set(found.values())) == 1
    assert calls
    assert all(set(adapters) <= {0, 1, 2} for adapters in calls)


def test_equal_replicas_are_taken_apart_one_by_one():
    costs = {"x": DEEPER}
    twice = make_instance(([8, 4, 4, 4], 4), ([4] * 8, 8), ([8, 4, 4, 4], 4), ([4] * 8, 8), gpus=6)
    both = [scheduled(twice, costs, adapters, num_stages=2) for adapters in ((0, 1), (2, 3))]
    schedules, gpus = parts(evaluator(twice, costs).separations(placed(both, ["x", "x"]), FOREVER))
    assert sorted((s.problem.adapters, s.problem.num_stages) for s in schedules) == [
        ((0,), 2),
        ((1,), 1),
        ((2,), 2),
        ((3,), 1),
    ]
    assembled(twice, costs, schedules, gpus)


def test_where_sharing_forces_a_deeper_pipeline_the_adapter_is_taken_out():
    instance, costs, together = deeper_because_of_one()
    assert together.gpu_time_s > 312
    sharing = evaluator(instance, costs)
    saving = sharing.savings(placed([together], ["x"]), FOREVER)["a1"]
    assert (saving.alone_num_stages, saving.alone_gpu_time_s) == (1, pytest.approx(96))
    assert saving.added_gpu_time_s > 96
    schedules, gpus = parts(sharing.separations(placed([together], ["x"]), FOREVER))
    assert sorted((s.problem.adapters, s.problem.num_stages) for s in schedules) == [((0,), 2), ((1,), 1)]
    plan = assembled(instance, costs, schedules, gpus)
    assert plan.gpu_time_s == pytest.approx(together.gpu_time_s - saving.added_gpu_time_s + 96)
    assert plan.gpu_time_s < together.gpu_time_s
    # and there it stays
    again = sharing.separations(placed(schedules, gpus), FOREVER)
    assert again == placed(schedules, gpus)
    stated = sharing.savings(placed(schedules, gpus), FOREVER)
    assert all(s.alone_gpu_time_s == s.added_gpu_time_s for s in stated.values())


def test_without_room_the_adapter_stays():
    instance, costs, together = deeper_because_of_one()
    instance = replace(instance, gpu_pools=(instance.gpu_pools[0].model_copy(update={"count": 2}),))
    schedules, gpus = parts(evaluator(instance, costs).separations(placed([together], ["x"]), FOREVER))
    assert (schedules, gpus) == ([together], ["x"])


def dear_and_cheap():
    """Return an instance whose a0 needs GPUs of type y, at three times the price; one stage each."""
    instance = make_instance(([8], 1), ([4], 1), gpus={"x": 1, "y": 1}, prices={"x": 3600.0, "y": 10800.0})
    return instance, {"x": make_costs(usable=20.0), "y": make_costs(gpu="y")}


def test_money_decides_where_the_objective_is_cost():
    # 12 tokens on y: 36 s, 108; a0's 8 tokens there 72; a1's 4 tokens on x 12 s, 12
    instance, costs = dear_and_cheap()
    together = scheduled(instance, costs, (0, 1), gpu="y")
    by_money = evaluator(instance, costs, objective=Objective.COST)
    saving = by_money.savings(placed([together], ["y"]), FOREVER)["a1"]
    assert (saving.alone_gpu, saving.alone_cost, saving.added_cost) == ("x", pytest.approx(12), pytest.approx(36))
    schedules, gpus = parts(by_money.separations(placed([together], ["y"]), FOREVER))
    assert gpus == ["y", "x"]
    assert assembled(instance, costs, schedules, gpus, Objective.COST).cost == pytest.approx(84)
    # in GPU time both types are alike
    by_time = evaluator(instance, costs)
    assert by_time.separations(placed([together], ["y"]), FOREVER) == placed([together], ["y"])


def test_separate_runs_end_within_the_limit():
    # x takes 30 s for 30, y half the time for 45
    half = SmoothMaximum(0.0, 0.5, 0.0, 2.0)
    costs = {"x": LINEAR, "y": make_costs(gpu="y", forward=half, backward=half.scaled(2))}
    instance = make_instance(([10], 1), ([1], 1), gpus={"x": 1, "y": 1}, prices={"x": 3600.0, "y": 10800.0})
    together = scheduled(instance, costs, (0, 1), gpu="y")
    for limit, gpu, money in ((None, "x", 30), (20.0, "y", 45)):
        found = evaluator(instance, costs, objective=Objective.COST, limit_s=limit).savings(
            placed([together], ["y"]), FOREVER
        )
        assert (found["a0"].alone_gpu, found["a0"].alone_cost) == (gpu, pytest.approx(money))


def test_a_separate_run_that_is_better_elsewhere_is_advised():
    # one adapter on two stages though one is cheaper
    instance, costs = make_instance(([4], 1)), {"x": LINEAR}
    deep = scheduled(instance, costs, (0,), num_stages=2)
    schedules, _ = parts(evaluator(instance, costs).separations(placed([deep], ["x"]), FOREVER))
    assert [(s.problem.num_stages, s.gpu_time_s) for s in schedules] == [(1, pytest.approx(12))]


def test_adapters_without_time_are_not_evaluated():
    instance, costs, together = deeper_because_of_one()
    sharing = evaluator(instance, costs)
    assert sharing.savings(placed([together], ["x"]), Clock(0.0)) == {"a0": AdapterSaving(), "a1": AdapterSaving()}
    assert sharing.separations(placed([together], ["x"]), Clock(0.0)) == placed([together], ["x"])
    plan = with_savings(assembled(instance, costs, [together], ["x"]), {})
    assert [s.evaluated for s in plan.replicas[0].savings] == [False, False]
    assert check(plan, instance, costs).violations == ()


def test_separate_runs_come_first_and_are_kept(monkeypatch):
    # the time ends with the last separate run
    instance, costs, together = deeper_because_of_one()
    sharing = evaluator(instance, costs)
    clock = Clock(1e6)
    rest_of = SharingEvaluator._rest_of

    def ending(self, replica, kind, given):
        monkeypatch.setattr(Clock, "over", property(lambda _: True))
        return rest_of(self, replica, kind, given)

    with monkeypatch.context() as patched:
        patched.setattr(SharingEvaluator, "_rest_of", ending)
        found = sharing.savings(placed([together], ["x"]), clock)
    assert found["a1"].alone_gpu_time_s == pytest.approx(96)
    assert {s.added_gpu_time_s for s in found.values()} == {None}
    plan = with_savings(assembled(instance, costs, [together], ["x"]), found)
    assert check(plan, instance, costs).violations == ()


def test_bounds_spare_separations_that_cannot_gain(monkeypatch):
    # one sample of 10 tokens each: 30 s apart, 60 s together, both bounds met
    instance, costs = make_instance(([10], 1), ([10], 1)), {"x": LINEAR}
    together = scheduled(instance, costs, (0, 1))

    def never(*arguments, **options):
        raise AssertionError("nothing is to be scheduled")

    monkeypatch.setattr(savings, "schedule_replica", never)
    assert evaluator(instance, costs).separations(placed([together], ["x"]), FOREVER) == placed([together], ["x"])


def test_figures_are_stored_in_the_plan_and_checked(tmp_path):
    instance, costs, together = deeper_because_of_one()
    found = evaluator(instance, costs).savings(placed([together], ["x"]), FOREVER)
    plan = with_savings(assembled(instance, costs, [together], ["x"]), found)
    assert plan.replicas[0].savings == (found["a0"], found["a1"])
    assert check(plan, instance, costs).violations == ()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_same_seed_same_figures():
    problem = random_replica(7)
    costs = {"x": problem.costs}
    schedule = schedule_replica(problem, SMALL, seed=3)
    runs = [
        evaluator(problem.instance, costs, seed=5).savings(placed([schedule], ["x"]), Clock(limit))
        for limit in (None, None, 1e6)
    ]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == len(problem.adapters)


@seeds(12)
def test_a_schedule_less_an_adapter_is_valid_and_no_longer(seed):
    problem = random_replica(seed, tight=seed % 2 == 1, layout="padded" if seed % 5 == 4 else "packed", clip=True)
    schedule = schedule_replica(problem, replace(SMALL, moves=0), seed=seed)
    for position in range(len(problem.adapters)):
        others = [a for a in range(len(problem.adapters)) if a != position]
        for kept in ([position], others):
            if not kept:
                continue
            less = _projected(schedule, kept)
            assert less.makespan_s <= schedule.makespan_s * (1 + 1e-9)
            instance = problem.instance.subset(list(less.problem.adapters))
            alone = replace(less.problem, instance=instance, adapters=tuple(range(len(kept))))
            assert violations(build_schedule(alone, less.order, less.operations)) == ()
