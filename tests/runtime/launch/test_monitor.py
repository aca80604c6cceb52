"""What replicas write, collected into one file of events on one clock."""

import json
import math
from pathlib import Path

import pytest

from cappuccino.errors import InputError
from cappuccino.runtime.launch.lines import LineWriter
from cappuccino.runtime.launch.metrics import MetricEvent, ReplicaStart, first_not_finite
from cappuccino.runtime.launch.monitor import RunMonitor


def event(time_s: float, adapter: str, step: int, loss: float | None = 1.5) -> MetricEvent:
    return MetricEvent(
        time_s=time_s, adapter=adapter, step=step, kind="train", loss=loss, learning_rate=1e-3, grad_norm=None, tokens=7
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
    assert monitor.losses["b"] == [1.5, 1.5]
    assert monitor.losses["a"][0] == 1.5
    assert math.isnan(monitor.losses["a"][1])
    assert [first_not_finite(monitor.losses[name]) for name in "ab"] == [1, None]


def test_an_output_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "out" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"out: cannot be written \(.+\); name another folder"):
        RunMonitor(tmp_path / "out")
