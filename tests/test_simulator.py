from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import FORWARD, make_costs, make_instance, make_plan, make_replica, parse_programs, timed
from helpers.drawn import seeds
from helpers.naive import Naive
from helpers.plans import joined, random_plan

from cappuccino.checker import check
from cappuccino.costs import MemoryModel, SmoothMaximum
from cappuccino.simulator import DeadlockError, peak_memory, run_programs, simulate
from cappuccino.workload import Workload


def workload(tokens, steps=None, transfer=0.0, optimizer_s=0.0, clipped=(), slower=(1.0,) * 4):
    """Return micro-batches that take 1 s per token forward and 2 s backward; by default all of step (0, 0).

    Stages may be slower by a factor.
    """
    tokens = np.array(tokens)
    return Workload(
        tokens=tokens,
        steps=tuple(frozenset(x) for x in steps) if steps else (frozenset({(0, 0)}),) * len(tokens),
        forward_s=np.outer(slower, 1.0 * tokens),
        backward_s=np.outer(slower, 2.0 * tokens),
        transfer_s=np.full(len(tokens), transfer),
        optimizer_s=optimizer_s,
        clipped=frozenset(clipped),
        memory=MemoryModel(0.0, 0.0, 0.0),
    )


def test_workload_looks_samples_up_and_applies_the_curves():
    # a0: samples 3 5 | 2 7 in steps of 2; a1: 1 | 4 in steps of 1
    instance = make_instance(([3, 5, 2, 7], 2), ([1, 4], 1), clipped=[1])
    costs = make_costs(optimizer_s=0.5, transfer=(1.0, 0.25), backward=SmoothMaximum(0.0, 2.0, 0.5, 2.0), stages=[2])
    replica = make_replica([[(0, 2), (0, 0)], [(0, 1), (1, 3)]], [[], []], ["a1", "a0"])
    found = Workload.of(replica, make_instance(([3, 5, 2, 7], 2), ([1, 4], 1, 3), clipped=[1]), costs)
    # position 0 is a1, whose sample 2 wraps around to length 1; sample 3 of a0 has length 7
    assert found.tokens.tolist() == [2, 11]
    assert found.steps == (frozenset({(0, 2), (0, 0)}), frozenset({(0, 1), (1, 1)}))
    assert found.forward_s.tolist() == [[2, 11]] * 2
    assert found.backward_s.tolist() == [[4 + 0.5 * 2, 22 + 0.5 * (16 + 49)]] * 2
    assert found.transfer_s.tolist() == [1.5, 3.75]
    assert (found.optimizer_s, found.clipped) == (0.5, frozenset({0}))
    assert instance.num_steps(1) == 2


def test_one_stage():
    line = run_programs(parse_programs("F0 F1 B0 B1 S0.0"), workload([2, 3], optimizer_s=1.0))
    assert line.starts[0].tolist() == [0, 2, 5, 9, 15]
    assert line.ends[0].tolist() == [2, 5, 9, 15, 16]
    assert line.makespan == 16
    assert line.bubble == 0


def test_two_stages_with_transfer():
    # stage 1: F0 arrives at 1 + 1; F1 ends at 3 on stage 0, arrives at 4, waits for B0 until 5
    # stage 0: B0 arrives at 5 + 1, B1 at 11 + 1
    line = run_programs(parse_programs("F0 F1 B0 B1", "F0 B0 F1 B1"), workload([1, 2], transfer=1.0))
    assert line.starts[0].tolist() == [0, 1, 6, 12]
    assert line.ends[0].tolist() == [1, 3, 8, 16]
    assert line.starts[1].tolist() == [2, 3, 5, 7]
    assert line.ends[1].tolist() == [3, 5, 7, 11]
    assert line.busy.tolist() == [9, 9]
    assert line.bubble == 1 - 18 / 32


def test_optimizer_step_takes_its_turn_and_its_time():
    # S runs at once on stage 1 and delays F1 there: F1 arrives at 2 + ..., starts after S at 4.5
    line = run_programs(
        parse_programs("F0 B0 S0.0 F1 B1 S0.1", "F0 B0 S0.0 F1 B1 S0.1"),
        workload([1, 1], steps=[{(0, 0)}, {(0, 1)}], optimizer_s=3.0),
    )
    # stage 1: F0 1-2, B0 2-4, S 4-7; stage 0: B0 4-6, S 6-9, F1 9-10; stage 1: F1 10-11, B1 11-13, S 13-16
    assert line.starts[1].tolist() == [1, 2, 4, 10, 11, 13]
    assert line.starts[0].tolist() == [0, 4, 6, 9, 13, 15]
    assert line.makespan == 18


