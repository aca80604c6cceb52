"""What is left of plans and instances: valid by the checker and by the slow second opinion, numbered as before."""

import random

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_plan, timed, with_evaluations
from helpers.naive import is_valid
from helpers.plans import random_plan

from cappuccino.checker import check
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.remaining import planned_alone, planned_onwards, remaining_instance, remaining_replica

INSTANCE = make_instance(([3, 5, 2, 7], 2, 4), ([1, 4, 6], 1, 5), ([2, 9], 3, 3), ([8, 1, 1], 2, 2), clipped=[1, 2])
COSTS = {"x": make_costs(optimizer_s=0.1, transfer=(0.3, 0.1))}
NAMES = [a.name for a in INSTANCE.adapters]
STEPS = {name: INSTANCE.num_steps(i) for i, name in enumerate(NAMES)}
BATCH = {a.name: a.global_batch_size for a in INSTANCE.adapters}


def drawn_steps(seed: int) -> dict[str, int]:
    """Return steps done, some none, some all, of all adapters but never of all of them all."""
    rng = random.Random(seed)
    done = {name: rng.randint(0, steps) for name, steps in STEPS.items()}
    if done == STEPS:
        done[rng.choice(NAMES)] = 0
    return {name: steps for name, steps in done.items() if steps or rng.random() < 0.5}


@pytest.mark.parametrize("seed", range(30))
def test_what_is_left_of_a_plan_is_valid_and_in_its_order(seed: int) -> None:
    (whole,) = random_plan(INSTANCE, 1 + seed % 4, seed, samples_per_micro_batch=4).replicas
    done = drawn_steps(seed)
    left = remaining_replica(whole, INSTANCE, done)
    assert left is not None

    def named(replica, stage):
        """Operations with samples and adapters instead of their positions, those without samples left out."""
        for op in replica.programs[stage]:
            if op[0] == "S":
                yield "S", replica.adapters[op[1]], op[2]
                continue
            samples = [(replica.adapters[a], n) for a, n in replica.micro_batches[op[1]].samples]
            samples = [(name, n) for name, n in samples if n >= done.get(name, 0) * BATCH[name]]
            if samples:
                yield op[0], tuple(samples)

    for stage in range(whole.num_stages):
        expected = [op for op in named(whole, stage) if op[0] != "S" or op[2] >= done.get(op[1], 0)]
        assert list(named(left, stage)) == expected
    plan = make_plan(INSTANCE, left).model_copy(update={"done": {name: k for name, k in done.items() if k}})
    alone, rest = planned_alone(plan, INSTANCE)
    alone = timed(alone, rest, COSTS)
    assert check(alone, rest, COSTS).violations == ()
    assert is_valid(alone, rest, COSTS)


def test_nothing_done_leaves_all_and_all_done_leaves_nothing() -> None:
    (whole,) = random_plan(INSTANCE, 2, 0).replicas
    assert remaining_replica(whole, INSTANCE, {}) is whole
    assert remaining_replica(whole, INSTANCE, {"elsewhere": 3}) is whole
    assert remaining_replica(whole, INSTANCE, STEPS) is None
    with pytest.raises(ValueError, match=f'"{NAMES[0]}" has 4 steps, 5 cannot be done'):
        remaining_replica(whole, INSTANCE, {NAMES[0]: 5})


@pytest.mark.parametrize("seed", range(10))
def test_what_is_left_of_an_instance_has_the_samples_that_follow(seed: int) -> None:
    done = drawn_steps(seed)
    left = remaining_instance(INSTANCE, done)
    expected = {n: INSTANCE.step_lengths[i][done.get(n, 0) :] for i, n in enumerate(NAMES) if done.get(n) != STEPS[n]}
    assert [a.name for a in left.adapters] == list(expected)
    for lengths, following in zip(left.step_lengths, expected.values(), strict=True):
        np.testing.assert_array_equal(lengths, following)


