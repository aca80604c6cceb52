"""A run must give what every adapter gives when it is trained alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.alone import largest_difference, train_alone
from helpers.plans import joined, random_plan
from helpers.runs import DROPOUT_ADAPTER, Run
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_scheduler

from cappuccino.plan import Recompute
from cappuccino.runtime.launch.local import run_plan
from cappuccino.timeline import read_trace

NAMES = ["q_proj", "train", "0", "last-layer"]

one_architecture = pytest.mark.parametrize("float64_run", ["qwen2"], indirect=True)
"""For what does not depend on the backbone."""


def exported(run: Run, name: str) -> dict[str, torch.Tensor]:
    return load_file(run.result.adapters[name] / "adapter_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_float64_equals_training_alone(float64_run: Run, name: str) -> None:
    position = float64_run.instance.adapter_index(name)
    expected = train_alone(float64_run.instance, position, float64_run.backbone, float64_run.data, torch.float64)
    difference = largest_difference(exported(float64_run, name), expected.weights)
    print(f"{name}: weights differ by {difference:.2e}")
    assert difference < 1e-8
    assert all(weight.any() for key, weight in expected.weights.items() if "lora_B" in key)  # zero before training
    np.testing.assert_allclose(float64_run.result.losses[name], expected.losses, rtol=0, atol=1e-8)
    found = float64_run.result.evaluations.get(name, {})
    assert list(found) == list(expected.evaluations)
    np.testing.assert_allclose(list(found.values()), list(expected.evaluations.values()), rtol=0, atol=1e-8)
    events = [event for event in written_events(float64_run) if event["adapter"] == name]
    assert {e["step"]: e["loss"] for e in events if e["kind"] == "eval"} == found
    trained = [event for event in events if event["kind"] == "train"]
    assert [event["loss"] for event in trained] == float64_run.result.losses[name]
    norms = [event["grad_norm"] for event in trained]
    if None in norms:  # known where clipping needs it
        assert norms == expected.norms
    else:
        np.testing.assert_allclose(norms, expected.norms, rtol=1e-8)


def test_evaluations_are_where_the_jobs_ask_for_them(float64_run: Run) -> None:
    evaluations = float64_run.result.evaluations
    found = {name: list(losses) for name, losses in evaluations.items()}
    assert found == {"q_proj": [1, 3, 4], "train": [4], "dropping": [0, 1, 2, 3, 4]}
    written = json.loads((float64_run.out / "evaluations.json").read_text())
    as_written = {name: [{"steps": s + 1, "loss": loss} for s, loss in x.items()] for name, x in evaluations.items()}
    assert written == as_written


@one_architecture
def test_the_best_weights_are_kept_by_choice(float64_run: Run, tmp_path: Path) -> None:
    arguments = float64_run.plan, float64_run.instance, float64_run.backbone, float64_run.data
    result = run_plan(*arguments, tmp_path / "out", dtype="float64", keep="best")
    for name, losses in result.evaluations.items():
        assert result.kept[name] == min(losses, key=losses.get)
    assert result.kept["0"] is None
    position = float64_run.instance.adapter_index("q_proj")
    expected = train_alone(float64_run.instance, position, float64_run.backbone, float64_run.data, torch.float64)
    weights = load_file(result.adapters["q_proj"] / "adapter_model.safetensors")
    assert largest_difference(weights, expected.after[result.kept["q_proj"]]) < 1e-8
    last = load_file(result.adapters["0"] / "adapter_model.safetensors")
    assert largest_difference(last, exported(float64_run, "0")) == 0


@one_architecture
def test_events_tell_of_every_step_in_time(float64_run: Run) -> None:
    events = [event for event in written_events(float64_run) if event["kind"] == "train"]
    assert [event["time_s"] for event in events] == sorted(event["time_s"] for event in events)
    (line,) = float64_run.result.timelines
    for event in events:
        stage = len(line.programs) - 1
        made = line.programs[stage].index(
            ("S", float64_run.plan.replicas[0].adapters.index(event["adapter"]), event["step"])
        )
        assert event["time_s"] > line.ends[stage][made] - line.starts[stage][0]  # the first operation is before that
    for position, job in enumerate(float64_run.instance.adapters):
        own = [event for event in events if event["adapter"] == job.name]
        assert [event["step"] for event in own] == list(range(5))
        lengths = np.resize(float64_run.instance.dataset_lengths[job.dataset], 5 * job.global_batch_size)
        trained = np.minimum(lengths, float64_run.instance.max_sequence_length).reshape(5, -1).sum(axis=1).cumsum()
        assert [event["tokens"] for event in own] == trained.tolist()
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=job.learning_rate)
        kind = {"constant": "constant_with_warmup"}.get(job.lr_scheduler, job.lr_scheduler)
        schedule = get_scheduler(kind, optimizer, job.warmup_steps, float64_run.instance.num_steps(position))
        for event in own:
            assert event["learning_rate"] == schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()


def written_events(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_float32_equals_training_alone_up_to_peft_own_noise(float32_run: Run, name: str) -> None:
    position = float32_run.instance.adapter_index(name)
    arguments = (float32_run.instance, position, float32_run.backbone, float32_run.data, torch.float32)
    expected, other = (train_alone(*arguments, attention=attention) for attention in ("sdpa", "eager"))
    noise = largest_difference(expected.weights, other.weights)
    difference = largest_difference(exported(float32_run, name), expected.weights)
    print(f"{name}: weights differ by {difference:.2e}, PEFT from itself by {noise:.2e}")
    assert difference <= 10 * noise
    np.testing.assert_allclose(float32_run.result.losses[name], expected.losses, rtol=0, atol=1e-5)


def test_peft_loads_what_was_exported(float64_run: Run) -> None:
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(float64_run.backbone, dtype=torch.float64)
        loaded = PeftModel.from_pretrained(model, float64_run.result.adapters[name])
        weights = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        assert largest_difference(weights, exported(float64_run, name)) == 0
        job = float64_run.instance.adapters[float64_run.instance.adapter_index(name)]
        config = loaded.peft_config["default"]
        assert (config.r, config.lora_alpha, config.lora_dropout) == (job.rank, job.alpha, job.dropout)


@pytest.mark.slow
@one_architecture
def test_dropout_depends_neither_on_packing_nor_on_stages(float64_run: Run, tmp_path: Path) -> None:
    # Here the adapter has a replica of its own with one stage, there it shared three stages with four others.
    name = float64_run.instance.adapters[DROPOUT_ADAPTER].name
    short = float64_run.instance.adapters[0].model_copy(update={"num_steps": 1})
    small = replace(float64_run.instance, adapters=(float64_run.instance.adapters[DROPOUT_ADAPTER], short))
    plan = joined(small, [random_plan(small.subset([i]), 1, seed=5 + i) for i in range(2)])
    result = run_plan(plan, small, float64_run.backbone, float64_run.data, tmp_path / "out", dtype="float64")
    weights = load_file(result.adapters[name] / "adapter_model.safetensors")
    assert largest_difference(weights, exported(float64_run, name)) < 1e-8
    np.testing.assert_allclose(result.losses[name], float64_run.result.losses[name], rtol=0, atol=1e-8)
    assert [line.replica for line in result.timelines] == [0, 1]


@one_architecture
def test_recomputation_changes_nothing_but_memory(float64_run: Run, tmp_path: Path) -> None:
    # dropout included: the masks of the second forward are those of the first
    (replica,) = float64_run.plan.replicas
    plan = float64_run.plan.model_copy(update={"replicas": (replica.model_copy(update={"recompute": Recompute.FULL}),)})
    result = run_plan(
        plan, float64_run.instance, float64_run.backbone, float64_run.data, tmp_path / "out", dtype="float64"
    )
    for name, path in result.adapters.items():
        weights = load_file(path / "adapter_model.safetensors")
        assert largest_difference(weights, exported(float64_run, name)) < 1e-12
        np.testing.assert_allclose(result.losses[name], float64_run.result.losses[name], rtol=0, atol=1e-12)


@one_architecture
def test_dropout_changes_the_result(float64_run: Run) -> None:
    expected = train_alone(float64_run.instance, DROPOUT_ADAPTER, float64_run.backbone, float64_run.data, torch.float64)
    assert largest_difference(exported(float64_run, "dropping"), expected.weights) > 1e-5


@one_architecture
def test_operations_are_measured_in_the_order_of_the_plan(float64_run: Run) -> None:
    (line,) = float64_run.result.timelines
    assert line.programs == float64_run.plan.replicas[0].programs
    assert min(float(starts[0]) for starts in line.starts) == 0
    finished = {}
    for stage, program in enumerate(line.programs):
        assert (line.ends[stage] >= line.starts[stage]).all()
        assert (line.starts[stage][1:] >= line.ends[stage][:-1]).all()
        finished |= {(op, stage): end for op, end in zip(program, line.ends[stage], strict=True)}
    for stage, program in enumerate(line.programs):
        for operation, start in zip(program, line.starts[stage], strict=True):
            source = {"F": stage - 1, "E": stage - 1, "B": stage + 1}.get(operation[0])
            if (operation, source) in finished:
                assert start >= finished[operation, source]


@one_architecture
def test_outputs_are_complete(float64_run: Run) -> None:
    names = [a.name for a in float64_run.instance.adapters]
    assert sorted(p.name for p in float64_run.out.iterdir()) == sorted(
        [*names, "evaluations.json", "logs", "losses.json", "metrics.jsonl", "trace.json"]
    )
    assert [p.name for p in float64_run.out.parent.iterdir()] == ["out"]
    assert json.loads((float64_run.out / "losses.json").read_text()) == float64_run.result.losses
    assert all(len(losses) == 5 for losses in float64_run.result.losses.values())
    lines, kind, digest = read_trace(float64_run.result.trace)
    assert (len(lines), kind, digest) == (1, "measured", float64_run.instance.digest)
    assert len(lines[0].reference_s) == 3 and min(lines[0].reference_s) > 0
    operations = [len(program) for program in float64_run.plan.replicas[0].programs]
    assert float64_run.progress[-1] == (sum(operations), sum(operations))
    assert [len(memory) for memory in float64_run.result.memory_gib[0]] == operations
    assert len(float64_run.result.peak_memory_gib(0)) == 3
