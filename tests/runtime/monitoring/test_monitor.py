"""What replicas write, collected into one file of events on one clock."""

import json
import math
from pathlib import Path

import pytest

from cappuccino.errors import InputError
from cappuccino.runtime.monitoring.lines import LineWriter
from cappuccino.runtime.monitoring.metrics import MetricEvent, ReplicaStart
from cappuccino.runtime.monitoring.monitor import RunMonitor


def event(time_s: float, adapter: str, step: int, loss: float | None = 1.5, kind: str = "train") -> MetricEvent:
    return MetricEvent(
        time_s=time_s, adapter=adapter, step=step, kind=kind, loss=loss, learning_rate=1e-3, grad_norm=None, tokens=7
    )


def test_replicas_are_put_on_one_clock(tmp_path: Path) -> None:
    told: list[MetricEvent] = []
    monitor = RunMonitor(tmp_path / "out", told.append)
    first, second = (LineWriter(tmp_path / name) for name in ("first", "second"))
    monitor.follow(tmp_path / "first")
    monitor.follow(tmp_path / "second")
    monitor.collect()
    assert not told
    first.write(ReplicaStart(began_s=100.0))
    first.write(event(103.0, "a", 0))
    first.write(event(105.0, "a", 1, None))
    second.write(ReplicaStart(began_s=101.0))
    second.write(event(104.0, "b", 0))
    monitor.collect()
    second.write(event(109.0, "b", 1))
    monitor.close()
    assert [(e.time_s, e.adapter, e.step) for e in told] == [(3.0, "a", 0), (4.0, "b", 0), (5.0, "a", 1), (9.0, "b", 1)]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [e.model_dump() for e in told]


def test_evaluations_are_known_by_adapter_and_step(tmp_path: Path) -> None:
    monitor = RunMonitor(tmp_path / "out")
    monitor.follow(tmp_path / "first")
    writer = LineWriter(tmp_path / "first")
    for made in (event(1.0, "a", 0), event(2.0, "a", 0, 2.5, "eval"), event(3.0, "a", 1, None, "eval")):
        writer.write(made)
    monitor.close()
    assert monitor.evaluations["a"][0] == 2.5
    assert math.isnan(monitor.evaluations["a"][1])


def test_a_run_that_goes_on_keeps_what_does_not_come_again(tmp_path: Path) -> None:
    monitor = RunMonitor(tmp_path / "out")
    monitor.follow(tmp_path / "first")
    writer = LineWriter(tmp_path / "first")
    for step in range(4):
        writer.write(event(step, "a", step))
        writer.write(event(step + 0.5, "a", step, kind="eval"))
    monitor.close()
    (tmp_path / "out" / "logs" / "replica-0-stage-0.log").write_text("of the first run")
    with (tmp_path / "out" / "metrics.jsonl").open("a") as stream:
        stream.write('{"time_s": 9')  # a line that was cut off
    told: list[MetricEvent] = []
    monitor = RunMonitor(tmp_path / "out", told.append, lambda e: e.step < (2 if e.kind == "train" else 1))
    assert [(e.kind, e.step) for e in told] == [("train", 0), ("eval", 0), ("train", 1)]
    assert monitor.evaluations == {"a": {0: 1.5}}
    assert (tmp_path / "out" / "logs" / "replica-0-stage-0.log").read_text() == "of the first run"
    monitor.follow(tmp_path / "second")
    LineWriter(tmp_path / "second").write(event(0.1, "a", 2))
    monitor.close()
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [e.model_dump() for e in told]
    assert told[-1].step == 2
    RunMonitor(tmp_path / "out").close()
    assert not list((tmp_path / "out" / "logs").iterdir())
    assert not (tmp_path / "out" / "metrics.jsonl").read_text()


def test_an_output_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "out" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot be written \(Is a directory\); free the path"):
        RunMonitor(tmp_path / "out")
