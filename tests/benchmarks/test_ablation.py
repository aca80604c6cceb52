"""The benchmark that takes methods away from the planner."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cappuccino.library.index import SHIPPED, Library
from cappuccino.solvers.settings import DEFAULT

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ablation"]


def test_every_variant_takes_something_away(ablation):
    names = [variant.without for variant in ablation.VARIANTS]
    assert names[0] == ablation.ALL and len(set(names)) == len(names)
    settings = [variant.settings for variant in ablation.VARIANTS]
    assert settings[0] == DEFAULT
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


def test_entries_are_of_the_library(ablation):
    assert set(ablation.ENTRIES) <= {entry.name for entry in Library.load(SHIPPED).entries}


def test_ratios_are_those_of_geometric_means_over_seeds(ablation):
    def plans(*objectives):
        return [ablation.Outcome(objective, None, {}, {}) for objective in objectives]

    outcomes = {
        ablation.ALL: {"a": plans(1.0, 4.0), "b": plans(10.0)},
        "x": {"a": plans(2.0, 2.0), "b": plans(11.0)},
        "y": {"a": plans(3.0, 3.0)},  # of b there is no plan
        "z": {},
    }
    assert ablation.ratio_table(outcomes) == [
        [ablation.ALL, "+0.00%", "+0.00%", "+0.00%"],
        ["x", "+0.00%", "+10.00%", "+4.88%"],
        ["y", "+50.00%", "-", "+50.00%"],
        ["z", "-", "-", "-"],
    ]


def test_what_methods_took_off_is_averaged_over_plans(ablation):
    first = ablation.Outcome(9.0, None, {"construction": 1, "annealing": 2}, {"construction": 0.0, "annealing": 0.1})
    second = ablation.Outcome(9.0, None, {"construction": 1}, {"construction": 0.0})
    assert ablation.method_table([first, second]) == [["annealing", "2", "5.000%"], ["construction", "2", "0.000%"]]


@pytest.mark.slow
def test_a_run_prints_plans_of_every_variant(ablation):
    arguments = ["--entry", "tiny2-qwen7b", "--without", "CP-SAT", "--time-limit", "1", "--seeds", "1", "--json"]
    run = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)["without"]
    assert set(found) == {ablation.ALL, "CP-SAT"}
    for variant in found.values():
        [plan] = variant["tiny2-qwen7b"]
        assert plan["objective"] > 0 and sum(plan["found"].values()) > 0
    assert "order_window" not in found["CP-SAT"]["tiny2-qwen7b"][0]["found"]


def test_unknown_entries_are_refused(ablation, capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--entry", "nothing"])
    assert 'there is no "nothing" in the library' in capsys.readouterr().err
