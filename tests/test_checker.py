import random
from contextlib import suppress
from dataclasses import replace

import pytest
from helpers.builders import (
    changed,
    make_costs,
    make_instance,
    make_plan,
    make_replica,
    parse_programs,
    timed,
    with_adapters,
    with_evaluations,
    with_memory,
    with_unlike_stages,
)
from helpers.naive import is_valid
from helpers.plans import random_plan

from cappuccino.checker import check
from cappuccino.errors import InvalidPlanError
from cappuccino.plan import MicroBatch, Objective, Plan, Status
from cappuccino.simulator import DeadlockError

# a0: 2 steps of 2 samples (3 5 | 2 7); a1: 1 step of 1 sample (4); a2: 1 step of 1 sample (6)
INSTANCE = make_instance(([3, 5, 2, 7], 2), ([4], 1), ([6], 1), gpus=4)
COSTS = {"x": make_costs(optimizer_s=0.5, transfer=(0.5, 0.0))}
# micro-batches of replica 0: 0 holds both samples of a0's step 0 and a1's, 1 and 2 one sample of a0's step 1 each
MICRO_BATCHES = [[(0, 0), (0, 1), (1, 0)], [(0, 2)], [(0, 3)]]
STAGE = "F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1"


def build(micro_batches=MICRO_BATCHES, first=STAGE, last=STAGE, adapters=("a0", "a1"), others=(), time=True) -> Plan:
    """Return the plan of the example with parts exchanged; its times are right where it can run."""
    plan = make_plan(
        INSTANCE,
        make_replica(micro_batches, parse_programs(first, last), adapters),
        *(others or [make_replica([[(0, 0)]], parse_programs("F0 B0 S0.0"), ["a2"], number=1)]),
    )
    return timed(plan, INSTANCE, COSTS) if time else plan


GOOD = build()


def rules(plan: Plan, costs=COSTS) -> set[int]:
    report = check(plan, INSTANCE, costs)
    assert report.valid == (not report.violations)
    return {v.rule for v in report.violations}


def test_the_example_is_valid():
    assert check(GOOD, INSTANCE, COSTS).violations == ()
    assert is_valid(GOOD, INSTANCE, COSTS)
    check(GOOD, INSTANCE, COSTS).raise_if_invalid()


def test_the_example_is_valid_with_a_bound_and_a_deadline():
    plan = changed(
        GOOD,
        lower_bound=GOOD.gpu_time_s / 2,
        gap=0.5,
        deadline_s=GOOD.makespan_s,
        status=Status.WITHIN_GAP,
        solver={"gap_tolerance": 0.5},
    )
    assert rules(plan) == set()
    assert rules(changed(plan, status=Status.OPTIMAL)) == {7}
    assert rules(changed(plan, lower_bound=GOOD.gpu_time_s, gap=0.0, status=Status.OPTIMAL, solver={})) == set()
    assert rules(changed(plan, solver={"gap_tolerance": 0.49})) == {7}
    assert rules(changed(plan, solver={})) == {7}


def replica_1(adapter="a2", **values):
    replica = make_replica([[(0, 0)]], parse_programs("F0 B0 S0.0"), [adapter], number=1)
    return [changed(replica, **values)]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed(GOOD, replicas=GOOD.replicas[:1]), 'adapter "a2" is in 0 replicas'),
        (build(others=[*replica_1(), *replica_1(id=2)]), 'adapter "a2" is in 2 replicas'),
        (build(others=[*replica_1(), *replica_1("a1", id=2)]), 'adapter "a1" is in 2 replicas'),
        (build(adapters=("a0", "a1", "a0"), time=False), 'adapter "a0" is in 2 replicas'),
        (build(others=replica_1("a9"), time=False), 'adapter "a9" is not in the instance'),
        (build(others=replica_1(id=0)), "2 replicas have the id 0"),
        (build(others=replica_1(gpu="y"), time=False), 'no pool of "y"'),
        (
            build(others=[make_replica([[(0, 0)]], parse_programs(*["F0 B0 S0.0"] * 3), ["a2"], number=1)]),
            '5 GPUs used of a pool of 4 "x"',
        ),
        (build(others=replica_1(num_stages=2), time=False), "1 programs and 1 memory peaks for 2 stages"),
        (build(others=replica_1(peak_memory_gib=(1.0, 1.0)), time=False), "1 programs and 2 memory peaks for 1"),
        (build(others=replica_1(layers_per_stage=(1, 1))), "layers for 2 of 1 stage"),
        (
            changed(GOOD, instance={"name": "tiny", "sha256": "0" * 64}),
            'made for another instance ("tiny")',
        ),
    ],
)
def test_rule_1_placement(plan, message):
    report = check(plan, INSTANCE, COSTS)
    assert {v.rule for v in report.violations} == {1}
    assert message in " ".join(v.message for v in report.violations)