def test_clipped_step_waits_for_the_backwards_of_all_stages():
    programs = parse_programs("F0 F1 B0 S0.0 B1 S1.0", "F0 F1 B0 S0.0 B1 S1.0")
    steps = [{(0, 0)}, {(1, 0)}]
    free = run_programs(programs, workload([1, 1], steps=steps, optimizer_s=1.0))
    # stage 1: F0 1-2, F1 2-3, B0 3-5, S 5-6, B1 6-8, S 8-9; stage 0: B0 5-7, S 7-8, B1 8-10, S 10-11
    assert free.starts[1].tolist() == [1, 2, 3, 5, 6, 8]
    assert free.makespan == 11
    clipped = run_programs(programs, workload([1, 1], steps=steps, optimizer_s=1.0, clipped=[0]))
    # adapter 0's S waits for B0 on stage 0 until 7: S 7-8, B1 8-10, S 10-11; stage 0: B1 10-12, S 12-13
    assert clipped.starts[1].tolist() == [1, 2, 3, 7, 8, 10]
    assert clipped.makespan == 13


def test_clipped_step_waits_for_all_its_micro_batches():
    line = run_programs(parse_programs("F0 F1 B0 B1 S0.0", "F0 F1 B0 B1 S0.0"), workload([1, 2], clipped=[0]))
    assert line.starts[1][-1] == line.ends[0][3]


@pytest.mark.parametrize(
    ("program", "moments"),
    [
        # static 10, micro-batches of 2 and 3 tokens, 1 GiB a token running and 4 held, the running one among them
        ("F0 F1 B0 B1", [10 + 2 + 8, 10 + 3 + 20, 10 + 2 + 20, 10 + 3 + 12]),
        ("F0 F1 B1 B0", [10 + 2 + 8, 10 + 3 + 20, 10 + 3 + 20, 10 + 2 + 8]),
        ("F1 F0 B0 B1", [10 + 3 + 12, 10 + 2 + 20, 10 + 2 + 20, 10 + 3 + 12]),
        ("F1 F0 B1 B0", [10 + 3 + 12, 10 + 2 + 20, 10 + 3 + 20, 10 + 2 + 8]),
        ("F0 B0 F1 B1", [20, 20, 25, 25]),
    ],
)
def test_memory_moment_by_moment(program, moments):
    memory = MemoryModel(static_gib=10.0, working_gib=1.0, held_gib=4.0)
    programs = parse_programs(program)
    assert peak_memory(programs, replace(workload([2, 3]), memory=memory)) == (max(moments),)
    with_steps = [[op for pair in zip(programs[0], [("S", 0, j) for j in range(4)], strict=True) for op in pair]]
    assert peak_memory(with_steps, replace(workload([2, 3]), memory=memory)) == (max(moments),)
    # the program cut after any operation has had the moments before it only
    for i in range(5):
        assert peak_memory([programs[0][:i]], replace(workload([2, 3]), memory=memory)) == (max([10, *moments[:i]]),)


def test_every_stage_has_its_own_memory():
    memory = MemoryModel(static_gib=10.0, working_gib=1.0, held_gib=4.0)
    assert peak_memory(parse_programs("F0 F1 B0 B1", "F0 B0 F1 B1"), replace(workload([2, 3]), memory=memory)) == (
        33,
        25,
    )


def test_deadlock_names_the_waiting_operations():
    with pytest.raises(DeadlockError, match=r"replica 7: .*stage 0 at \['B', 0\], stage 1 at \['F', 1\]"):
        run_programs(parse_programs("F0 B0 F1 B1", "F1 F0 B0 B1"), workload([1, 1]), replica=7)


def test_deadlock_of_clipping():
    # stage 1 steps before B1, which it waits for: the norm needs B1 of both stages
    with pytest.raises(DeadlockError, match=r"stage 1 at \['S', 0, 0\]"):
        run_programs(parse_programs("F0 F1 B0 B1 S0.0", "F0 F1 B0 S0.0 B1"), workload([1, 1], clipped=[0]))


def test_backward_before_its_forward_deadlocks():
    with pytest.raises(DeadlockError, match=r"stage 0 at \['B', 0\]"):
        run_programs(parse_programs("B0 F0"), workload([1]))


