"""compare: the table, its JSON, and what it says of baselines that cannot run."""

import json

import pytest
from cli.conftest import cappuccino, one_clear_error, read_instance, write_instance

NAMES = ["cappuccino", "sequential", "mlora", "reference", "grouped"]


@pytest.fixture
def plan(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", "--time-limit", 1)
    assert done.code == 0, done.err
    return workspace / "plan.json"


def test_one_row_per_plan_on_the_same_costs(workspace):
    instance = read_instance(workspace)
    instance["gpu_pools"][0]["price_per_hour"] = 3.6
    done = cappuccino("compare", write_instance(workspace, instance), "--time-limit", 1, "--seed", 3, "--json")
    assert done.code == 0, done.err
    assert done.json["instance"] == "toy"
    assert done.json["plan"] is None
    rows = done.json["rows"]
    assert [row["name"] for row in rows] == NAMES
    ours = rows[0]
    assert ours["ratio"] == 1
    for row in rows:
        assert row["checked"] is True
        assert row["ratio"] == pytest.approx(row["gpu_time_s"] / ours["gpu_time_s"])
        assert row["cost"] == pytest.approx(row["gpu_time_s"] * 0.001)
        assert 0 <= row["bubble"] < 1
        assert row["replicas"] <= row["gpus"] <= 4
        assert row["makespan_s"] <= row["gpu_time_s"]
        assert row["wall_time_s"] > 0
    # a: 3 steps of 4 samples of at most 80 tokens, 0.1 s a micro-batch of one; b: steps of 0.4 + 0.3, 0.2 + 0.4
    assert rows[1]["gpu_time_s"] == pytest.approx(3 * 4 * 0.1 + 1.3, rel=0.05)


def test_a_given_plan_as_text(workspace, plan):
    done = cappuccino("compare", workspace / "instance.json", "--plan", plan)
    assert done.code == 0, done.err
    header, *lines, separate = done.out.splitlines()
    assert separate.startswith("separate ")
    assert "the baseline sequential" in separate
    assert header.split() == ["GPU-s", "makespan", "s", "cost", "replicas", "GPUs", "ratio", "bubble", "checked"]
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith("valid") for line in lines)
    stated = json.loads(plan.read_text())
    figures = lines[0].split()
    assert float(figures[1]) == pytest.approx(stated["gpu_time_s"], abs=0.05)
    assert figures[3] == "-"  # no pool has a price
    assert figures[6] == "1.000"


def test_an_invalid_plan_is_refused(workspace, plan):
    stated = json.loads(plan.read_text())
    stated["replicas"][0]["makespan_s"] *= 0.5
    plan.write_text(json.dumps(stated))
    done = cappuccino("compare", workspace / "instance.json", "--plan", plan, "--json")
    one_clear_error(done, "plan.json", "rule 7")


def test_options_for_making_a_plan_contradict_a_given_one(workspace, plan):
    for option in (("--time-limit", 1), ("--seed", 1)):
        done = cappuccino("compare", workspace / "instance.json", "--plan", plan, *option)
        assert done.code == 2
        assert "--plan" in done.err


def test_a_baseline_that_cannot_run_says_why(workspace):
    # 400 tokens and 2 / g GiB of weights fit 0.9 GiB on 6 GPUs only, a depth that baselines do not extrapolate to
    instance = read_instance(workspace)
    instance["gpu_pools"][0] |= {"count": 8, "memory_gib": 0.9}
    path = write_instance(workspace, instance)
    plan = workspace / "plan.json"
    done = cappuccino("plan", path, "-o", plan, "--time-limit", 1, "--num-stages", 6)
    assert done.code == 0, done.err
    text = cappuccino("compare", path, "--plan", plan)
    assert text.code == 0, text.err
    lines = text.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert lines[1].endswith("valid")
    for line in lines[2:]:
        assert "cannot run" in line
        assert 'adapters[1] "b" fits nowhere' in line
    rows = cappuccino("compare", path, "--plan", plan, "--json").json["rows"]
    assert [sorted(row) for row in rows[1:]] == [["name", "reason"]] * 4


def test_an_instance_without_any_plan_is_one_error(workspace):
    instance = read_instance(workspace)
    instance["gpu_pools"][0]["memory_gib"] = 0.3
    done = cappuccino("compare", write_instance(workspace, instance), "--time-limit", 1)
    one_clear_error(done, "fits nowhere")
