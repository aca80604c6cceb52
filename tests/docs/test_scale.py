"""The script that measures the cost of scale: its instances, its table and its plot."""

import csv
import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "scale.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scale"]


@pytest.mark.parametrize(("adapters", "steps", "gpus"), [(4, 10, 16), (30, 2, 120), (1000, 1, 256)])
def test_instances_have_the_size_asked_for(scale, adapters, steps, gpus):
    instance = scale.build_instance(adapters, steps)
    assert len(instance.adapters) == adapters
    assert {len(lengths) for lengths in instance.step_lengths} == {steps}
    assert [p.count for p in instance.gpu_pools] == [gpus]
    assert instance.cost_table.is_file()


def test_table_and_plot_hold_every_point(scale, tmp_path):
    measured = {"gpu_time_s": 5.0, "gap": 0.01, "first_plan_s": 1.0, "wall_time_s": 3.0, "peak_memory_gib": 0.5}
    points = [
        scale.Point(4, 10, 16, time_to_gap_s=2.0, **measured),
        scale.Point(12, 10, 48, **measured),
        scale.Point(12, 50, 48, error="HiGHS found no allocation in time"),
    ]
    scale.write(tmp_path, points, 0.02)
    with (tmp_path / "scale.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["adapters"], r["steps"], r["time_to_gap_s"]) for r in rows] == [
        ("4", "10", "2"),
        ("12", "10", ""),
        ("12", "50", ""),
    ]
    assert rows[2]["error"] == "HiGHS found no allocation in time"
    root = ElementTree.fromstring((tmp_path / "scale.svg").read_text())
    # 10 steps: first plan and end twice, time to the gap once, gap and memory twice; 12 adapters: once, no time to it
    drawn = ["first plan", "gap of 2%", "end", "gap at the end", "peak"]
    groups = [g for g in root.iter(f"{SVG}g") if g.get("id") in drawn]
    assert sum(len(list(g.iter(f"{SVG}use"))) for g in groups) == (2 + 1 + 2) + (2 + 2) + 4
    assert "gap of 2%" in {t.text for t in root.iter(f"{SVG}text")}


def test_a_measured_point(scale):
    point = scale.measure(2, 1, time_limit_s=1.0, target_gap=0.5, seed=0)
    assert (point.adapters, point.steps, point.gpus, point.samples) == (2, 1, 16, 8 + 16)
    assert 0 < point.lower_bound_s <= point.gpu_time_s
    assert point.gap == pytest.approx(1 - point.lower_bound_s / point.gpu_time_s)
    if point.gap <= 0.5:
        assert point.first_plan_s <= point.time_to_gap_s <= point.wall_time_s
    else:
        assert point.time_to_gap_s is None
