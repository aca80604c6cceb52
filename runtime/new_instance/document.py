"""A new instance as people read it: YAML with a reason behind every value, or JSON."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cappuccino.instance import FORMAT
from cappuccino.runtime.new_instance.adapters import NewAdapter
from cappuccino.runtime.new_instance.pools import FoundPool

_PLAIN = re.compile(r"(?:\.{0,2}/)*[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
"""What some version of YAML takes for another thing than text."""
_LEAST_PLAIN = 0.01
"""Numbers below have an exponent."""
_COLUMN = 35
"""Where comments begin, if values leave room."""


@dataclass(frozen=True)
class NewDataset:
    """A dataset of a new instance."""

    name: str
    fields: Mapping[str, Any]
    """As the instance file has them."""
    counts: str
    """What was found, in words."""


@dataclass(frozen=True)
class NewInstance:
    """An instance with the reasons for what it says."""

    name: str
    backbone: str
    cost_table: str
    """Relative to the file, where possible."""
    pools: Sequence[FoundPool]
    max_sequence_length: int
    why_length: str
    datasets: Sequence[NewDataset]
    adapters: Sequence[NewAdapter]

    def document(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "backbone": self.backbone,
            "cost_table": self.cost_table,
            "max_sequence_length": self.max_sequence_length,
            "gpu_pools": [found.pool.model_dump(exclude_none=True) for found in self.pools],
            "datasets": {dataset.name: dict(dataset.fields) for dataset in self.datasets},
            "adapters": [adapter.document() for adapter in self.adapters],
        }

    def json(self) -> str:
        """Return the file as JSON, which has no comments."""
        return json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n"

    def yaml(self) -> str:
        """Return the file as YAML with comments."""
        lines = [
            "# Made by `cappuccino init`; every value may be changed. docs/formats.md has all fields.",
            f"format: {FORMAT}",
            f"name: {scalar(self.name)}",
            _line(f"backbone: {scalar(self.backbone)}", "as the rows of the cost table call it"),
            _line(f"cost_table: {scalar(self.cost_table)}", "times and memory, of `profile` or `estimate`"),
            _line(f"max_sequence_length: {self.max_sequence_length}", f"tokens; {self.why_length}"),
            "",
            "gpu_pools:",
            *(_line(f"  - {flow(p.pool.model_dump(exclude_none=True))}", p.why) for p in self.pools),
            "",
            "datasets:",
        ]
        for dataset in self.datasets:
            lines += [
                _line(f"  {scalar(dataset.name)}:", dataset.counts),
                *(f"    {key}: {flow(value)}" for key, value in dataset.fields.items()),
            ]
        lines += ["", "adapters:"]
        for number, adapter in enumerate(self.adapters):
            lines += _adapter_lines(adapter, number == 0)
        return "\n".join(lines) + "\n"


def _adapter_lines(adapter: NewAdapter, first: bool) -> Iterable[str]:
    """Yield an entry of `adapters`; what is the same for all is explained in the first."""
    yield f"  - name: {scalar(adapter.name)}"
    yield f"    dataset: {scalar(adapter.dataset)}"
    for setting in adapter.settings:
        yield _line(f"    {setting.name}: {flow(setting.value)}", setting.why if first or not setting.general else "")
    if adapter.sweep:
        yield _line("    sweep:", "one adapter for every combination" if first else "")
        for name, values in adapter.sweep.items():
            yield f"      {name}: {flow(values)}"


def _line(text: str, comment: str) -> str:
    return f"{text:<{_COLUMN}} # {comment}" if comment else text


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: str | float | None) -> str:
    """Return a value as YAML that says the same in all its versions: text in quotes where it could be anything else."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))
    if isinstance(value, float) and 0 < value < _LEAST_PLAIN:
        return f"{Decimal(repr(value)).normalize():e}"
    return json.dumps(value)