def test_rule_1_layers_of_the_backbone():
    costs = {"x": make_costs(optimizer_s=0.5, transfer=(0.5, 0.0), num_layers=8)}
    first, second = GOOD.replicas
    for layers, broken in (((4, 4), set()), ((5, 3), {1}), ((4, 3), {1})):  # (5, 3): stages are costed as equals
        replicas = (changed(first, layers_per_stage=layers), second)
        assert rules(changed(GOOD, replicas=replicas), costs) == broken


@pytest.mark.parametrize(
    ("micro_batches", "message"),
    [
        ([[(0, 0), (0, 1), (1, 0)], [(0, 2)], [(0, 2), (0, 3)]], 'sample 2 of adapter "a0" is in 2 places'),
        ([[(0, 0), (0, 1), (0, 1), (1, 0)], [(0, 2)], [(0, 3)]], 'sample 1 of adapter "a0" is in 2 places'),
        ([[(0, 0), (1, 0)], [(0, 2)], [(0, 3)]], 'sample 1 of adapter "a0" in no micro-batch'),
        ([[(0, 0), (0, 1)], [(0, 2)], [(0, 3)]], 'sample 0 of adapter "a1" in no micro-batch'),
        ([[(0, 0), (0, 1), (1, 0)], [(0, 2)], [(0, 3), (0, 4)]], "there is no sample [0, 4]"),
        ([[(0, 0), (0, 1), (1, 0)], [(0, 2)], [(0, 3), (2, 0)]], "there is no sample [2, 0]"),
        ([[(0, 0), (1, 0)], [(0, 1), (0, 2)], [(0, 3)]], 'samples of steps 0 and 1 of adapter "a0"'),
        ([[(0, 0), (1, 0), (0, 1)], [(0, 2)], [(0, 3)]], "samples are not listed adapter by adapter"),
    ],
)
def test_rule_2_samples(micro_batches, message):
    report = check(build(micro_batches, time=False), INSTANCE, COSTS)
    assert {v.rule for v in report.violations} == {2}
    assert message in " ".join(v.message for v in report.violations)


