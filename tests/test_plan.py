import json
import os

import pytest
from helpers.builders import changed, make_costs, make_instance, timed
from helpers.plans import random_plan

from cappuccino.errors import InputError
from cappuccino.plan import MicroBatch, Objective, Plan, Status, even_layers, objective_gap

INSTANCE = make_instance(([3, 5, 2, 7], 2), ([1, 4, 6], 1, 2))
PLAN = timed(random_plan(INSTANCE, 2, seed=1), INSTANCE, {"x": make_costs(optimizer_s=0.1, transfer=(0.3, 0.1))})


def edited(tmp_path, old: str, new: str):
    path = tmp_path / "p.json"
    PLAN.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_plans_older_than_certificates_were_optimal_within_the_gap_asked_for(tmp_path):
    document = PLAN.dump() | {"status": "optimal", "lower_bound_s": 1.0, "gap": 5e-4}
    del document["certificate"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert Plan.load(tmp_path / "old.json").status is Status.WITHIN_GAP
    (tmp_path / "met.json").write_text(json.dumps(document | {"gap": 1e-7}))
    assert Plan.load(tmp_path / "met.json").status is Status.OPTIMAL
    (tmp_path / "new.json").write_text(json.dumps(document | {"certificate": None}))
    assert Plan.load(tmp_path / "new.json").status is Status.OPTIMAL  # the checker refuses it


@pytest.mark.parametrize("seed", range(5))
def test_round_trip(tmp_path, seed):
    plan = random_plan(INSTANCE, 3, seed)
    plan = changed(plan, lower_bound=1 / 3, gap=0.0, deadline_s=0.1 + 0.2, solver={"seed": 0, "wall_time_s": 1.5})
    path = tmp_path / "p.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert os.listdir(tmp_path) == ["p.json"]
    first = path.read_bytes()
    Plan.load(path).save(path)
    assert path.read_bytes() == first


def test_the_file_has_the_documented_form(tmp_path):
    path = tmp_path / "p.json"
    PLAN.save(path)
    data = json.loads(path.read_text())
    assert data["format"] == "cappuccino.plan/1"
    assert data["instance"] == {"name": "tiny", "sha256": INSTANCE.digest}
    assert (data["objective"], data["status"]) == ("gpu_time", "feasible")
    replica = data["replicas"][0]
    assert replica["adapters"] == ["a0", "a1"]
    assert all(isinstance(n, int) for m in replica["micro_batches"] for s in m["samples"] for n in s)
    assert {op[0]: len(op) for p in replica["programs"] for op in p} == {"F": 2, "B": 2, "S": 3}


def test_truncated_plan(tmp_path):
    path = tmp_path / "p.json"
    PLAN.save(path)
    text = path.read_text()
    for cut in (1, len(text) // 2, len(text) - 2):
        path.write_text(text[:cut])
        with pytest.raises(InputError, match=r"p\.json: is (truncated|not valid JSON)"):
            Plan.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["B",0]', '["X",0]', r"p\.json: replicas\[0\]\.programs\[\d\]\[\d+\]: \[\"X\", 0\] is not allowed"),
        ('["B",0]', '["B",-1]', r"p\.json: replicas\[0\]\.programs\[\d\]\[\d+\]: \[\"B\", -1\] is not allowed"),
        ('["B",0]', '["B"]', r"p\.json: replicas\[0\]\.programs\[\d\]\[\d+\]"),
        ('["B",0]', '["B",0.0]', r"p\.json: replicas\[0\]\.programs\[\d\]\[\d+\]: \[\"B\", 0\.0\] is not allowed"),
        ('"cappuccino.plan/1"', '"cappuccino.plan/2"', r"p\.json: format: \"cappuccino\.plan/2\" is not allowed"),
        ('"gpu_time"', '"speed"', r"p\.json: objective: \"speed\" is not allowed"),
        ('"num_stages":2', '"num_stages":0', r"p\.json: replicas\[0\]\.num_stages: 0 is not allowed"),
        ('"peak_memory_gib":[', '"peak_memory_gib":[1e999,', r"p\.json: replicas\[0\]\.peak_memory_gib\[0\]: "),
        ('"gap":null', '"gap":NaN', r"p\.json: contains NaN"),
        ('"gap":null', '"gap":null,"note":1', r"p\.json: note: is not a known field"),
        ('"gap":null,', "", r"p\.json: gap: is missing; add it"),
        ('"gpu_time_s":', '"gpu_time_s":-', r"p\.json: gpu_time_s: -\d"),
    ],
)
def test_malformed_plans(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        Plan.load(edited(tmp_path, old, new))


def test_unknown_operation_kind_is_explained_in_the_files_own_terms(tmp_path):
    # the path of the field must be one that the user finds in the file, free of the validator's union tags
    with pytest.raises(InputError, match=r"p\.json: replicas\[0\]\.programs\[\d\]\[\d+\](\[0\])?: ") as error:
        Plan.load(edited(tmp_path, '["B",0]', '["X",0]'))
    assert '"X"' in error.value.problem or "F" in error.value.remedy


def test_plan_without_replicas(tmp_path):
    with pytest.raises(ValueError, match="replicas"):
        changed(PLAN, replicas=())


def test_micro_batches_are_not_empty():
    with pytest.raises(ValueError, match="samples"):
        MicroBatch(samples=())


def test_objective_value_is_that_of_the_objective():
    plan = changed(PLAN, gpu_time_s=6.0, makespan_s=3.0, cost=0.5)
    assert plan.objective_value == 6.0
    assert changed(plan, objective=Objective.MAKESPAN).objective_value == 3.0
    assert changed(plan, objective=Objective.COST).objective_value == 0.5


def test_gap():
    assert objective_gap(100.0, 75.0) == 0.25
    assert objective_gap(100.0, None) is None
    assert objective_gap(100.0, 101.0) == 0.0
    assert objective_gap(0.0, 0.0) == 0.0


def test_layers_are_even_and_the_first_stages_larger():
    assert even_layers(64, 3) == (22, 21, 21)
    assert even_layers(4, 4) == (1, 1, 1, 1)
    assert sum(even_layers(80, 7)) == 80
