"""Records of replicas that run by themselves: joined, they are what one run of all of them writes."""

import json
from pathlib import Path

import pytest
from helpers.plans import joined, random_plan

from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime.monitoring import records
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent, read_events
from cappuccino.runtime.monitoring.records import (
    EVALUATIONS,
    LOSSES,
    TRACE,
    begin_record,
    drop_records,
    join_records,
    record_folders,
    record_place,
)
from cappuccino.timeline import Timeline, read_trace, write_trace


@pytest.fixture
def plan(instance: Instance) -> Plan:
    """Two replicas, with the adapters `q_proj` and `train`, and `0`."""
    parts = [random_plan(instance.subset(part), 2, seed=1) for part in ([0, 1], [2])]
    return joined(instance.subset([0, 1, 2]), parts)


def event(adapter: str, step: int, time_s: float = 0.0) -> MetricEvent:
    return MetricEvent(
        time_s=time_s, adapter=adapter, step=step, kind="train", loss=1.0, learning_rate=1.0, grad_norm=None, tokens=1
    )


def write_events(file: Path, *events: MetricEvent) -> None:
    file.write_text("".join(e.model_dump_json() + "\n" for e in events))


def finish(out: Path, plan: Plan, replica: int, loss: float) -> None:
    """Write into a record what a replica leaves when it is through."""
    planned = plan.replicas[replica]
    place = record_place(out, replica)
    (place / LOSSES).write_text(json.dumps({name: [loss] for name in planned.adapters}))
    write_events(place / METRICS, *(event(name, step, step) for step in (0, 1) for name in planned.adapters))
    times = tuple([k * 1.0 for k in range(len(program))] for program in planned.programs)
    ends = tuple([k + 0.5 for k in range(len(program))] for program in planned.programs)
    line = Timeline(replica, planned.programs, times, ends, (0.25, 0.5))
    write_trace(place / TRACE, [line], [planned], "measured", plan.instance.sha256)


def test_joined_is_what_replicas_have_recorded_in_the_order_of_the_plan(plan, tmp_path):
    for replica in (1, 0):  # they end in any order
        begin_record(tmp_path, plan, replica, resume=False)
        finish(tmp_path, plan, replica, loss=replica)
        join_records(tmp_path, plan)
    assert list(json.loads((tmp_path / LOSSES).read_text()).items()) == [("q_proj", [0]), ("train", [0]), ("0", [1])]
    assert not (tmp_path / EVALUATIONS).exists()
    lines, kind, sha = read_trace(tmp_path / TRACE)
    assert [line.replica for line in lines] == [0, 1]
    assert [line.programs for line in lines] == [r.programs for r in plan.replicas]
    assert all(line.reference_s == (0.25, 0.5) for line in lines)
    assert (kind, sha) == ("measured", plan.instance.sha256)
    assert [(e.adapter, e.step) for e in read_events(tmp_path / METRICS)] == [
        (name, step) for name in ("q_proj", "train", "0") for step in (0, 1)
    ]
    once = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    join_records(tmp_path, plan)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == once


def test_a_replica_that_goes_on_keeps_its_events_and_a_fresh_one_forgets_them(plan, tmp_path):
    begin_record(tmp_path, plan, 0, resume=False)
    finish(tmp_path, plan, 0, loss=1.0)
    begin_record(tmp_path, plan, 0, resume=True)
    assert len(read_events(record_place(tmp_path, 0) / METRICS)) == 4
    assert (record_place(tmp_path, 0) / LOSSES).is_file()
    begin_record(tmp_path, plan, 0, resume=False)
    assert read_events(record_place(tmp_path, 0) / METRICS) == []
    assert not (record_place(tmp_path, 0) / LOSSES).exists()


def test_another_plan_for_what_is_left_goes_on_from_all_that_was_recorded(plan, tmp_path):
    for replica in (0, 1):
        begin_record(tmp_path, plan, replica, resume=False)
        finish(tmp_path, plan, replica, loss=replica)
    left = (plan.replicas[1].model_copy(update={"id": 0}),)
    other = plan.model_copy(update={"replicas": left, "done": {"q_proj": 2, "train": 2}})
    begin_record(tmp_path, other, 0, resume=True)
    assert {e.adapter for e in read_events(record_place(tmp_path, 0) / METRICS)} == {"0"}
    write_events(record_place(tmp_path, 0) / METRICS, event("0", 0), event("0", 1), event("0", 2))
    join_records(tmp_path, other)
    steps = [e.step for e in read_events(tmp_path / METRICS) if e.adapter == "0"]
    assert steps == [0, 1, 2]
    assert set(json.loads((tmp_path / LOSSES).read_text())) == {"q_proj", "train", "0"}


def test_whoever_joins_last_has_seen_all(plan, tmp_path, monkeypatch):
    begin_record(tmp_path, plan, 0, resume=False)
    finish(tmp_path, plan, 0, loss=0.0)
    begin_record(tmp_path, plan, 1, resume=False)
    write, ended_meanwhile = records.write_atomically, []

    def slow(path: Path, content: str) -> None:
        if path.name == LOSSES and not ended_meanwhile:
            ended_meanwhile.append(True)
            finish(tmp_path, plan, 1, loss=1.0)  # after its files were looked at
        write(path, content)

    monkeypatch.setattr(records, "write_atomically", slow)
    join_records(tmp_path, plan)
    assert set(json.loads((tmp_path / LOSSES).read_text())) == {"q_proj", "train", "0"}
    assert [line.replica for line in read_trace(tmp_path / TRACE)[0]] == [0, 1]


def test_dropped_records_are_gone(plan, tmp_path):
    join_records(tmp_path, plan)  # there is nothing to join, and nothing is written
    assert list(tmp_path.iterdir()) == []
    begin_record(tmp_path, plan, 0, resume=False)
    assert record_folders(tmp_path) == [record_place(tmp_path, 0)]
    drop_records(tmp_path)
    assert record_folders(tmp_path) == []
