"""Generates the JSON Schemas of instance and plan files beside it: `python -m cappuccino.schemas.generate`.

They have what a single value may be. What fields say of each other, and of other files, is left to those who read them.
"""

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cappuccino.adapter import Adapter
from cappuccino.certificate import Certificate, StageLayers
from cappuccino.files import write_atomically
from cappuccino.instance import DatasetSource, GpuPool, InstanceFile
from cappuccino.plan import AdapterSaving, EvaluationBatch, FoundPlan, InstanceReference, MicroBatch, Plan, Replica
from cappuccino.sweep import Sweep

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).resolve().parent


def instance_schema() -> dict[str, Any]:
    """Return the schema of `cappuccino.instance/1`, JSON or YAML, as it is written: with sweeps."""
    schema = _described(InstanceFile, (GpuPool, DatasetSource, Adapter))
    sweep = _described(Sweep, ())
    definitions = schema["$defs"]
    definitions["Sweep"] = sweep | {"minProperties": 1}
    adapter = definitions["Adapter"]
    adapter["properties"]["sweep"] = {
        "$ref": "#/$defs/Sweep",
        "description": "Values to try: the entry stands for one adapter per combination.",
    }
    always = [name for name in adapter["required"] if name not in Sweep.model_fields]
    swept = [name for name in adapter["required"] if name in Sweep.model_fields]
    adapter["required"] = always
    adapter["if"] = {"not": {"required": ["sweep"]}}
    adapter["then"] = {"required": swept}
    return _whole(schema)


def plan_schema() -> dict[str, Any]:
    """Return the schema of `cappuccino.plan/1`."""
    of_replicas = (Replica, MicroBatch, EvaluationBatch, AdapterSaving)
    return _whole(_described(Plan, (InstanceReference, *of_replicas, FoundPlan, Certificate, StageLayers)))


SCHEMAS = {"instance.schema.json": instance_schema, "plan.schema.json": plan_schema}


def text(schema: dict[str, Any]) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that says what it is."""
    name = schema["properties"]["format"]["const"]
    return {"$schema": DIALECT, **schema, "title": name}


def _described(model: type[BaseModel], parts: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """Return a model's schema, fields described by what stands beneath them in the code.

    Parameters
    ----------
    parts
        The models within it.
    """
    schema = model.model_json_schema(by_alias=True)
    for part in (model, *parts):
        properties = (schema if part is model else schema["$defs"][part.__name__])["properties"]
        for name, description in _descriptions(part).items():
            properties[part.model_fields[name].alias or name]["description"] = description
    return schema


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the text beneath every field of a model that has one, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in pairwise(tree.body):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = " ".join(said.split())
    return found


def main() -> None:
    """Write the schemas."""
    for name, schema in SCHEMAS.items():
        write_atomically(FOLDER / name, text(schema()))
        print(f"written {FOLDER / name}")


if __name__ == "__main__":
    main()
