"""A plan of two replicas with two stages each, what is needed to run it, and the run that all others are held to."""

import json
from pathlib import Path

import pytest
from cli.conftest import TINY_LENGTHS, cappuccino, run_tiny, write_tiny
from helpers.plans import joined

from cappuccino.instance import Instance
from cappuccino.plan import Plan

JOBS = [
    {"name": "a", "dataset": "news", "global_batch_size": 3, "num_steps": 3, "rank": 2, "alpha": 4, "dropout": 0.2},
    {"name": "b", "dataset": "code", "global_batch_size": 2, "num_steps": 4, "eval_dataset": "news"},
]


@pytest.fixture(scope="session")
def two_replicas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone, data, instance, and a plan whose replicas have one adapter each."""
    pytest.importorskip("torch")
    from helpers.small import save_llama, write_data

    folder = tmp_path_factory.mktemp("two replicas")
    save_llama(folder / "backbone", layers=2)
    write_data(folder / "data", TINY_LENGTHS)
    pools = [{"gpu": "cpu", "count": 4, "memory_gib": 4.0}]
    parts = []
    for job in JOBS:
        part = folder / job["name"]
        part.mkdir()
        options = ("-o", part / "plan.json", "--num-stages", 2, "--time-limit", 1)
        done = cappuccino("plan", write_tiny(part, [job], gpu_pools=pools), *options)
        assert done.code == 0, done.err
        parts.append(Plan.load(part / "plan.json"))
    instance = Instance.load(write_tiny(folder, JOBS, gpu_pools=pools))
    plan = joined(instance, parts)
    replicas = tuple(r.model_copy(update={"savings": None}) for r in plan.replicas)
    times = {
        "gpu_time_s": sum(part.gpu_time_s for part in parts),
        "makespan_s": max(part.makespan_s for part in parts),
        "replicas": replicas,
    }
    plan.model_copy(update=times).save(folder / "plan.json")
    done = cappuccino("check", folder / "plan.json", "--instance", folder / "instance.json")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def whole_run(two_replicas: Path) -> Path:
    """Folder of `cappuccino run` of the plan."""
    done = run_tiny(two_replicas, two_replicas / "whole", "--dtype", "float64")
    assert done.code == 0, done.err
    return two_replicas / "whole"


def script_for(folder: Path, scheduler: str, script: Path, results: Path, *options: object) -> str:
    """Have `launch-script` write a script for the plan of `two_replicas`, and return it."""
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    named = ("--results", results, "--scheduler", scheduler, "-o", script, "--dtype", "float64")
    done = cappuccino("launch-script", folder / "plan.json", *files, *named, *options)
    assert done.code == 0, done.err
    return script.read_text()


def require_same_results(whole: Path, out: Path) -> None:
    """A folder holds what the whole run left in another one: adapters, losses, events, and an operation each time."""
    from helpers.alone import largest_difference
    from safetensors.torch import load_file

    for name in ("a", "b"):
        weights, own = (load_file(f / name / "adapter_model.safetensors") for f in (whole, out))
        assert largest_difference(weights, own) < 1e-12
        assert (out / name / "README.md").is_file()
    for file in ("losses.json", "evaluations.json"):
        expected, own = (json.loads((f / file).read_text()) for f in (whole, out))
        assert list(own) == list(expected)
        assert _close(own, expected), (own, expected)
    events = [
        sorted((e["adapter"], e["kind"], e["step"], e["tokens"]) for e in map(json.loads, (f / "metrics.jsonl").open()))
        for f in (whole, out)
    ]
    assert events[0] == events[1]


def _close(own: object, expected: object) -> bool:
    if isinstance(expected, dict):
        return isinstance(own, dict) and all(_close(own[k], v) for k, v in expected.items())
    if isinstance(expected, list):
        return len(own) == len(expected) and all(_close(a, b) for a, b in zip(own, expected, strict=True))
    return own == pytest.approx(expected, abs=1e-12)
