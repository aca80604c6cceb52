"""pareto: what it prints, what it writes, and its errors."""

import csv
import json
from xml.etree import ElementTree

import pytest
from cli.conftest import cappuccino, one_clear_error, read_instance, write_instance

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def explored(workspace):
    arguments = ("--points", 3, "--deadline", 0.01, "--time-limit", 1.5, "-o", workspace / "front", "--json")
    done = cappuccino("pareto", workspace / "instance.json", *arguments, "--plot", workspace / "front.svg")
    assert done.code == 0, done.err
    return workspace, done


def test_points_are_checked_and_monotone(explored):
    _, done = explored
    assert done.json["objective"] == "gpu_time"
    impossible, *points = done.json["points"]
    assert (impossible["status"], impossible["checked"], impossible["plan"]) == ("infeasible", None, None)
    assert "no plan can end before" in impossible["reason"]
    assert len(points) >= 2
    assert all(p["checked"] for p in points)
    times, bounds = [p["gpu_time_s"] for p in points], [p["lower_bound"] for p in points]
    assert times == sorted(times, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert all(p["makespan_s"] <= p["deadline_s"] * (1 + 1e-9) for p in points)


def test_every_plan_and_the_table_are_saved(explored):
    workspace, done = explored
    with (workspace / "front" / "pareto.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(done.json["points"])
    assert rows[0]["plan"] == rows[0]["gpu_time_s"] == ""
    for row, point in zip(rows[1:], done.json["points"][1:], strict=True):
        plan = workspace / "front" / row["plan"]
        assert str(plan) == point["plan"]
        assert float(row["gpu_time_s"]) == point["gpu_time_s"] == json.loads(plan.read_text())["gpu_time_s"]
        checked = cappuccino("check", plan, "--instance", workspace / "instance.json", "--json")
        assert checked.code == 0
        assert checked.json["violations"] == []


def test_the_plot_has_a_marker_for_every_plan_and_every_bound(explored):
    workspace, done = explored
    root = ElementTree.fromstring((workspace / "front.svg").read_text())
    planned = [p for p in done.json["points"] if p["plan"]]
    for line in ("plan found", "proven bound"):
        group = next(g for g in root.iter(f"{SVG}g") if g.get("id") == line)
        assert len(list(group.iter(f"{SVG}use"))) == len(planned)


def test_text_and_html(workspace):
    arguments = ("--points", 2, "--deadline", 0.01, "--time-limit", 1, "--plot", workspace / "front.html")
    done = cappuccino("pareto", workspace / "instance.json", *arguments)
    assert done.code == 0, done.err
    heading, *rows = done.out.splitlines()
    for word in ("deadline", "makespan", "gpu_time GPU-s", "bound", "gap", "GPUs", "replicas", "checked"):
        assert word in heading
    assert "infeasible" in rows[0]
    assert rows[-2].startswith("deadline 0.01 s: no plan can end before")
    assert any("valid" in row for row in rows)
    page = (workspace / "front.html").read_text()
    body = ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))
    assert list(body.iter(f"{SVG}use"))


def test_money_against_deadline(workspace):
    instance = read_instance(workspace)
    instance["gpu_pools"][0]["price_per_hour"] = 2.0
    path = write_instance(workspace, instance)
    done = cappuccino("pareto", path, "--objective", "cost", "--points", 2, "--time-limit", 1, "--json")
    assert done.code == 0, done.err
    costs = [p["cost"] for p in done.json["points"]]
    assert costs == sorted(costs, reverse=True)
    assert all(p["lower_bound"] <= p["cost"] for p in done.json["points"])


def test_the_depth_can_be_fixed(workspace):
    arguments = ("--num-stages", 2, "--points", 1, "--time-limit", 1, "-o", workspace / "front")
    done = cappuccino("pareto", workspace / "instance.json", *arguments)
    assert done.code == 0, done.err
    plan = json.loads((workspace / "front" / "plan-01.json").read_text())
    assert {r["num_stages"] for r in plan["replicas"]} == {2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "front.png"), (".png", ".svg or .html")),
        (("--plot", "instance.json/front.svg"), ("instance.json", "no folder")),
        (("--objective", "makespan"), ("makespan", "gpu_time")),
        (("--objective", "cost"), ("price_per_hour",)),
        (("--deadline", "-3"), ("-3.0", "seconds above 0")),
        (("-o", "instance.json"), ("instance.json", "no folder")),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(workspace, monkeypatch, arguments, words):
    monkeypatch.chdir(workspace)
    before = sorted(workspace.iterdir())
    done = cappuccino("pareto", workspace / "instance.json", "--time-limit", 1, *arguments)
    one_clear_error(done, *words)
    assert sorted(workspace.iterdir()) == before


def test_a_warning_of_all_points_is_said_once(workspace):
    table = workspace / "table.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},source", *(f"{row},analytic" for row in rows)]) + "\n")
    done = cappuccino("pareto", workspace / "instance.json", "--points", 3, "--time-limit", 1.5, "--json")
    assert done.code == 0, done.err
    analytic = [w for w in done.json["warnings"] if "analytic" in w]
    assert len(analytic) == 1
    assert analytic[0].startswith("at every deadline: costs on toy-gpu are analytic")


def test_a_warning_of_some_points_names_them():
    from cappuccino.cli.pareto_commands import _said_once

    assert _said_once("w", [1.25, 3.0], 3) == "deadlines 1.25, 3 s: w"
    assert _said_once("w", [1.25], 1) == "deadline 1.25 s: w"
    assert _said_once("w", [1.25, 3.0], 2) == "at every deadline: w"
