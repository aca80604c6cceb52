"""Whatever goes wrong: one clear error, no process left, nothing half-written; events and logs stay."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers.plans import random_plan
from helpers.small import write_data

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.launch import local
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.keeper import CheckpointOptions
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.monitoring.metrics import MetricEvent


@pytest.fixture
def small(instance: Instance) -> Instance:
    return instance.subset([0])


def workers() -> list[psutil.Process]:
    """Return the stages that still run; what other tests left to multiprocessing, its resource tracker, is none."""
    running = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in running if "cappuccino.runtime.launch.worker" in p.cmdline()]


def test_killed_worker_ends_the_run(small: Instance, llama: Path, data: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    events: list[MetricEvent] = []
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "replica-3-stage-1.log").write_text("of an earlier run")
    (tmp_path / "out" / "metrics.jsonl").write_text("{}\n")

    def kill_one(done: int, total: int) -> None:
        if len(events) >= 2 and not killed:  # it is called on while it dies
            (victim,) = (p.pid for p in workers() if p.cmdline()[-1] == "1")
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    # Long enough to be under way still when the first progress is reported.
    long = replace(small, adapters=(small.adapters[0].model_copy(update={"num_steps": 100}),))
    plan = random_plan(long, 2, seed=0)
    with pytest.raises(RunError, match="replica 0, stage 1 failed: the process was ended by SIGKILL") as error:
        run_plan(plan, long, llama, data, tmp_path / "out", on_progress=kill_one, on_event=events.append)
    assert (error.value.replica, error.value.stage) == (0, 1)
    assert not workers()
    out = tmp_path / "out"
    assert list(tmp_path.iterdir()) == [out]
    assert sorted(p.name for p in out.iterdir()) == ["logs", "metrics.jsonl"]
    logs = sorted(p.name for p in (out / "logs").iterdir())
    assert logs == ["replica-0-stage-0.log", "replica-0-stage-1.log"]  # the earlier run's is gone
    assert f"what it printed is in {out / 'logs' / 'replica-0-stage-1.log'}" in str(error.value)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == [event.model_dump() for event in events]
    trained = [event.step for event in events if event.kind == "train"]
    assert trained == list(range(len(trained)))
    assert 2 <= len(events) < 100


@pytest.mark.slow
def test_interrupt_ends_the_run(small: Instance, llama: Path, data: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(random_plan(small, 1, seed=0), small, llama, data, tmp_path / "out", on_progress=interrupt)
    assert not workers()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["logs", "metrics.jsonl"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    instance: Instance, llama: Path, data: Path, tmp_path: Path
) -> None:
    two = instance.subset([0, 2])
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "q_proj").write_text("in the way")
    options = CheckpointOptions(every=2)
    with pytest.raises(InputError, match=r"q_proj/step-2/.*: cannot be written .*; free space") as error:
        run_plan(random_plan(two, 1, seed=0), two, llama, data, out, checkpoints=options)
    assert not workers()
    kept = [int(p.parent.name.removeprefix("step-")) for p in (out / "checkpoints" / "0").glob("*/checkpoint.json")]
    expected = f"checkpoints: 0 (step {max(kept)})" if kept else "nothing was kept"
    if max(kept, default=0) == two.num_steps(1):
        expected = f"finished in {out}: 0"
    assert expected in str(error.value)


@pytest.mark.parametrize("done", [0.3, pytest.param(0.7, marks=pytest.mark.slow)])
def test_a_killed_run_loses_few_steps(small: Instance, llama: Path, data: Path, tmp_path: Path, done: float) -> None:
    every = 4
    long = replace(small, adapters=(small.adapters[0].model_copy(update={"num_steps": 100}),))
    plan = random_plan(long, 1, seed=0)
    (program,) = plan.replicas[0].programs
    reached: list[int] = []

    def kill(operations: int, total: int) -> None:
        if operations >= done * total and not reached:
            reached.append(sum(operation[0] == "S" for operation in program[:operations]))
            (victim,) = workers()
            victim.kill()

    with pytest.raises(RunError, match=r"checkpoints: q_proj \(step \d+\); go on by the same command with --resume"):
        run_plan(plan, long, llama, data, tmp_path / "out", checkpoints=CheckpointOptions(every), on_progress=kill)
    assert not workers()
    kept = sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "out" / "checkpoints" / "q_proj").iterdir())
    assert len(kept) <= 2
    assert kept[-1] % every == 0
    assert kept[-1] > reached[0] - 2 * every  # the last one may have been under way


@pytest.mark.slow
def test_input_error_of_a_worker_reaches_the_caller(
    small: Instance, llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_require_modules", lambda *arguments: None)  # which finds it out before
    wrong = replace(small, adapters=(small.adapters[0].model_copy(update={"target_modules": ("no_such_proj",)}),))
    with pytest.raises(InputError, match="adapter q_proj: target_modules"):
        run_plan(random_plan(wrong, 2, seed=0), wrong, llama, data, tmp_path / "out")
    assert not workers()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["logs", "metrics.jsonl"]


@pytest.mark.slow
def test_workers_end_when_the_launcher_dies(small: Instance, llama: Path, data: Path, tmp_path: Path) -> None:
    random_plan(small, 2, seed=0).save(tmp_path / "plan.json")
    document = {
        "format": "cappuccino.instance/1",
        "name": "tiny",
        "backbone": "tiny",
        "cost_table": "unused.csv",
        "gpu_pools": [{"gpu": "cpu", "count": 8, "memory_gib": 1.0}],
        "max_sequence_length": small.max_sequence_length,
        "datasets": {"news": {"lengths": small.dataset_lengths["news"].tolist()}},
        "adapters": [small.adapters[0].model_dump(mode="json")],
    }
    (tmp_path / "instance.json").write_text(json.dumps(document))
    code = (
        "from pathlib import Path; from cappuccino.plan import Plan; from cappuccino.instance import Instance;"
        "from cappuccino.runtime.launch.local import run_plan;"
        "import sys; plan, instance, *paths = map(Path, sys.argv[1:]);"
        "run_plan(Plan.load(plan), Instance.load(instance), *paths)"
    )
    arguments = [tmp_path / "plan.json", tmp_path / "instance.json", llama, data, tmp_path / "out"]
    launcher = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    while len(started := psutil.Process(launcher.pid).children()) < 2:
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


def test_wrong_lengths_are_refused_before_anything_starts(small: Instance, llama: Path, tmp_path: Path) -> None:
    lengths, held_out = (small.dataset_lengths[name].tolist() for name in ("news", "held-out"))
    folder = write_data(tmp_path / "data", {"news": [*lengths[:5], lengths[5] + 1, *lengths[6:]], "held-out": held_out})
    (tmp_path / "parent").mkdir()
    with pytest.raises(InputError, match=r"news.jsonl: row 5: has \d+ tokens"):
        run_plan(random_plan(small, 2, seed=0), small, llama, folder, tmp_path / "parent" / "out")
    assert not list((tmp_path / "parent").iterdir())


def test_settings_that_cannot_run_are_refused(small: Instance, llama: Path, data: Path, tmp_path: Path) -> None:
    plan, out = random_plan(small, 2, seed=0), tmp_path / "out"

    def split(*layers: int) -> object:
        replica = plan.replicas[0].model_copy(update={"layers_per_stage": layers})
        return plan.model_copy(update={"replicas": (replica,)})

    with pytest.raises(InputError, match='layout: the runtime does not train "padded"'):
        run_plan(plan, replace(small, layout="padded"), llama, data, out)
    with pytest.raises(InputError, match=r"\[2, 3\] on 2 stages is no split of 4 layers"):
        run_plan(split(2, 3), small, llama, data, out)
    with pytest.raises(InputError, match="leave a stage without layers"):
        run_plan(random_plan(small, 5, seed=0), small, llama, data, out)
    renamed = replace(small, adapters=(small.adapters[0].model_copy(update={"name": "logs"}),))
    with pytest.raises(InputError, match='name of adapter "logs": is the name of another result of a run'):
        run_plan(random_plan(renamed, 2, seed=0), renamed, llama, data, out)
    with pytest.raises(InputError, match='dtype: "float8" is not known'):
        run_plan(plan, small, llama, data, out, dtype="float8")
    with pytest.raises(InputError, match='device: "tpu" is not known'):
        run_plan(plan, small, llama, data, out, device="tpu")
    out.write_text("a file")
    with pytest.raises(InputError, match="out: is not a folder"):
        run_plan(plan, small, llama, data, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
