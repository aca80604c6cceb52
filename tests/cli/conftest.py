"""A small planning problem in files, and a way to call the command line as a user does."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cappuccino.cli import main

TABLE_HEADER = "param_name,pp_size,micro_bsz,grad_acc_steps,seqlen,rank,peak_memory_mb,time_per_step_s,status"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def cappuccino(*arguments: object) -> Outcome:
    """Call the command line inside this process: importing the solvers again for every call takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["cappuccino", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return Outcome(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = before


def one_clear_error(outcome: Outcome, *words: str) -> None:
    """The contract of every error: exit code 1, one line that says what is wrong, no traceback."""
    assert outcome.code == 1, outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in errors[0], errors[0]


def table_rows(backbone: str, stages: tuple[int, ...]) -> list[str]:
    """1 ms per token and micro-batch on all stages together, at least 100 ms; 2 GiB of weights, 1 MiB per token."""
    rows = []
    for g in stages:
        for tokens in (64, 128, 256, 512, 1024):
            slot = max(0.1, tokens * 1e-3) / g
            memory = 2048 / g + tokens
            rows.append(f"{backbone},{g},1,4,{tokens},16,{memory},{slot * (4 + g - 1)},OK")
    return rows


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "table.csv").write_text("\n".join([TABLE_HEADER, *table_rows("toy", (1, 2))]) + "\n")
    instance = {
        "format": "cappuccino.instance/1",
        "name": "toy",
        "backbone": "toy",
        "cost_table": "table.csv",
        "gpu_pools": [{"gpu": "toy-gpu", "count": 4, "memory_gib": 4.0}],
        "max_sequence_length": 512,
        "datasets": {"short": {"lengths": [50, 60, 70, 80]}, "long": {"lengths": [400, 300, 200]}},
        "adapters": [
            {"name": "a", "dataset": "short", "global_batch_size": 4, "num_steps": 3},
            {"name": "b", "dataset": "long", "global_batch_size": 2, "num_steps": 2, "max_grad_norm": 1.0},
        ],
    }
    write_instance(tmp_path, instance)
    return tmp_path


def write_instance(folder: Path, instance: dict[str, Any]) -> Path:
    path = folder / "instance.json"
    path.write_text(json.dumps(instance))
    return path


def read_instance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "instance.json").read_text())


TINY_LENGTHS = {"news": [3, 9, 14, 24, 7, 11], "code": [20, 5, 16, 8]}
TINY_JOBS: list[dict[str, Any]] = [
    {"name": "a", "dataset": "news", "global_batch_size": 3, "num_steps": 2, "rank": 2, "alpha": 4},
    {"name": "b", "dataset": "code", "global_batch_size": 2, "num_steps": 3, "max_grad_norm": 1.0},
]


def write_tiny(folder: Path, jobs: list[dict[str, Any]] = TINY_JOBS, **changes: object) -> Path:
    """Write an instance of jobs on a tiny backbone, with its cost table."""
    (folder / "table.csv").write_text("\n".join([TABLE_HEADER, *table_rows("tiny", (1, 2))]) + "\n")
    document = {
        "format": "cappuccino.instance/1",
        "name": "tiny",
        "backbone": "tiny",
        "cost_table": "table.csv",
        "gpu_pools": [{"gpu": "cpu", "count": 2, "memory_gib": 4.0}],
        "max_sequence_length": 24,
        "datasets": {name: {"lengths": lengths} for name, lengths in TINY_LENGTHS.items()},
        "adapters": jobs,
    }
    return write_instance(folder, document | changes)


def plan_tiny(folder: Path, jobs: list[dict[str, Any]] = TINY_JOBS) -> Path:
    """Write a backbone, data, cost table, instance and a plan of one replica with two stages; return the folder."""
    from helpers.small import save_llama, write_data

    save_llama(folder / "backbone", layers=2)
    write_data(folder / "data", TINY_LENGTHS)
    options = ("-o", folder / "plan.json", "--num-stages", 2, "--time-limit", 1)
    done = cappuccino("plan", write_tiny(folder, jobs), *options)
    assert done.code == 0, done.err
    return folder


def run_tiny(folder: Path, out: Path, *arguments: object, **changes: Path) -> Outcome:
    """Call `run` on the folder of `plan_tiny`; `changes` replace its files by name."""
    names = {"plan": "plan.json", "instance": "instance.json", "backbone": "backbone", "data": "data"}
    paths = {key: changes.get(key, folder / name) for key, name in names.items()}
    options = ("--instance", paths["instance"], "--backbone", paths["backbone"], "--data", paths["data"], "-o", out)
    return cappuccino("run", paths["plan"], *options, *arguments)
