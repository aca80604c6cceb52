"""simulate --noise, --against and --plot; without them it is tested with plan and check."""

import json
from xml.etree import ElementTree

import pytest
from cli.conftest import cappuccino, one_clear_error


@pytest.fixture
def planned(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", "--time-limit", 1)
    assert done.code == 0, done.err
    return workspace


def simulate(workspace, *options):
    return cappuccino("simulate", workspace / "plan.json", "--instance", workspace / "instance.json", *options)


def test_noise_gives_a_distribution(planned):
    noise = simulate(planned, "--noise", 0.2, "--runs", 50, "--seed", 3, "--json").json["noise"]
    assert (noise["sigma"], noise["runs"]) == (0.2, 50)
    low, middle, high = noise["gpu_time_s"]
    assert low < middle < high
    assert simulate(planned, "--noise", 0.2, "--runs", 50, "--seed", 3, "--json").json["noise"] == noise
    assert "noise 0.2, 50 runs" in simulate(planned, "--noise", 0.2, "--runs", 50).out


def measured_trace(workspace, factor):
    """Write the plan's own trace as if measured, all times stretched."""
    trace = workspace / "trace.json"
    assert simulate(workspace, "--trace", trace).code == 0
    document = json.loads(trace.read_text())
    document["otherData"]["kind"] = "measured"
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            event["ts"] *= factor
            event["dur"] *= factor
    trace.write_text(json.dumps(document))
    return trace


def test_against_a_trace_every_operation_is_compared_and_drawn(planned):
    trace, plot = measured_trace(planned, 1.25), planned / "both.svg"
    done = simulate(planned, "--against", trace, "--plot", plot, "--json")
    assert done.code == 0, done.err
    for replica in done.json["against"]:
        assert replica["difference"] == pytest.approx(0.25)
        assert replica["causes"]["compute_s"] == pytest.approx(0.25 * replica["predicted_s"])
        assert sum(replica["causes"].values()) == pytest.approx(0.25 * replica["predicted_s"])
        assert all(s["measured_s"] == pytest.approx(1.25 * s["predicted_s"]) for s in replica["steps"])
    texts = [t.text for t in ElementTree.parse(plot).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert any(t.startswith("replica 0 predicted") for t in texts)
    assert any(t.startswith("replica 0 measured") for t in texts)
    said = simulate(planned, "--against", trace).out
    assert "compute +25.0%" in said
    assert "ratio 1.250; of eight in ten operations 1.25 to 1.25" in said


def test_a_simulated_trace_is_nothing_to_compare_with(planned):
    trace = planned / "trace.json"
    assert simulate(planned, "--trace", trace).code == 0
    one_clear_error(simulate(planned, "--against", trace), "trace.json", "otherData.kind", "simulated")
    one_clear_error(simulate(planned, "--plot", planned / "x.pdf"), "x.pdf", ".svg or .png")


def test_a_window_of_time_is_drawn_as_pixels_or_refused(planned):
    plot = planned / "x.png"
    assert simulate(planned, "--plot", plot, "--from", 0.1, "--to", 0.4).code == 0
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    one_clear_error(simulate(planned, "--plot", plot, "--from", 2, "--to", 1), "--to", "not behind --from, 2 s")
    assert simulate(planned, "--from", 2).code == 2  # there is nothing that it could be of
    one_clear_error(simulate(planned, "--plot", plot, "--from", 1e6), "--from", "1e+06 s is behind the end")
    for window in (("--from", "inf"), ("--to", "inf")):
        one_clear_error(simulate(planned, "--plot", plot, *window), "--from, --to", "are to be numbers of seconds")
    assert simulate(planned, "--runs", 5).code == simulate(planned, "--seed", 1).code == 2


def test_no_file_is_written_over_what_is_read_or_another_output(planned):
    plan, instance, other = planned / "plan.json", planned / "instance.json", planned / "other.svg"
    before = plan.read_bytes(), instance.read_bytes()
    for done in (
        simulate(planned, "--trace", plan),
        simulate(planned, "--trace", instance),
        simulate(planned, "--plot", other, "--trace", planned / "." / "other.svg"),
        cappuccino("plan", instance, "-o", instance, "--time-limit", 1),
    ):
        one_clear_error(done, "is also read, or written as something else", "name another file")
    assert (plan.read_bytes(), instance.read_bytes()) == before
    assert not other.exists()


def test_traces_name_adapters(planned):
    trace = planned / "trace.json"
    assert simulate(planned, "--trace", trace).code == 0
    names = {e["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"}
    assert {"step 0: a", "step 2: a", "step 1: b"} <= names
    assert all(name.partition(": ")[2] in ("a", "b", "a, b") for name in names)


def test_calibrated_tables_predict_what_was_measured(planned):
    trace, table = measured_trace(planned, 1.25), planned / "corrected.csv"
    files = planned / "plan.json", "--instance", planned / "instance.json"
    done = cappuccino("calibrate", *files, "--trace", trace, "-o", table, "--json")
    assert done.code == 0, done.err
    factors = done.json["gpus"]["toy-gpu"]
    assert factors["forward"]["factors"] == pytest.approx([1.25] * len(factors["forward"]["factors"]))
    assert factors["backward"]["factors"] == pytest.approx([1.25] * len(factors["backward"]["factors"]))
    before, after = ((planned / name).read_text().splitlines() for name in ("table.csv", "corrected.csv"))
    assert after[0] == before[0] + ",source,engine"
    column = before[0].split(",").index("time_per_step_s")
    for old, new in zip(before[1:], after[1:], strict=True):
        old_row, new_row = old.split(","), new.split(",")
        assert float(new_row[column]) == pytest.approx(1.25 * float(old_row[column]), rel=1e-4)
        assert new_row[-2:] == ["calibrated", "cappuccino"]
        assert [x for i, x in enumerate(new_row[:-2]) if i != column] == [
            x for i, x in enumerate(old_row) if i != column
        ]
