"""The benchmark script of the marks: its instances, its token bound, what counts as met."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.costs import SmoothMaximum

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "marks.py"


@pytest.fixture(scope="module")
def marks():
    spec = importlib.util.spec_from_file_location("marks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["marks"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["marks"]


def test_every_mark_has_an_instance_and_every_deadline_a_makespan(marks):
    names = [m.name for m in marks.MARKS]
    assert len(set(names)) == len(names)
    for mark in marks.MARKS:
        assert mark.build in marks.BUILDERS
        assert (mark.most is None) == (mark.token_bound is None)
        if mark.deadline_factor is not None:
            before = names[: names.index(mark.name)]
            assert f"{mark.build}-makespan" in before


def test_instances_are_those_of_the_marks(marks, reference_data):
    sizes = {}
    for name, build in marks.BUILDERS.items():
        instance = build(reference_data)
        sizes[name] = (len(instance.adapters), sum(map(len, instance.step_lengths)), instance.gpu_pools[0].count)
    assert sizes == {
        "seed4-qwen32b": (4, 40, 16),
        "seed4-llama7b": (4, 40, 16),
        "mixed12-qwen32b": (12, 120, 64),
        "mixed12-llama7b": (12, 120, 64),
        "deep4": (4, 40, 4),
        "deep6": (4, 40, 6),
        "full12": (12, 3 * (125 + 62 + 250 + 125), 64),
        "scale1000": (1000, 20000, 256),
        "scale10000": (10000, 200000, 1024),
    }
    twelve = marks.BUILDERS["mixed12-qwen32b"](reference_data)
    assert [a.global_batch_size for a in twelve.adapters] == [8, 16, 4, 8] * 3
    assert [a.micro_batch_size for a in twelve.adapters] == [1, 2, 4, 1] * 3


def test_token_bound_is_the_asymptote_of_every_sample_on_the_cheapest_pool(marks):
    # forward (1 + 0.1 n) n and backward 2 n a sample and stage: 10 tokens take 20 + 20, 20 tokens 60 + 40; two steps of
    # both are 280 s on each of a pipeline's stages. "y" does the same in half the time.
    forward = SmoothMaximum(floor_s=100.0, per_token_s=1.0, per_square_s=0.1, power=2.0)
    backward = SmoothMaximum(floor_s=100.0, per_token_s=2.0, per_square_s=0.0, power=2.0)
    costs = make_costs(forward=forward, backward=backward, stages=(2, 3))
    half = replace(
        costs,
        gpu="y",
        stage_forward=dict.fromkeys((2, 3), forward.scaled(0.5)),
        stage_backward=dict.fromkeys((2, 3), backward.scaled(0.5)),
    )
    instance = make_instance(([10, 20], 2, 2))
    assert marks.token_bound(instance, {"x": costs}) == pytest.approx(2 * 280)
    both = make_instance(([10, 20], 2, 2), gpus={"x": 4, "y": 4})
    assert marks.token_bound(both, {"x": costs, "y": half}) == pytest.approx(280)


def outcome_of(marks, **figures):
    values = {
        "adapters": 1,
        "steps": 1,
        "objective": 102.0,
        "unit": "GPU-s",
        "bound": 100.0,
        "gap": 0.02,
        "deadline_s": None,
        "makespan_s": 50.0,
        "token_bound": 100.0,
        "reference": 153.0,
        "reference_note": "",
        "first_plan_s": 3.0,
        "wall_time_s": 9.0,
    }
    return marks.Outcome(**{**values, **figures})


def test_what_counts_as_met(marks):
    # the mark's ratio is 210 / 200 = 1.05
    mark = marks.Mark(
        "m", "deep4", 60, most=210, most_gap=0.02, most_first_plan_s=20, most_memory_gib=8, token_bound=200
    )
    assert marks.misses(mark, outcome_of(marks), 7.9) == []
    assert marks.misses(mark, outcome_of(marks, objective=106.0), 7.9) == ["objective over token bound 1.06 > 1.05"]
    assert marks.misses(mark, outcome_of(marks, gap=None), 7.9) == ["gap none > 0.02"]
    assert marks.misses(mark, outcome_of(marks, gap=0.021), 7.9) == ["gap 0.021 > 0.02"]
    late = marks.misses(mark, outcome_of(marks, first_plan_s=21.0), 8.5)
    assert late == ["first plan 21 > 20", "memory 8.5 > 8"]
    bare = marks.Mark("m", "deep4", 60)
    assert marks.misses(bare, outcome_of(marks, gap=None, first_plan_s=None), 100.0) == []


def test_the_line_of_a_mark(marks):
    mark = marks.Mark("m", "deep4", 60, most=210, token_bound=200)
    cells = dict(zip(marks.COLUMNS, marks.table_line(mark, outcome_of(marks), 1.0, ""), strict=True))
    assert cells["/tokens"] == "1.0200"
    assert cells["ratio to reach"] == "1.0500"
    assert cells["reference/ours"] == "1.500"
    assert cells["gap"] == "2.00%"
    assert cells["met"] == "yes"
    assert marks.table_line(mark, outcome_of(marks), 1.0, "late")[-1] == "no: late"
    failed = marks.table_line(mark, None, None, "out of memory")
    assert (len(failed), failed[-1]) == (len(marks.COLUMNS), "FAILED: out of memory")


def test_deadlines_are_multiples_of_the_makespan_found(marks, monkeypatch, tmp_path):
    asked = {}

    def run(function, mark, data, time_limit_s, seed, deadline_s, settings):
        assert function is marks.run_mark
        asked[mark.name] = (time_limit_s, deadline_s)
        return outcome_of(marks, objective=40.0, unit="s", gap=0.0), 1.0

    monkeypatch.setattr(marks, "run_isolated", run)
    chosen = marks.chosen_marks(["mixed12-within-1.5x"])
    assert [m.name for m in chosen] == ["mixed12-qwen32b-makespan", "mixed12-within-1.5x"]
    results = list(marks.run_marks(chosen, tmp_path, 0.1, 0))
    assert [problem for *_, problem in results] == ["", ""]
    assert asked == {"mixed12-qwen32b-makespan": (12.0, None), "mixed12-within-1.5x": (12.0, 60.0)}


def test_an_unknown_mark_names_those_there_are(marks):
    with pytest.raises(ValueError, match='no mark "nothing"; name some of: seed4-qwen32b'):
        marks.chosen_marks(["nothing"])


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder_without_the_data_is_named(tmp_path):
    done = script("--data", tmp_path)
    assert done.returncode == 2
    assert "there is no profile_a100_40gb.csv" in done.stderr
    assert str(tmp_path) in done.stderr