def test_samples_may_stand_in_any_order_within_an_adapter():
    assert rules(build([[(1, 0), (0, 1), (0, 0)], [(0, 2)], [(0, 3)]])) == set()


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("F0 B0 S0.0 S1.0 F1 B1 B2 S0.1", "F of micro-batch 2 is missing"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 S0.1", "B of micro-batch 2 is missing"),
        ("B0 F0 S0.0 S1.0 F1 F2 B1 B2 S0.1", "B of micro-batch 0 stands before its F"),
        ("F0 F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1", "F of micro-batch 0 stands twice"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 B2 B2 S0.1", "B of micro-batch 2 stands twice"),
        ("F0 B0 S0.0 S1.0 F1 F2 F3 B1 B2 B3 S0.1", "there is no micro-batch 3"),
    ],
)
def test_rule_3_operations(last, message):
    for plan in (build(last=last, time=False), build(first=last, time=False)):
        report = check(plan, INSTANCE, COSTS)
        assert {v.rule for v in report.violations} == {3}
        assert message in " ".join(v.message for v in report.violations)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("F0 B0 S0.0 F1 F2 B1 B2 S0.1", "S of step 0 of adapter 1 is missing"),
        ("F0 B0 S1.0 F1 F2 B1 B2 S0.1", "S of step 0 of adapter 0 is missing"),
        ("F0 S0.0 B0 S1.0 F1 F2 B1 B2 S0.1", "S of step 0 of adapter 0 stands before B of micro-batch 0"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 S0.1 B2", "S of step 1 of adapter 0 stands before B of micro-batch 2"),
        ("F0 B0 S1.0 F1 S0.0 F2 B1 B2 S0.1", "F of micro-batch 1 stands before S of step 0 of adapter 0"),
        ("F0 B0 S0.0 S0.0 S1.0 F1 F2 B1 B2 S0.1", "S of step 0 of adapter 0 stands twice"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1 S1.0", "S of step 0 of adapter 1 stands twice"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1 S0.2", "there is no step 2 of adapter 0"),
        ("F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1 S2.0", "there is no step 0 of adapter 2"),
    ],
)
def test_rule_4_steps(stage, message):
    # the times are right, so that nothing but the rule can refuse the plan
    for plan in (build(last=stage), build(first=stage)):
        report = check(plan, INSTANCE, COSTS)
        assert {v.rule for v in report.violations} == {4}
        assert message in " ".join(v.message for v in report.violations)
        assert "stage 1" in str(report.violations[0]) or "stage 0" in str(report.violations[0])


def test_the_step_of_an_adapter_that_ended_may_stand_anywhere_later():
    assert rules(build(last="F0 B0 S0.0 F1 F2 B1 S1.0 B2 S0.1")) == set()


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            "F0 B0 S0.0 S1.0 F2 F1 B1 B2 S0.1",
            "number 1 among the F and E is F of micro-batch 2, on stage 0 F of",
        ),
        (
            "F0 B0 S0.0 S1.0 F1 F2 B2 B1 S0.1",
            "number 1 among the B is B of micro-batch 2, on stage 0 B of",
        ),
    ],
)
def test_rule_5_order(last, message):
    report = check(build(last=last), INSTANCE, COSTS)
    assert {v.rule for v in report.violations} == {5}
    assert message in report.violations[0].message


def test_rule_5_deadlock():
    # one order everywhere, but stage 1 wants F2 before B1 and stage 0 B1 before F2
    plan = build(first="F0 B0 S0.0 S1.0 F1 B1 F2 B2 S0.1", last="F0 B0 S0.0 S1.0 F1 F2 B1 B2 S0.1", time=False)
    report = check(plan, INSTANCE, COSTS)
    assert [v.rule for v in report.violations] == [5]
    assert "stage 0 at ['B', 1], stage 1 at ['F', 2]" in report.violations[0].message
    assert report.simulation is None


def test_rule_6_memory():
    # fullest: micro-batch 0 of 12 tokens alone, 10 + 12 + 12 = 34
    assert max(GOOD.replicas[0].peak_memory_gib) == 34
    assert rules(GOOD, {"x": with_memory(COSTS["x"], 34.0)}) == set()
    report = check(GOOD, INSTANCE, {"x": with_memory(COSTS["x"], 33.9)})
    assert {v.rule for v in report.violations} == {6}
    assert report.violations[0].message == "replica 0, stage 0: needs 34.00 GiB of 33.90 usable on x"


def test_rule_6_counts_what_is_in_flight():
    # 12 tokens in flight while 7 run: 10 + 7 + 12 + 2 + 7 beyond 34, and only stage 1 does it
    plan = build(
        [[(0, 0), (0, 1)], [(0, 2)], [(0, 3)], [(1, 0)]],
        "F0 F3 B0 S0.0 F1 F2 B3 S1.0 B1 B2 S0.1",
        "F0 F3 B0 S0.0 F1 F2 B3 S1.0 B1 B2 S0.1",
    )
    # F0 10+8+8, F3 10+4+12=26, B0 10+8+12=30, F1 10+2+6, F2 10+7+13=30, B3 10+4+13, B1 10+2+9, B2 10+7+7
    assert plan.replicas[0].peak_memory_gib == (30, 30)
    assert rules(plan, {"x": with_memory(COSTS["x"], 30.0)}) == set()
    assert rules(plan, {"x": with_memory(COSTS["x"], 29.9)}) == {6}


