"""Adapters that end early leave the others as if nothing had happened, and are themselves as they were before."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.alone import largest_difference, train_alone
from helpers.builders import changed
from helpers.plans import random_plan
from helpers.runs import Run
from safetensors.torch import load_file

from cappuccino.instance import Instance
from cappuccino.plan import Plan, Recompute
from cappuccino.runtime.launch.keeper import CheckpointOptions
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.launch.run_result import RunResult
from cappuccino.runtime.monitoring.metrics import MetricEvent
from cappuccino.runtime.monitoring.requests import ask_to_stop
from cappuccino.runtime.pipeline.stopping import out_of_patience

KINDS = ("patience", "diverged", "asked", None)
DROPPING = "dropping"
"""Its masks are the runtime's own: it is compared with the run in which nothing happens."""


def drawn(instance: Instance, rng: random.Random) -> tuple[Instance, dict[str, str | None]]:
    """Draw which adapters end early and why; one at least does not."""
    kinds = dict(zip([a.name for a in instance.adapters], rng.sample([*KINDS, rng.choice(KINDS)], 5), strict=True))
    kinds[DROPPING] = rng.choice(["asked", None])
    adapters = []
    for adapter in instance.adapters:
        changes: dict[str, Any] = {}
        if kinds[adapter.name] == "patience":
            patience, threshold = rng.choice([1, 2]), rng.choice([0.0, 0.01, 9.0])
            changes = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
            changes |= {"eval_dataset": "held-out", "eval_every": 1}
        elif kinds[adapter.name] == "diverged":
            changes = {"learning_rate": 1e300, "warmup_steps": rng.choice([0, 1])}
        adapters.append(changed(adapter, **changes))
    return replace(instance, adapters=tuple(adapters)), kinds


def run_with_stops(
    plan: Plan, instance: Instance, backbone: Path, data: Path, out: Path, asked: dict[str, int], **options: Any
) -> RunResult:
    """Run a plan, and ask for the end of adapters as soon as a step of theirs is told."""

    def on_event(event: MetricEvent) -> None:
        if event.kind == "train" and asked.get(event.adapter) == event.step:
            ask_to_stop(out, [event.adapter])

    return run_plan(plan, instance, backbone, data, out, dtype="float64", on_event=on_event, **options)


@pytest.mark.parametrize("float64_run", ["qwen2"], indirect=True)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_stops_change_nothing_for_others(float64_run: Run, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    instance, kinds = drawn(float64_run.instance, rng)
    plan = random_plan(instance, rng.choice([2, 3]), seed)
    if rng.random() < 0.5:
        (replica,) = plan.replicas
        plan = changed(plan, replicas=(changed(replica, recompute=Recompute.FULL),))
    asked = {name: rng.randrange(3) for name, kind in kinds.items() if kind == "asked"}
    out = tmp_path / "out"
    places = float64_run.backbone, float64_run.data
    result = run_with_stops(plan, instance, *places, out, asked)
    assert result.adapters.keys() == kinds.keys()
    for position, (name, kind) in enumerate(kinds.items()):
        stop, losses = result.stopped.get(name), result.losses[name]
        evaluations = result.evaluations.get(name, {})
        weights = load_file(result.adapters[name] / "adapter_model.safetensors")
        if name == DROPPING:
            whole = float64_run.result
            np.testing.assert_allclose(losses, whole.losses[name][: len(losses)], rtol=0, atol=1e-8)
            np.testing.assert_allclose(
                list(evaluations.values()),
                list(whole.evaluations[name].values())[: len(evaluations)],
                rtol=0,
                atol=1e-8,
            )
            if stop is None:
                expected = load_file(whole.adapters[name] / "adapter_model.safetensors")
                assert largest_difference(weights, expected) < 1e-8
            continue
        alone = train_alone(instance, position, *places, torch.float64, until=stop and stop.step)
        if kind == "diverged":  # at weights of 1e300
            assert all(weight.isfinite().all() for weight in weights.values())
        else:
            assert largest_difference(weights, alone.weights) < 1e-8
        np.testing.assert_allclose(losses, alone.losses, rtol=0, atol=1e-8)
        assert list(evaluations) == [step for step in alone.evaluations if stop is None or step < stop.step]
        np.testing.assert_allclose(list(evaluations.values()), list(alone.evaluations.values()), rtol=0, atol=1e-8)
        job = instance.adapters[position]
        if kind == "patience":
            whole_alone = train_alone(instance, position, *places, torch.float64)
            held_out = list(whole_alone.evaluations.values())
            rule = job.early_stopping_patience or 0, job.early_stopping_threshold
            end = next((k for k in range(5) if out_of_patience(held_out[:k], *rule)), None)
            assert (stop and stop.step) == end
        elif kind == "diverged":
            assert stop is not None
            assert 1 <= stop.step <= 3
            assert all(np.isfinite(losses))
        elif kind == "asked":
            assert stop is None or stop.step > asked[name]
        else:
            assert stop is None
        assert stop is None or stop.reason == kind
    check_what_is_written(out, result)


def check_what_is_written(out: Path, result: RunResult) -> None:
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    told = {e["adapter"]: (e["step"], e["reason"]) for e in events if e["kind"] == "stop"}
    assert told == {name: (stop.step, stop.reason) for name, stop in result.stopped.items()}
    for name, losses in result.losses.items():
        assert [e["loss"] for e in events if (e["adapter"], e["kind"]) == (name, "train")] == losses
    assert json.loads((out / "losses.json").read_text()) == result.losses
    assert not (out / "stop").exists()
    assert not (out / "run.json").exists()
    (line,) = result.timelines
    skipped = {tuple(op) for op in line.programs[0] if op[0] == "S"}
    for name, stop in result.stopped.items():
        position = list(result.losses).index(name)
        assert [j for kind, a, *j in sorted(skipped) if (kind, a) == ("S", position)] == [[j] for j in range(stop.step)]


def test_a_stopped_adapter_is_not_trained_on_when_the_run_goes_on(
    instance: Instance, qwen2: Path, data: Path, tmp_path: Path
) -> None:
    first_job, *others = instance.adapters
    long = replace(instance, adapters=(changed(first_job, num_steps=60), *others[:2]))  # time to ask for its end
    plan, out = random_plan(long, 2, seed=5), tmp_path / "out"
    options: dict[str, Any] = {"checkpoints": CheckpointOptions(every=1)}
    first = run_with_stops(plan, long, qwen2, data, out, {"q_proj": 0}, **options)
    stop = first.stopped["q_proj"]
    assert 0 < stop.step < 60
    before = (out / "metrics.jsonl").read_text()
    told: list[MetricEvent] = []
    again = run_plan(plan, long, qwen2, data, out, dtype="float64", resume=True, on_event=told.append, **options)
    assert again.stopped == first.stopped
    assert again.losses == first.losses
    assert again.timelines == []
    assert (out / "metrics.jsonl").read_text() == before
    assert [event.step for event in told if event.kind == "stop"] == [stop.step]
