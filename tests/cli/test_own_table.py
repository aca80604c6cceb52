"""The way of a user with a backbone of his own: profile, a sweep of unlike jobs, plan, check, run, look, compare."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli.conftest import cappuccino, write_instance

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.small import save_llama, save_tokenizer
from safetensors.numpy import load_file

from cappuccino.plan import Plan

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
JOBS: list[dict[str, Any]] = [
    {
        "dataset": "short",
        "rank": 2,
        "target_modules": ["q_proj"],
        "global_batch_size": 4,
        "num_steps": 3,
        "dropout": 0.05,
        "eval_dataset": "short",
        "eval_every": 2,
    },
    {
        "dataset": "short",
        "rank": 32,
        "target_modules": "all-linear",
        "global_batch_size": 4,
        "num_steps": 3,
        "eval_dataset": "short",
    },
    {"dataset": "short", "rank": 8, "target_modules": ATTENTION, "global_batch_size": 4, "num_steps": 3},
    {"dataset": "short", "rank": 8, "target_modules": ["q_proj", "v_proj"], "global_batch_size": 2, "num_steps": 4},
    {"dataset": "long", "rank": 16, "target_modules": ATTENTION, "max_grad_norm": 1.0},
    {"dataset": "long", "rank": 64, "target_modules": ATTENTION, "dropout": 0.05},
    {"dataset": "long", "rank": 16, "target_modules": ["down_proj"], "num_steps": 1},
    {"dataset": "org/mixed", "rank": 4, "target_modules": "all-linear", "num_steps": 2, "global_batch_size": 1},
]


def done(*arguments: object) -> Any:
    outcome = cappuccino(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome.json


def shrink_memory(path: Path, most_tokens: int) -> float:
    """Give a table the peaks of a machine that keeps so many tokens, and five times as many recomputed; return GiB.

    Recomputation takes ten times as long in it, whatever a noisy machine measured: nobody does who need not.
    """
    table = pd.read_csv(path)
    recomputed = table["recompute"] == "full"
    table["peak_memory_mb"] = 1024 * (0.3 + np.where(recomputed, 0.002, 0.01) * table["micro_bsz"] * table["seqlen"])
    times = [name for name in table.columns if name.endswith(("time_s", "time_per_step_s"))]
    table.loc[recomputed, times] *= 10
    table.to_csv(path, index=False)
    return (0.3 + 0.01 * (most_tokens + 1)) / 0.95


def walk(folder: Path, backbone: Path, grid: tuple[object, ...], longest: int) -> None:
    """Go from raw text to trained adapters on two replicas, and look at what came out."""
    options = ("--recompute", "both", "--time-budget", "none")
    done("profile", "--backbone", backbone, "-o", folder / "table.csv", "--name", "mine", *options, *grid)
    memory_gib = shrink_memory(folder / "table.csv", most_tokens=int(0.75 * longest))
    raw = {
        "short": [3, 9, 5, 7, 2, 8, 11, 4],
        "long": [int(0.7 * longest), 30, 25, 24, 31, 9],
        "org/mixed": [3, longest, 12],
    }
    for number, lengths in enumerate(raw.values()):
        rows = "".join(json.dumps({"text": "ab" * (n // 2)}) + "\n" for n in lengths)
        (folder / f"raw-{number}.jsonl").write_text(rows)
    sources = [f"{name}={folder}/raw-{number}.jsonl" for number, name in enumerate(raw)]
    options = ("-o", folder / "lengths.json", "--data-out", folder / "data", "--max-length", longest)
    done("lengths", "--tokenizer", backbone, *options, *sources)
    adapters = [{"name": f"job-{i}", "global_batch_size": 3, "num_steps": 2, **job} for i, job in enumerate(JOBS)]
    write_instance(
        folder,
        {
            "format": "cappuccino.instance/1",
            "name": "sweep",
            "backbone": "mine",
            "cost_table": "table.csv",
            "gpu_pools": [{"gpu": "cpu", "count": 2, "memory_gib": memory_gib}],
            "max_sequence_length": longest,
            "datasets": {name: {"file": "lengths.json", "key": name} for name in raw},
            "adapters": adapters,
        },
    )
    instance = ("--instance", folder / "instance.json")
    two = ("--objective", "makespan", "--num-stages", 1)
    planned = done("plan", folder / "instance.json", "-o", folder / "plan.json", "--time-limit", 4, *two)
    assert planned["checked"]
    assert planned["lower_bound"] <= planned["value"] * (1 + 1e-9)
    assert len(planned["replicas"]) == 2
    chosen = {r["recompute"] for r in Plan.load(folder / "plan.json").dump()["replicas"]}
    assert chosen == {"none", "full"}  # the longest samples fit with recomputation only, and it costs time
    assert done("check", folder / "plan.json", *instance)["checked"]
    run = done(
        "run", folder / "plan.json", *instance, "--backbone", backbone, "--data", folder / "data", "-o", folder / "out"
    )
    assert [r["id"] for r in run["replicas"]] == [0, 1]
    for name, job in zip(run["adapters"], [JOBS[int(n.split("-")[1])] for n in run["adapters"]], strict=True):
        weights = load_file(Path(run["adapters"][name]["path"]) / "adapter_model.safetensors")
        down = {key: w for key, w in weights.items() if "lora_A" in key}
        assert all(w.shape[0] == job["rank"] for w in down.values())
        modules = {key.split(".")[-3] for key in down}
        wanted = job["target_modules"]
        assert modules == (
            set(wanted) if isinstance(wanted, list) else {*ATTENTION, "gate_proj", "up_proj", "down_proj"}
        )
        assert all(w.any() for key, w in weights.items() if "lora_B" in key)
    assert len(run["adapters"]) == len(JOBS)
    evaluated = {name: [e["steps"] for e in found["evaluations"]] for name, found in run["adapters"].items()}
    assert {name: steps for name, steps in evaluated.items() if steps} == {"job-0": [2, 3], "job-1": [3]}

    looked = done("simulate", folder / "plan.json", *instance, "--against", run["trace"])
    assert looked["checked"]
    better = folder / "better.csv"
    factors = done("calibrate", folder / "plan.json", *instance, "--trace", run["trace"], "-o", better)["gpus"]
    assert set(factors) == {"cpu, recompute none", "cpu, recompute full"}
    assert set(pd.read_csv(better)["source"]) == {"calibrated"}
    compared = done("compare", folder / "instance.json", "--plan", folder / "plan.json")
    assert all(row["checked"] or row["reason"] for row in compared["rows"])


def test_from_a_small_backbone_to_adapters(tmp_path: Path) -> None:
    backbone = save_tokenizer(save_llama(tmp_path / "backbone", layers=3))
    grid = ("--num-stages", "1,2", "--tokens", "32,64,192", "--sequence-lengths", "8,32", "--num-adapters", "2",
            "--repeats", 1)  # fmt: skip
    walk(tmp_path, backbone, grid, longest=60)


@pytest.mark.slow
def test_from_the_tiny_backbone_to_adapters(tmp_path: Path) -> None:
    from cappuccino.runtime.backbone.tiny import build_tiny_backbone

    build_tiny_backbone(tmp_path / "backbone")
    walk(tmp_path, tmp_path / "backbone", (), longest=500)
