"""run and stop: adapters that end early, alone, while the run goes on."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli.conftest import cappuccino, one_clear_error, plan_tiny, read_instance, run_tiny, write_instance

pytest.importorskip("torch")
pytest.importorskip("peft")

import numpy as np
import torch
from helpers.alone import train_alone
from safetensors.torch import load_file

from cappuccino.instance import Instance


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plan_tiny(tmp_path_factory.mktemp("planned"))


def test_an_adapter_that_diverges_is_said_and_harms_no_other(planned: Path, tmp_path: Path) -> None:
    wild = {"name": "wild", "dataset": "news", "global_batch_size": 2, "num_steps": 3, "learning_rate": 1e300}
    document = read_instance(planned) | {"cost_table": str(planned / "table.csv")}
    document["adapters"].append(wild)
    file = write_instance(tmp_path, document)
    options = ("--num-stages", 2, "--time-limit", 1)
    assert cappuccino("plan", file, "-o", tmp_path / "plan.json", *options).code == 0
    out = tmp_path / "out"
    more = ("--dtype", "float64", "--report-to", "none")
    done = run_tiny(planned, out, *more, plan=tmp_path / "plan.json", instance=file)
    assert done.code == 3, done.err
    losses = json.loads((out / "losses.json").read_text())
    step = len(losses["wild"])
    assert 0 < step < 3
    assert None not in losses["wild"]
    warnings = [line for line in done.err.splitlines() if "diverged" in line]
    assert len(warnings) == 1
    said = f'warning: adapter "wild" diverged: its loss or its gradients are not finite at step {step}; it is kept'
    assert warnings[0].startswith(said)
    assert f"wild: DIVERGED at step {step}, loss" in done.out
    assert "makespan: measured " in done.out
    card = (out / "wild" / "README.md").read_text()
    assert f"**Diverged:** its loss or its gradients were not finite, at step {step} (counted from 0)" in card
    loaded = Instance.load(file)
    places = planned / "backbone", planned / "data"
    alone = train_alone(loaded, loaded.adapter_index("wild"), *places, torch.float64, until=step)
    np.testing.assert_allclose(losses["wild"], alone.losses, rtol=0, atol=1e-8)
    kept = load_file(out / "wild" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in kept.values())
    for name in ("a", "b"):
        alone = train_alone(loaded, loaded.adapter_index(name), *places, torch.float64)
        np.testing.assert_allclose(losses[name], alone.losses, rtol=0, atol=1e-8)
        assert "Diverged" not in (out / name / "README.md").read_text()
    assert not (out / "tensorboard").exists()


def test_an_adapter_is_stopped_while_the_run_goes_on(planned: Path, tmp_path: Path) -> None:
    document = read_instance(planned) | {"cost_table": str(planned / "table.csv")}
    document["adapters"][0]["num_steps"] = 600
    file = write_instance(tmp_path, document)
    options = ("--num-stages", 2, "--time-limit", 1)
    assert cappuccino("plan", file, "-o", tmp_path / "plan.json", *options).code == 0
    out = tmp_path / "out"
    asked: list[subprocess.CompletedProcess[str]] = []

    def ask() -> None:
        while not (out / "metrics.jsonl").exists() or '"adapter":"a"' not in (out / "metrics.jsonl").read_text():
            time.sleep(0.02)
        command = [Path(sys.executable).parent / "cappuccino", "stop", out]
        asked.extend(subprocess.run([*command, n], capture_output=True, text=True, check=False) for n in ("x", "a"))

    asking = threading.Thread(target=ask)
    asking.start()
    done = run_tiny(planned, out, plan=tmp_path / "plan.json", instance=file)
    asking.join()
    assert done.code == 0, done.err
    unknown, known = asked
    assert unknown.returncode == 1
    assert 'the run in it does not train "x"; name one of a, b' in unknown.stderr
    assert (known.returncode, known.stdout) == (0, f"asked: a in {out}, to end before the next optimizer step\n")
    losses = json.loads((out / "losses.json").read_text())
    step = len(losses["a"])
    assert 0 < step < 600
    assert len(losses["b"]) == 3
    assert f'adapter "a" stops early, as asked at step {step}; it is kept as it was before' in done.err
    assert f"a: stopped (asked) at step {step}, loss" in done.out
    assert "makespan: measured" in done.out
    assert "of what was left of the plan" in done.out
    compared = cappuccino("simulate", tmp_path / "plan.json", "--instance", file, "--against", out / "trace.json")
    one_clear_error(compared, "trace.json", "ran a part of the plan's programs", "the trace of a whole run")
    late = cappuccino("stop", out, "a", "--json")
    one_clear_error(late, str(out), "no run goes on in it")
