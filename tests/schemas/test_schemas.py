"""The shipped schemas: made from the models, true to files that are accepted, and to what is wrong in a value."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from helpers.builders import make_instance, make_plan, make_replica, parse_programs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from cappuccino import instances
from cappuccino.schemas import generate

INSTANCES = sorted(p for p in Path(instances.__file__).parent.glob("*.json") if p.name != "index.json")
SWEEP = """
format: cappuccino.instance/1
name: chat
backbone: b
cost_table: cost-table.csv
max_sequence_length: 88
gpu_pools:
  - {gpu: cpu, count: 2, memory_gib: 11.7}
datasets:
  chat: {file: lengths.json, key: chat, source: raw/chat.jsonl, form: messages, loss_on: assistant}
adapters:
  - {name: a, dataset: chat, target_modules: all-linear, epochs: 1, sweep: {rank: [8, 16], global_batch_size: [4, 8]}}
  - {name: b, dataset: chat, global_batch_size: 4, max_grad_norm: null}
"""


def schema(name: str) -> dict:
    return json.loads((generate.FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


def problem(name: str, document: object) -> str | None:
    """Return what the schema has against a document, None for nothing."""
    error = best_match(Draft202012Validator(schema(name)).iter_errors(document))
    return None if error is None else f"{error.json_path}: {error.message}"


@pytest.mark.parametrize("name", generate.SCHEMAS)
def test_what_is_shipped_is_what_the_models_give(name: str) -> None:
    shipped = (generate.FOLDER / name).read_text(encoding="utf-8")
    assert shipped == generate.text(generate.SCHEMAS[name]()), "make schemas writes it anew"
    Draft202012Validator.check_schema(json.loads(shipped))
    assert {p.name for p in generate.FOLDER.glob("*.json")} == set(generate.SCHEMAS)


@pytest.mark.parametrize("path", INSTANCES, ids=lambda p: p.stem)
def test_every_shipped_instance_keeps_to_the_schema(path: Path) -> None:
    assert problem("instance", json.loads(path.read_text(encoding="utf-8"))) is None


def test_sweeps_keep_to_the_schema() -> None:
    assert problem("instance", yaml.safe_load(SWEEP)) is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("adapters", 0, "rnk"), 4, "'rnk' was unexpected"),
        (("adapters", 0, "rank"), 0, "less than or equal to the minimum of 0"),
        (("adapters", 0, "rank"), "8", "is not of type 'integer'"),
        (("adapters", 0, "name"), "a b", "does not match"),
        (("adapters", 0, "lr_scheduler"), "step", "is not one of ['constant', 'linear', 'cosine']"),
        (("adapters", 0, "sweep"), {}, "non-empty"),
        (("adapters", 0, "sweep"), {"rank": []}, "should be non-empty"),
        (("adapters", 0, "sweep"), {"dataset": ["chat"]}, "'dataset' was unexpected"),
        (("adapters", 1, "global_batch_size"), None, "'global_batch_size' is a required property"),
        (("datasets", "chat", "too_long"), "keep", "is not one of ['cut', 'drop']"),
        (("gpu_pools",), [], "non-empty"),
        (("format",), "cappuccino.instance/2", "'cappuccino.instance/1' was expected"),
        (("backbone",), None, "'backbone' is a required property"),
    ],
)
def test_what_is_wrong_in_a_value_is_told(path: tuple[str | int, ...], value: object, said: str) -> None:
    document = yaml.safe_load(SWEEP)
    place = document
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    found = problem("instance", document)
    assert found is not None
    assert said in found


def test_plans_keep_to_the_schema_and_what_is_wrong_in_one_is_told() -> None:
    instance = make_instance(([5, 3], 1, 2))
    programs = parse_programs("F0 F1 B0 S0.0 B1 S0.1", "F0 B0 S0.0 F1 B1 S0.1")
    document = make_plan(instance, make_replica([[(0, 0)], [(0, 1)]], programs, ["a0"])).dump()
    document = json.loads(json.dumps(document))
    assert problem("plan", document) is None
    for operation in (["X", 0], ["S", 0], ["F", 0, 0], ["F", -1]):
        wrong = copy.deepcopy(document)
        wrong["replicas"][0]["programs"][0][0] = operation
        assert problem("plan", wrong) is not None, operation
    wrong = document | {"lower_bound": None}  # the file calls it lower_bound_s
    assert "'lower_bound' was unexpected" in problem("plan", wrong)


def test_fields_are_explained_by_the_words_beneath_them() -> None:
    found = schema("instance")
    assert found["$defs"]["Adapter"]["properties"]["rank"]["description"] == "LoRA rank."
    unexplained = {
        f"{name}.{field}"
        for name, part in {"InstanceFile": found, **found["$defs"]}.items()
        for field, entry in part["properties"].items()
        if "description" not in entry and name != "Sweep"
    }
    assert unexplained == {"InstanceFile.format", "InstanceFile.name"}
    assert schema("plan")["properties"]["lower_bound_s"]["description"].startswith("Proven bound on the objective")
