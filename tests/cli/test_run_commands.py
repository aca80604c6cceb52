"""run and demo: from an instance to adapters that PEFT loads, and every refusal before anything is written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import (
    TINY_LENGTHS,
    cappuccino,
    one_clear_error,
    plan_tiny,
    read_instance,
    run_tiny,
    write_instance,
)

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.small import save_llama, write_data

from cappuccino.errors import InputError
from cappuccino.runtime.launch import local, replicas

run = run_tiny


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plan_tiny(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the start of a process an error of the test."""

    def forbidden(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(replicas, "ReplicaProcesses", forbidden)


def test_a_planned_instance_is_trained_and_peft_loads_the_adapters(planned: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "my résultats 50%25"  # names that URLs would spell another way
    done = run(planned, out, "--json")
    assert done.code == 0, done.err
    said = done.json  # stdout holds one JSON object and nothing else
    assert said["checked"] is True
    (replica,) = said["replicas"]
    plan = json.loads((planned / "plan.json").read_text())
    assert replica["predicted_s"] == plan["makespan_s"]
    assert replica["measured_s"] > 0
    assert replica["difference"] == pytest.approx(replica["measured_s"] / replica["predicted_s"] - 1)
    assert 0 <= replica["measured_bubble"] < 1
    assert len(replica["peak_memory_gib"]) == 2
    same = ("predicted_s", "measured_s", "difference")
    assert said["makespan"] == {key: replica[key] for key in same}  # of the only replica
    assert said["gpu_time"]["predicted_s"] == plan["gpu_time_s"]
    assert said["gpu_time"]["measured_s"] == 2 * replica["measured_s"]
    assert len(Path(said["metrics"]).read_text().splitlines()) == 5  # optimizer steps
    losses = json.loads((out / "losses.json").read_text())
    assert {name: len(values) for name, values in losses.items()} == {"a": 2, "b": 3}
    for name, rank in (("a", 2), ("b", 16)):
        entry = said["adapters"][name]
        assert Path(entry["path"]) == out / name
        assert (entry["first_loss"], entry["last_loss"]) == (losses[name][0], losses[name][-1])
        assert entry["stopped"] is None
        assert all(math.isfinite(loss) for loss in losses[name])
        backbone = AutoModelForCausalLM.from_pretrained(planned / "backbone")
        config = json.loads((out / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(planned / "backbone")
        assert f"A LoRA adapter of `{planned / 'backbone'}`" in (out / name / "README.md").read_text()
        loaded = PeftModel.from_pretrained(backbone, entry["path"])
        assert loaded.peft_config["default"].r == rank
        trained = [p for n, p in loaded.named_parameters() if "lora_B" in n]
        assert trained
        assert all(p.any() for p in trained)  # zero before training
        merged = cappuccino("merge", out / name, "--backbone", planned / "backbone", "-o", tmp_path / name)
        assert merged.code == 0, merged.err
        ids = torch.arange(3, 20).reshape(1, -1)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, loaded.eval()(ids).logits)
    events = [e for e in json.loads(Path(said["trace"]).read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(events) == sum(len(p) for r in plan["replicas"] for p in r["programs"])
    assert "training: " in done.err


@pytest.mark.usefixtures("no_processes")
def test_a_tracker_that_is_not_known_is_one_error(planned: Path, tmp_path: Path) -> None:
    done = run(planned, tmp_path / "out", "--report-to", "tensorboard,excel")
    one_clear_error(done, "--report-to", '"excel" is not known', "tensorboard, wandb, mlflow, trackio")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("wrong", ["vproj", "all-linear"])
def test_a_target_module_that_matches_nothing_is_refused(planned: Path, tmp_path: Path, wrong: str) -> None:
    instance = read_instance(planned)
    instance["adapters"][0]["target_modules"] = ["q_proj", wrong]
    instance["cost_table"] = str(planned / "table.csv")
    write_instance(tmp_path, instance)
    options = ("--num-stages", 2, "--time-limit", 1)
    made = cappuccino("plan", tmp_path / "instance.json", "-o", tmp_path / "plan.json", *options)
    assert made.code == 0
    assert f'target_modules of a: "{wrong}" is no linear layer' in made.err
    files = {name: tmp_path / f"{name}.json" for name in ("plan", "instance")}
    one_clear_error(run(planned, tmp_path / "out", **files), 'adapter "a"', f'"{wrong}" is no linear layer', "q_proj")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_processes")
def test_an_invalid_plan_is_refused(planned: Path, tmp_path: Path) -> None:
    plan = json.loads((planned / "plan.json").read_text())
    program = plan["replicas"][0]["programs"][0]
    program.remove(next(op for op in program if op[0] == "S"))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = run(planned, tmp_path / "out", plan=tmp_path / "plan.json")
    one_clear_error(done, "plan.json", "rule 4", "is missing")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.usefixtures("no_processes")
def test_a_plan_of_another_instance_is_refused(planned: Path, tmp_path: Path) -> None:
    instance = read_instance(planned)
    instance["adapters"][0]["learning_rate"] = 0.5
    instance["cost_table"] = str(planned / "table.csv")
    done = run(planned, tmp_path / "out", instance=write_instance(tmp_path, instance))
    one_clear_error(done, "plan.json", "rule 1", "another instance")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_processes")
def test_a_wrong_backbone_folder_is_one_error(planned: Path, tmp_path: Path) -> None:
    one_clear_error(run(planned, tmp_path / "out", backbone=planned / "absent"), "absent", "is not a folder")
    one_clear_error(run(planned, tmp_path / "out", backbone=planned / "data"), "config.json", "file not found")
    shallow = save_llama(tmp_path / "shallow", layers=1)
    one_clear_error(run(planned, tmp_path / "out", backbone=shallow), "layers_per_stage", "1 layer")
    assert [p.name for p in tmp_path.iterdir()] == ["shallow"]


@pytest.mark.usefixtures("no_processes")
def test_data_of_another_length_is_one_error(planned: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {**TINY_LENGTHS, "code": [20, 6, 16, 8]})
    one_clear_error(run(planned, tmp_path / "out", data=data), "code.jsonl", "row 1", "6 tokens", "says 5")
    (data / "news.jsonl").unlink()
    one_clear_error(run(planned, tmp_path / "out", data=data), "holds no news.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.usefixtures("no_processes")
def test_a_wrong_device_or_type_is_one_error(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_clear_error(run(planned, tmp_path / "out", "--device", "tpu"), "device", '"tpu" is not known', "cpu, cuda")
    one_clear_error(run(planned, tmp_path / "out", "--dtype", "float8"), "dtype", '"float8" is not known')
    one_clear_error(run(planned, tmp_path / "out", "--dtype", "float16"), '"float16" is refused', "use bfloat16")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    done = run(planned, tmp_path / "out", "--device", "cuda", "--json")
    one_clear_error(done, "device", "2 stages", "1 GPU")
    assert done.json["error"] in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "values", "said"),
    [
        ("source,engine", "measured,cappuccino", None),
        ("source,engine", "analytic,", '"cpu" was computed from specifications'),
        ("source,engine", "measured,slowformer", '"cpu" was measured with the engine slowformer'),
        ("source", "measured", '"cpu" does not say with which engine it was measured'),
    ],
)
def test_costs_of_another_engine_are_a_warning(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, values: str, said: str | None
) -> None:
    instance = with_columns(planned, tmp_path, columns, values)
    monkeypatch.setattr(local, "run_plan", ending)
    done = run(planned, tmp_path / "out", instance=instance)
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == (said is not None)
    if said is not None:
        assert said in warnings[0]
        assert warnings[0].endswith("its times and memory are no prediction for this run")


def test_replicas_that_run_in_turn_are_a_warning(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {
        name: {"lengths": [200] * 6} for name in TINY_LENGTHS
    }  # so that samples of both adapters fill no micro-batch
    changes = {"cost_table": str(planned / "table.csv"), "max_sequence_length": 200, "datasets": long}
    instance, plan = write_instance(tmp_path, read_instance(planned) | changes), tmp_path / "plan.json"
    options = ("--num-stages", 1, "--objective", "makespan", "--time-limit", 1)
    assert cappuccino("plan", instance, "-o", plan, *options).code == 0
    assert len(json.loads(plan.read_text())["replicas"]) == 2
    monkeypatch.setattr(local, "run_plan", ending)
    done = run(planned, tmp_path / "out", plan=plan, instance=instance)
    (said,) = [line for line in done.err.splitlines() if "side by side" in line]
    assert said.startswith("warning: the plan counts on its 2 replicas side by side, on cpu they run one after another")


def with_columns(planned: Path, folder: Path, columns: str, values: str) -> Path:
    """Return the planned instance with a table that has further columns."""
    lines = (planned / "table.csv").read_text().splitlines()
    changed = [f"{lines[0]},{columns}", *(f"{line},{values}" for line in lines[1:])]
    (folder / "table.csv").write_text("\n".join(changed) + "\n")
    return write_instance(folder, read_instance(planned) | {"cost_table": "table.csv"})


def ending(*arguments: object, **options: object) -> None:
    raise InputError("test", "", "ends here", "nothing")


def test_adapters_name_their_backbone_as_told(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def end(*arguments: object, **options: object) -> None:
        names.append(options["backbone_name"])
        ending()

    monkeypatch.setattr(local, "run_plan", end)
    cached = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    monkeypatch.chdir(planned)
    for options in ({}, {"backbone": Path("backbone")}, {"backbone": cached}):
        run(planned, tmp_path / "out", **options)
    run(planned, tmp_path / "out", "--base-model-name", "org/other")
    assert names == [str(planned / "backbone"), "backbone", "org/tiny", "org/other"]


def test_a_type_that_was_not_profiled_is_a_warning(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = with_columns(planned, tmp_path, "device,dtype", "cuda,float64")
    used = []

    def end(*arguments: object, **options: object) -> None:
        used.append((options["device"], options["dtype"]))
        ending()

    monkeypatch.setattr(local, "run_plan", end)
    done = run(planned, tmp_path / "out", instance=instance)
    assert "warning: " in done.err
    assert '"cpu" was measured with device cuda, the run has cpu' in done.err
    assert "dtype" not in done.err  # the table's own is the default
    done = run(planned, tmp_path / "out", "--device", "cuda", "--dtype", "bfloat16", instance=instance)
    assert '"cpu" was measured with dtype float64, the run has bfloat16' in done.err
    assert used == [("cpu", "float64"), ("cuda", "bfloat16")]


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("option", ["--data", "--backbone", "-o"])
def test_paths_that_the_system_refuses_are_one_error(planned: Path, tmp_path: Path, option: str) -> None:
    one_clear_error(run(planned, tmp_path / "out", option, "n" * 300), "n" * 300, "File name too long")
    assert not list(tmp_path.iterdir())


def test_usage_errors_exit_2(planned: Path) -> None:
    assert cappuccino("run", planned / "plan.json", "--instance", planned / "instance.json").code == 2


@pytest.mark.slow
def test_the_demo_goes_all_the_way(tmp_path: Path) -> None:
    # As installed, so that what libraries and processes print is seen as well.
    command = [Path(sys.executable).parent / "cappuccino", "demo", "-o", tmp_path / "demo", "--time-limit", "5"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(f"predicted {said['predicted_s']:.2f} s, measured {said['measured_s']:.2f} s")
    assert said["checked"] is True
    assert 0 < said["lower_bound"] <= said["value"]
    assert said["gap"] == pytest.approx(1 - said["lower_bound"] / said["value"])
    assert said["measured_s"] > 0
    assert set(said["adapters"]) == {"docs", "code", "topics"}
    for entry in said["adapters"].values():
        assert entry["last_loss"] < entry["first_loss"]
        assert entry["peft_parameters"] > 0
        assert (Path(entry["path"]) / "adapter_model.safetensors").is_file()
    for name in ("instance", "plan", "cost_table", "trace", "page"):
        assert Path(said[name]).is_file()
    checked = cappuccino("check", said["plan"], "--instance", said["instance"])
    assert checked.code == 0, checked.err
    for part in ("1/4", "2/4", "3/4", "4/4"):
        assert part in done.stderr