def with_replica(**values) -> Plan:
    return changed(GOOD, replicas=(changed(GOOD.replicas[0], **values), GOOD.replicas[1]))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed(GOOD, makespan_s=GOOD.makespan_s * 1.001), "makespan_s is"),
        (changed(GOOD, gpu_time_s=GOOD.gpu_time_s * 0.999), "gpu_time_s is"),
        (with_replica(makespan_s=GOOD.makespan_s * 0.999), "replica 0: makespan_s is"),
        (with_replica(peak_memory_gib=(34.0, 33.0)), "peak_memory_gib[1] is 33, the programs give 34"),
        (with_replica(lower_bound_s=GOOD.makespan_s * 1.001), "is above the makespan"),
        (changed(GOOD, lower_bound=GOOD.gpu_time_s * 1.001, gap=0.0), "above the objective"),
        (changed(GOOD, lower_bound=GOOD.gpu_time_s / 2, gap=0.4), "gap is 0.4, objective and bound give 0.5"),
        (changed(GOOD, lower_bound=GOOD.gpu_time_s / 2), "gap is null, objective and bound give 0.5"),
        (changed(GOOD, gap=0.5), "gap is 0.5, objective and bound give null"),
        (changed(GOOD, status=Status.OPTIMAL), "optimal without a bound"),
        (changed(GOOD, status=Status.WITHIN_GAP), "within_gap without a bound"),
        (changed(GOOD, deadline_s=GOOD.makespan_s * 0.999), "misses the deadline"),
        (changed(GOOD, cost=1.0), "cost is 1, the programs give null"),
        (changed(GOOD, objective=Objective.COST), "cost"),
    ],
)
def test_rule_7_times(plan, message):
    report = check(plan, INSTANCE, COSTS)
    assert {v.rule for v in report.violations} == {7}
    assert message in report.violations[0].message


def test_rule_7_cost():
    instance = make_instance(([3, 5, 2, 7], 2), ([4], 1), ([6], 1), prices={"x": 3600.0})
    plan = changed(GOOD, instance={"name": "tiny", "sha256": instance.digest}, objective=Objective.COST)
    for cost, broken in ((GOOD.gpu_time_s, []), (GOOD.gpu_time_s * 1.01, [7]), (None, [7])):
        found = check(changed(plan, cost=cost), instance, COSTS).violations
        assert [v.rule for v in found] == broken


def test_the_objective_decides_what_the_bound_is_compared_with():
    bound = (GOOD.makespan_s + GOOD.gpu_time_s) / 2
    plan = changed(GOOD, lower_bound=bound, gap=1 - bound / GOOD.gpu_time_s)
    assert rules(plan) == set()
    assert rules(changed(plan, objective=Objective.MAKESPAN, gap=0.0)) == {7}


def test_error_names_the_rule_and_the_source():
    report = check(changed(GOOD, makespan_s=1.0, gpu_time_s=1.0), INSTANCE, COSTS)
    with pytest.raises(InvalidPlanError, match=r"p\.json: invalid plan: rule 7: .* \(and 1 more\)$"):
        report.raise_if_invalid("p.json")