def test_plan_adds_up_over_replicas_and_prices():
    # a0 alone on one x: 3 tokens, 9 s; a1 on two y: 1 token forward 1 + 1, backward 2 + 2: 6 s
    instance = make_instance(([3], 1), ([1], 1), gpus={"x": 1, "y": 2}, prices={"x": 3600.0, "y": 7200.0})
    costs = {"x": make_costs(), "y": make_costs(gpu="y")}
    plan = make_plan(
        instance,
        make_replica([[(0, 0)]], parse_programs("F0 B0 S0.0"), ["a0"]),
        make_replica([[(0, 0)]], parse_programs("F0 B0 S0.0", "F0 B0 S0.0"), ["a1"], number=1, gpu="y"),
    )
    found = simulate(plan, instance, costs)
    assert [r.timeline.makespan for r in found.replicas] == [9, 6]
    assert (found.gpu_time_s, found.makespan_s) == (9 + 2 * 6, 9)
    assert found.cost == pytest.approx(9 * 1 + 12 * 2)
    unpriced = make_instance(([3], 1), ([1], 1), gpus={"x": 1, "y": 2}, prices={"x": 3600.0})
    assert simulate(plan, unpriced, costs).cost is None


COSTS = make_costs(
    optimizer_s=0.25,
    transfer=(0.5, 0.1),
    forward=SmoothMaximum(3.0, 1.0, 0.02, 3.0),
    backward=SmoothMaximum(5.0, 2.0, 0.05, 2.0),
)


def random_instance(seed: int):
    rng = np.random.default_rng(seed)
    jobs = []
    for _ in range(int(rng.integers(1, 4))):
        batch = int(rng.integers(1, 4))
        jobs.append((rng.integers(1, 12, size=batch * 2).tolist(), batch, int(rng.integers(1, 4))))
    clipped = [i for i in range(len(jobs)) if rng.random() < 0.3]
    return make_instance(*jobs, clipped=clipped, layout="padded" if seed % 5 == 0 else "packed")


def clip_free(instance):
    return replace(instance, adapters=tuple(a.model_copy(update={"max_grad_norm": None}) for a in instance.adapters))


@seeds(20)
def test_random_plans_keep_every_precedence(seed):
    # random orders may make a clipped step wait for itself, so clipping is left out where it would deadlock
    instance, stages = random_instance(seed), 1 + seed % 3
    plan = random_plan(instance, stages, seed)
    naive = Naive(plan.replicas[0], instance, COSTS)
    if naive.spans() is None:
        with pytest.raises(DeadlockError):
            simulate(plan, instance, {"x": COSTS})
        instance = clip_free(instance)
        plan = random_plan(instance, stages, seed)
        naive = Naive(plan.replicas[0], instance, COSTS)
    line = simulate(plan, instance, {"x": COSTS}).replicas[0].timeline
    for s, program in enumerate(plan.replicas[0].programs):
        assert (line.starts[s][1:] >= line.ends[s][:-1]).all()  # one thing at a time
        assert line.starts[s][0] >= 0
        for i, operation in enumerate(program):
            assert line.ends[s][i] - line.starts[s][i] == pytest.approx(naive.duration(operation, s))
    for (s, i), needs in naive.inputs().items():
        starts = [line.ends[r][k] + lag for (r, k), lag in needs]
        # neither too early nor, since every operation runs as soon as it can, too late
        assert line.starts[s][i] == pytest.approx(max(starts, default=0.0))


@seeds(20)
def test_timed_random_plans_pass_the_checker(seed):
    instance = clip_free(random_instance(seed))
    costs = {"x": COSTS}
    plan = timed(random_plan(instance, 1 + seed % 3, seed), instance, costs)
    assert check(plan, instance, costs).violations == ()
    assert plan.replicas[0].peak_memory_gib == pytest.approx(Naive(plan.replicas[0], instance, COSTS).peaks())


def test_joined_plans_pass_the_checker():
    instance = make_instance(([3, 5], 1), ([1, 4], 2), ([6], 1), gpus=6)
    parts = [random_plan(instance.subset(part), g, seed=g) for part, g in (([0, 2], 3), ([1], 2))]
    plan = timed(joined(instance, parts), instance, {"x": COSTS})
    assert check(plan, instance, {"x": COSTS}).violations == ()


def test_the_simulator_repairs_nothing():
    # a program without its B's just ends earlier; refusing it is the checker's business
    assert run_programs(parse_programs("F0 F1"), workload([2, 3])).makespan == 5
    assert FORWARD(5, 0) == 5
