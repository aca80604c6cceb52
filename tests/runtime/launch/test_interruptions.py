"""Runs that are killed or asked to end, and what comes of them when they go on."""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.alone import largest_difference
from helpers.launching import INT, KILL, TERM, Launching
from helpers.plans import random_plan
from safetensors.torch import load_file

from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.launch.run_result import RunResult

EVERY = 5
STEPS = 150


@pytest.fixture(scope="module")
def small(instance: Instance) -> Instance:
    """An adapter with clipping, schedule and decay, and one with dropout that ends earlier."""
    jobs = [instance.adapters[i] for i in (1, 4)]
    jobs = [job.model_copy(update={"num_steps": n}) for job, n in zip(jobs, (STEPS, STEPS // 3), strict=True)]
    return replace(instance, adapters=tuple(jobs), cost_table=Path("/unused.csv"))


@pytest.fixture(scope="module")
def plan(small: Instance) -> Plan:
    return random_plan(small, 2, seed=11)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, small: Instance, plan: Plan, llama: Path, data: Path
) -> RunResult:
    return run_plan(plan, small, llama, data, tmp_path_factory.mktemp("undisturbed") / "out", dtype="float64")


@pytest.fixture
def launching(tmp_path: Path, small: Instance, plan: Plan, llama: Path, data: Path) -> Launching:
    return Launching(tmp_path, plan, small, llama, data, tmp_path / "out", EVERY)


def require_equal(out: Path, expected: RunResult) -> None:
    for name, path in expected.adapters.items():
        weights, own = (load_file(p / "adapter_model.safetensors") for p in (path, out / name))
        assert largest_difference(weights, own) < 1e-8


@pytest.mark.slow
def test_a_run_survives_whatever_ends_it(launching: Launching, undisturbed: RunResult) -> None:
    run = launching.start(resume=False)
    run.wait_for_new_checkpoint()
    ended = run.end(KILL, stage=1)
    assert ended.status == 1
    assert "stage 1 failed: the process was ended by SIGKILL" in ended.said
    assert "--resume" in ended.said
    assert not ended.left_running
    run = launching.start(resume=True)
    run.wait_for_new_checkpoint()
    ended = run.end(KILL)
    assert not ended.left_running
    before = launching.steps()
    run = launching.start(resume=True)
    run.wait_for_new_checkpoint()
    ended = run.end(TERM)
    assert ended.status == 75
    assert "interrupted: " in ended.said
    assert "--resume" in ended.said
    assert not ended.left_running
    after = launching.steps()
    assert sum(after.values()) > sum(before.values())
    run = launching.start(resume=True)
    ended = run.wait()
    assert ended.status == 0, ended.said
    require_equal(launching.out, undisturbed)


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once(launching: Launching) -> None:
    run = launching.start(resume=False)
    run.wait_for_new_checkpoint()
    run.launcher.send_signal(TERM)
    ended = run.end(INT)
    assert ended.status == 75
    assert "checkpoints: " in ended.said
    assert not ended.left_running


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(
    launching: Launching, undisturbed: RunResult, seed: int
) -> None:
    rng = random.Random(seed)
    reached: dict[str, int] = {}
    for kill in range(2):
        run = launching.start(resume=kill > 0)
        run.wait_for_new_checkpoint()
        if rng.random() < 0.5:
            run.wait_for_write()
        else:
            time.sleep(rng.random())
        ended = run.end(KILL, stage=rng.choice([None, 0, 1]))
        assert not ended.left_running
        if ended.status == 0:
            break  # it was quicker
        steps = launching.steps()
        assert all(steps.get(name, 0) >= step for name, step in reached.items())
        reached = steps
    run = launching.start(resume=True)
    ended = run.wait()
    assert ended.status == 0, ended.said
    require_equal(launching.out, undisturbed)
