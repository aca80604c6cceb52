"""run --resume and plan --resume: what is left of a run, in its own plan and in another one."""

import json
import shutil
from pathlib import Path

import pytest
from cli.conftest import Outcome, cappuccino, one_clear_error, plan_tiny, read_instance, run_tiny, write_instance

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.alone import largest_difference
from helpers.small import save_llama
from safetensors.torch import load_file

from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.launch import local
from cappuccino.runtime.launch.interruption import InterruptedRunError
from cappuccino.runtime.launch.keeper import CheckpointOptions

JOBS = [
    {"name": "a", "dataset": "news", "global_batch_size": 3, "num_steps": 5, "lr_scheduler": "linear"},
    {"name": "b", "dataset": "code", "global_batch_size": 3, "num_steps": 4, "max_grad_norm": 0.1},
    {"name": "c", "dataset": "code", "global_batch_size": 1, "num_steps": 2, "dropout": 0.3},
]
DONE = {"a": 3, "b": 1, "c": 2}
"""Steps of the crash that the tests go on from; c has no more."""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything a run needs, the run `whole`, and `out`: what was there when it had come to `DONE`."""
    folder = plan_tiny(tmp_path_factory.mktemp("crashed"), JOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "prune", lambda *arguments: None)
        done = run(folder, folder / "whole", "--checkpoint-every", 1)
    assert done.code == 0, done.err
    shutil.copytree(folder / "whole" / "checkpoints", folder / "out" / "checkpoints")
    for step in (folder / "out" / "checkpoints").glob("*/step-*"):
        if int(step.name.removeprefix("step-")) > DONE[step.parent.name]:
            shutil.rmtree(step)
    return folder


def run(folder: Path, out: Path, *arguments: object, **changes: Path) -> Outcome:
    return run_tiny(folder, out, "--dtype", "float64", *arguments, **changes)


def require_as_whole(crashed: Path, out: Path) -> None:
    whole = crashed / "whole"
    for name in DONE:
        weights, own = (load_file(folder / name / "adapter_model.safetensors") for folder in (whole, out))
        assert largest_difference(weights, own) < 1e-8
    losses, own = (json.loads((folder / "losses.json").read_text()) for folder in (whole, out))
    assert own.keys() == losses.keys()
    for name in DONE:
        assert own[name] == pytest.approx(losses[name], abs=1e-8)


def test_what_is_left_is_planned_for_another_number_of_stages(crashed: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    shutil.copytree(crashed / "out", out)
    instance = ("--instance", crashed / "instance.json")
    options = ("--resume", out, "--num-stages", 1, "--time-limit", 1)
    made = cappuccino("plan", crashed / "instance.json", "-o", plan, *options)
    assert made.code == 0, made.err
    written = json.loads(plan.read_text())
    assert written["done"] == DONE
    (replica,) = written["replicas"]
    samples = {(replica["adapters"][a], n) for m in replica["micro_batches"] for a, n in m["samples"]}
    assert samples == {("a", n) for n in range(9, 15)} | {("b", n) for n in range(3, 12)}  # in the order of the whole
    steps = {(replica["adapters"][op[1]], op[2]) for op in replica["programs"][0] if op[0] == "S"}
    assert steps == {("a", 3), ("a", 4), ("b", 1), ("b", 2), ("b", 3)}
    for command in ("check", "simulate"):
        done = cappuccino(command, plan, *instance)
        assert done.code == 0, done.err
        assert "checked: valid" in done.out
    one_clear_error(run(crashed, tmp_path / "elsewhere", plan=plan), "done", "the plan begins after step", "--resume")
    done = run(crashed, out, "--resume", plan=plan)
    assert done.code == 0, done.err
    assert "predicted" in done.out.splitlines()[0]
    require_as_whole(crashed, out)
    assert json.loads((out / "c" / "adapter_config.json").read_text())["r"] == 16


def test_a_finished_run_is_only_told_of(crashed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crashed / "whole", out)
    shutil.rmtree(out / "a")  # as if it had ended between checkpoint and adapter
    done = run(crashed, out, "--resume", "--json")
    assert done.code == 0, done.err
    assert done.json["replicas"] == []
    require_as_whole(crashed, out)
    made = cappuccino("plan", crashed / "instance.json", "-o", tmp_path / "plan.json", "--resume", out)
    one_clear_error(made, "all steps are done")


def test_what_does_not_belong_together_is_refused(crashed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(crashed / "out", out)
    before = sorted(out.rglob("*.safetensors"))
    one_clear_error(run(crashed, out), "holds checkpoints of a run that did not end", "--resume")
    one_clear_error(run(crashed, tmp_path / "new", "--resume"), "holds no checkpoint")
    one_clear_error(run(crashed, out, "--resume", "--dtype", "float32"), "dtype was float64, now float32")
    one_clear_error(run(crashed, out, "--checkpoint-every", "0"), "--checkpoint-every", '"0" is no number of steps')
    changed = tmp_path / "changed"
    shutil.copytree(crashed, changed, ignore=shutil.ignore_patterns("out", "whole", "plan.json"))
    instance = read_instance(changed)
    instance["adapters"][1] |= {"learning_rate": 0.5, "max_grad_norm": None}
    write_instance(changed, instance)
    resumed = cappuccino("plan", changed / "instance.json", "-o", changed / "plan.json", "--resume", out)
    one_clear_error(resumed, 'training of "b"', "learning_rate was 0.0001, now 0.5", "max_grad_norm was 0.1, now None")
    planned = cappuccino("plan", changed / "instance.json", "-o", changed / "plan.json", "--time-limit", 1)
    assert planned.code == 0
    one_clear_error(run(changed, out, "--resume"), 'training of "b"', "learning_rate was 0.0001, now 0.5")
    write_instance(changed, read_instance(crashed))
    rows = [json.loads(line) for line in (changed / "data" / "news.jsonl").read_text().splitlines()]
    rows[1]["input_ids"][0] += 1
    (changed / "data" / "news.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = run(changed, out, "--resume", plan=crashed / "plan.json")
    one_clear_error(done, 'training of "a"', "the training data are others")
    save_llama(changed / "backbone", layers=2, rope_theta=500.0)
    done = run(changed, out, "--resume", plan=crashed / "plan.json")
    one_clear_error(done, "the backbone is another")
    (out / "checkpoints" / "other").mkdir()
    one_clear_error(run(crashed, out, "--resume"), 'of an adapter "other"')
    (out / "checkpoints" / "other").rmdir()
    assert sorted(out.rglob("*.safetensors")) == before


def test_interrupted_runs_have_a_status_of_their_own(
    crashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []

    def interrupted(*arguments: object, **given: object) -> None:
        options.append(given["checkpoints"])
        raise InterruptedRunError("checkpoints: a (step 3)")

    monkeypatch.setattr(local, "run_plan", interrupted)
    for arguments in ((), ("--checkpoint-every", "none"), ("--checkpoint-every", 7, "--keep-checkpoints", 4)):
        done = run(crashed, tmp_path / "out", *arguments)
        assert done.code == 75
        assert "error: interrupted: checkpoints: a (step 3)" in done.err
    assert options == [CheckpointOptions(), None, CheckpointOptions(every=7, keep=4)]
    assert [CheckpointOptions().steps(n) for n in (1, 10, 11, 1000)] == [1, 1, 2, 100]


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_an_adapter_cannot_take_the_place_of_other_results(crashed: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "named"
    shutil.copytree(crashed, folder, ignore=shutil.ignore_patterns("out", "whole", "plan.json"))
    instance = read_instance(folder)
    instance["adapters"][0]["name"] = name
    write_instance(folder, instance)
    made = cappuccino("plan", folder / "instance.json", "-o", folder / "plan.json", "--time-limit", 1)
    assert made.code == 0, made.err
    one_clear_error(
        run(folder, tmp_path / "out"), f'name of adapter "{name}"', "is the name of another result of a run"
    )
    assert not (tmp_path / "out").exists()