@pytest.mark.parametrize("seed", range(10))
def test_a_plan_of_what_is_left_has_the_numbers_of_the_whole(seed: int) -> None:
    done = drawn_steps(seed)
    left = remaining_instance(INSTANCE, done)
    made = timed(random_plan(left, 2, seed), left, COSTS)
    stated = planned_onwards(made, INSTANCE, done)
    (replica,) = stated.replicas
    samples = sorted((replica.adapters[a], n) for m in replica.micro_batches for a, n in m.samples)
    numbers = {name: range(done.get(name, 0) * BATCH[name], STEPS[name] * BATCH[name]) for name in NAMES}
    assert samples == sorted((name, n) for name in NAMES for n in numbers[name])
    steps = sorted((replica.adapters[op[1]], op[2]) for op in replica.programs[1] if op[0] == "S")
    assert steps == sorted((name, j) for name in NAMES for j in range(done.get(name, 0), STEPS[name]))
    assert stated.instance.sha256 == INSTANCE.digest
    again, rest = planned_alone(Plan.model_validate_json(stated.model_dump_json(by_alias=True)), INSTANCE)
    assert again == made
    assert rest.digest == left.digest


def test_plans_that_build_on_nothing_are_left_alone() -> None:
    plan = random_plan(INSTANCE, 2, 0)
    assert planned_alone(plan, INSTANCE) == (plan, INSTANCE)
    document = plan.dump()
    assert document.pop("done") == {}
    assert Plan.model_validate(document) == plan  # files that are older than the field


def other(instance: Instance) -> Instance:
    return make_instance(([3, 5, 2, 7], 2, 3), *([([1, 4, 6], 1, 5)] * 3))


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="all steps are done; there is nothing to plan"):
        remaining_instance(INSTANCE, STEPS)
    with pytest.raises(InputError, match=rf'adapters\[0\].num_steps: adapter "{NAMES[0]}" has 4 steps, 9 are done'):
        remaining_instance(INSTANCE, {NAMES[0]: 9})
    plan = random_plan(INSTANCE, 2, 0).model_copy(update={"done": {NAMES[1]: 2}})
    with pytest.raises(InputError, match=f'of adapter "{NAMES[1]}" before the 2 steps that the plan takes as done'):
        planned_alone(plan, INSTANCE)  # it still holds them
    done = {NAMES[0]: 1}
    stated = planned_onwards(random_plan(remaining_instance(INSTANCE, done), 2, 0), INSTANCE, done)
    report = check(*planned_alone(stated, other(INSTANCE)), COSTS)
    assert report.violations[0].rule == 1
    assert "another instance" in str(report.violations[0])


EVALUATED = with_evaluations(INSTANCE, 3)


@pytest.mark.parametrize("seed", range(12))
def test_evaluations_that_are_left_stay_in_their_place(seed: int) -> None:
    (whole,) = random_plan(EVALUATED, 1 + seed % 3, seed).replicas
    done = drawn_steps(seed)
    left = remaining_replica(whole, EVALUATED, done)
    assert left is not None
    expected = [
        (whole.adapters[x.adapter], x.step, x.samples)
        for x in whole.evaluations
        for begun in [done.get(whole.adapters[x.adapter], 0)]
        if begun - 1 <= x.step and begun < STEPS[whole.adapters[x.adapter]]
    ]
    assert [(left.adapters[x.adapter], x.step, x.samples) for x in left.evaluations] == expected
    for program in left.programs:
        assert sorted(op[1] for op in program if op[0] == "E") == list(range(len(expected)))
        for e, batch in enumerate(left.evaluations):
            place = program.index(("E", e))
            step = ("S", batch.adapter, batch.step)
            assert step not in program or program.index(step) < place


@pytest.mark.parametrize("seed", range(12))
def test_what_is_planned_onwards_is_evaluated_as_the_whole_would_have_been(seed: int) -> None:
    done = drawn_steps(seed)
    rest = remaining_instance(EVALUATED, done)
    for i, job in enumerate(rest.adapters):
        whole = EVALUATED.adapter_index(job.name)
        begun = done.get(job.name, 0)
        expected = [j for j in EVALUATED.evaluated_steps(whole) if j >= begun]
        assert [j + begun for j in rest.evaluated_steps(i)] == expected
    (replica,) = random_plan(rest, 2, seed).replicas
    onwards = planned_onwards(make_plan(rest, replica), EVALUATED, done)
    alone, again = planned_alone(onwards, EVALUATED)
    alone = timed(alone, again, COSTS)
    assert check(alone, again, COSTS).violations == ()