def mutate(plan: Plan, rng: random.Random) -> Plan:
    """Return the plan with one random change of programs, micro-batches or placement."""
    index = rng.randrange(len(plan.replicas))
    replica = plan.replicas[index]
    programs = [list(p) for p in replica.programs]
    batches = [list(b.samples) for b in replica.micro_batches]
    program = rng.choice(programs)
    i, k = rng.randrange(len(program)), rng.randrange(len(program))
    kind = rng.choice(["swap", "neighbours", "drop", "duplicate", "move", "sample", "exchange", "all", "rename"])
    if kind == "swap":
        program[i], program[k] = program[k], program[i]
    elif kind == "neighbours" and i + 1 < len(program):
        program[i], program[i + 1] = program[i + 1], program[i]
    elif kind == "drop":
        del program[i]
    elif kind == "duplicate":
        program.insert(k, program[i])
    elif kind == "move":
        program.insert(k, program.pop(i))
    elif kind == "sample":
        source, goal = rng.choice(batches), rng.choice(batches)
        sample = source[rng.randrange(len(source))]
        if len(source) > 1:
            source.remove(sample)
        goal.insert(rng.randrange(len(goal) + 1), sample)
    elif kind == "exchange":
        one, other = rng.choice(batches), rng.choice(batches)
        x, y = rng.randrange(len(one)), rng.randrange(len(other))
        one[x], other[y] = other[y], one[x]
    elif kind == "all":  # the same two operations change places on every stage
        x, y = program[i], program[k]
        for p in programs:
            if x in p and y in p:
                a, b = p.index(x), p.index(y)
                p[a], p[b] = p[b], p[a]
    elif kind == "rename":
        op = program[i]
        program[i] = (op[0], rng.randrange(len(batches)), *op[2:])
    new = changed(
        replica,
        programs=tuple(map(tuple, programs)),
        micro_batches=tuple(MicroBatch(samples=tuple(b)) for b in batches),
    )
    return changed(plan, replicas=(*plan.replicas[:index], new, *plan.replicas[index + 1 :]))


def test_mutations_are_valid_by_brute_force_or_rejected():
    rng = random.Random(0)
    accepted = refused = 0
    for seed in range(40):
        instance = make_instance(([3, 5, 2, 7], 2), ([4, 1], 1, 2), clipped=[1] if seed % 4 == 0 else [])
        costs = {"x": make_costs(optimizer_s=0.5, transfer=(0.5, 0.1), usable=45.0 if seed % 3 else None)}
        if seed % 5 == 1:
            instance, costs["x"] = with_adapters(instance, costs["x"], seed)
        if seed % 4 >= 2:
            instance = with_evaluations(instance, seed)
        if seed % 3 == 2:
            costs["x"] = with_unlike_stages(costs["x"], seed)
        plan = random_plan(instance, 1 + seed % 3, seed)
        for _ in range(25):
            mutant = mutate(plan, rng)
            # right times, where the mutant runs at all, so that rules 2 to 6 have to find what is wrong
            with suppress(DeadlockError, IndexError, KeyError):
                mutant = timed(mutant, instance, costs)
            expected = is_valid(mutant, instance, costs)
            report = check(mutant, instance, costs)
            assert report.valid == expected, (seed, mutant, report.violations)
            accepted, refused = accepted + expected, refused + (not expected)
    assert accepted > 100
    assert refused > 500


def test_mutations_without_new_times_are_found_by_the_times():
    rng = random.Random(1)
    instance = make_instance(([3, 5, 2, 7], 2), ([4, 1], 1, 2))
    costs = {"x": make_costs(optimizer_s=0.5, transfer=(0.5, 0.1))}
    for seed in range(20):
        plan = timed(random_plan(instance, 2, seed), instance, costs)
        for _ in range(20):
            mutant = mutate(plan, rng)
            assert check(mutant, instance, costs).valid == is_valid(mutant, instance, costs)


@pytest.mark.parametrize(
    ("split", "costed", "valid"),
    [
        ((3, 2), None, True),
        ((2, 3), None, True),  # an even split may begin with any stage
        ((4, 1), None, False),
        (None, None, True),
        ((4, 1), (4, 1), True),
        ((3, 2), (4, 1), False),
        (None, (4, 1), False),  # the runtime would split evenly
        (None, (3, 2), True),
    ],
)
def test_layers_by_stage_are_those_that_the_costs_are_of(split, costed, valid):
    costs = {"x": replace(COSTS["x"], num_layers=5, splits={2: costed} if costed else {})}
    first, second = GOOD.replicas
    plan = changed(GOOD, replicas=(changed(first, layers_per_stage=split), second))
    report = check(plan, INSTANCE, costs)
    assert report.valid == valid, report.violations
    assert {v.rule for v in report.violations} == (set() if valid else {1})
