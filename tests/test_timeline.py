import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.plans import random_plan

from cappuccino.errors import InputError
from cappuccino.plan import Replica
from cappuccino.simulator import simulate
from cappuccino.timeline import Timeline, read_trace, write_trace

INSTANCE = make_instance(([3, 5, 2, 7], 2), ([1, 4, 6], 1, 3))


def timelines(optimizer_s: float) -> list[Timeline]:
    costs = {"x": make_costs(optimizer_s=optimizer_s, transfer=(0.3, 0.1))}
    return [simulate(random_plan(INSTANCE, 3, seed), INSTANCE, costs).replicas[0].timeline for seed in (1, 2)]


def replicas(*numbers: int) -> list[Replica]:
    """The replicas of the timelines, under these numbers."""
    return [random_plan(INSTANCE, 3, i + 1).replicas[0].model_copy(update={"id": n}) for i, n in enumerate(numbers)]


@pytest.mark.parametrize("optimizer_s", [0.5, 0.0])  # operations of no length start together with the next one
def test_round_trip(tmp_path, optimizer_s):
    first, second = timelines(optimizer_s)
    second = Timeline(1, second.programs, second.starts, second.ends, (0.01, 0.02, 0.015))
    path = tmp_path / "t.json"
    write_trace(path, [first, second], replicas(0, 1), "simulated", "ab12")
    found, kind, digest = read_trace(path)
    assert (kind, digest) == ("simulated", "ab12")
    assert [x.replica for x in found] == [0, 1]
    for old, new in zip((first, second), found, strict=True):
        assert new.programs == old.programs
        assert new.reference_s == old.reference_s
        for s in range(3):
            np.testing.assert_allclose(new.starts[s], old.starts[s], atol=1e-9)
            np.testing.assert_allclose(new.ends[s], old.ends[s], atol=1e-9)
        assert new.makespan == pytest.approx(old.makespan)


def test_figures_of_a_hand_made_timeline():
    # stage 0 works 0-2 and 4-8, stage 1 works 2-4: 8 of 16 seconds
    line = Timeline(
        0,
        ((("F", 0), ("B", 0)), (("F", 0),)),
        (np.array([0.0, 4.0]), np.array([2.0])),
        (np.array([2.0, 8.0]), np.array([4.0])),
    )
    assert line.makespan == 8
    assert line.busy.tolist() == [6, 2]
    assert line.bubble == 0.5


def test_an_empty_timeline_has_no_bubble():
    assert Timeline(0, ((),), (np.zeros(0),), (np.zeros(0),)).makespan == 0
    assert Timeline(0, ((),), (np.zeros(0),), (np.zeros(0),)).bubble == 0


def test_perfetto_finds_names_and_microseconds(tmp_path):
    line = Timeline(2, ((("F", 0), ("S", 1, 3)),), (np.array([0.0, 1.5]),), (np.array([1.5, 1.75]),))
    write_trace(tmp_path / "t.json", [line], replicas(2), "measured", "x")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    step = next(e for e in events if e["name"] == "step 3: a1")
    assert any(e["name"].startswith("forward 0: a") for e in events)
    assert (step["ph"], step["pid"], step["tid"], step["ts"], step["dur"]) == ("X", 2, 0, 1.5e6, 0.25e6)
    assert {e["name"] for e in events if e["ph"] == "M"} == {"process_name", "thread_name"}


def good(tmp_path):
    path = tmp_path / "t.json"
    first, second = timelines(0.5)
    write_trace(path, [first, replace(second, replica=1)], replicas(0, 1), "simulated", "x")
    return path, json.loads(path.read_text())


def test_traces_of_others_are_refused(tmp_path):
    path, data = good(tmp_path)
    for change, message in (
        ({"otherData": {}}, r"t\.json: otherData\.format: is missing"),
        ({"otherData": {**data["otherData"], "format": "other/1"}}, r'otherData\.format: "other/1" is not allowed'),
        ({"otherData": {**data["otherData"], "kind": "guessed"}}, r'otherData\.kind: "guessed" is not allowed'),
    ):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(InputError, match=message):
            read_trace(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"t\.json"):
        read_trace(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("args", {"operation": ["X", 0]}, r"traceEvents\[\d+\]: args\.operation"),
        ("dur", -1, r"traceEvents\[\d+\]: dur: -1 is not allowed"),
        ("ts", "soon", r'traceEvents\[\d+\]: ts: "soon" is not allowed'),
    ],
)
def test_malformed_events(tmp_path, field, value, message):
    path, data = good(tmp_path)
    next(e for e in data["traceEvents"] if e["ph"] == "X")[field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_trace(path)
