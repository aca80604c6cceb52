"""The benchmark of predictions writes workloads that its run can use."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.small import VOCABULARY, save_llama

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "predictions.py"


def test_a_workload_has_its_lengths_and_tokens_of_the_backbone(tmp_path):
    spec = importlib.util.spec_from_file_location("predictions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backbone = save_llama(tmp_path / "backbone")
    instance = module.write_workload("small", tmp_path, backbone, tmp_path / "table.csv", 2, 0.1)
    assert len(instance.adapters) == len(module.WORKLOADS["small"])
    for name, lengths in instance.dataset_lengths.items():
        rows = [
            json.loads(line)["input_ids"] for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()
        ]
        assert [len(row) for row in rows] == lengths.tolist()
        assert all(0 <= token < VOCABULARY for row in rows for token in row)
