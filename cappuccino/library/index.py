"""The instance library: shipped instances, what each is planned for, and the best that is known of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cappuccino import instances
from cappuccino.costs import CostModel
from cappuccino.errors import InputError
from cappuccino.files import Record, parse_model, read_json, write_atomically
from cappuccino.instance import GpuPool, Instance
from cappuccino.library.records import PROBE_ADAPTERS, PROBE_TOKENS, CostProbe, Entry, Probes

FORMAT = "cappuccino.index/2"
INDEX_NAME = "index.json"
SHIPPED = Path(instances.__file__).parent
"""Folder of the library that comes with the package."""


class _Index(Record):
    format: Literal["cappuccino.index/2"]
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]


def cost_probes(instance: Instance, costs: Mapping[str, CostModel]) -> dict[str, Probes]:
    """Return the probes of an instance's cost models, by GPU type."""
    return {
        pool.gpu: tuple(_probe(model, pool, g) for model in costs[pool.gpu].choices for g in model.profiled)
        for pool in instance.gpu_pools
    }


def _probe(model: CostModel, pool: GpuPool, num_stages: int) -> CostProbe:
    pipeline = model.pipeline(num_stages)
    adapters = model.adapter_costs(num_stages, PROBE_ADAPTERS)
    slots = []
    for adapter in range(len(PROBE_ADAPTERS)):
        for tokens in PROBE_TOKENS:
            more = adapters.of_micro_batch([adapter], [tokens], padded=False)
            slot = pipeline.times(tokens, tokens**2, more).sum(axis=0).max()
            slots.append(float(slot + model.transfer_time(tokens)) + model.optimizer_s)
    return CostProbe(
        num_stages=num_stages, slots_s=tuple(slots), max_tokens=model.max_tokens(num_stages, pool.memory_gib)
    )


def least_gpus(instance: Instance, costs: Mapping[str, CostModel]) -> int:
    """Return the fewest GPUs of one pool that hold the backbone with the longest sample of any one adapter.

    0 where no pool does.
    """
    shortest = min(int(lengths.max()) for lengths in instance.step_lengths)
    counts = [
        stages
        for pool in instance.gpu_pools
        for model in costs[pool.gpu].choices
        for stages in model.stage_counts(pool.count)
        if model.max_tokens(stages, pool.memory_gib) >= shortest
    ]
    return min(counts, default=0)


@dataclass(frozen=True)
class Library:
    """A folder of instance files with their index."""

    folder: Path
    entries: tuple[Entry, ...]

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> "Library":
        """Read the index of a folder.

        Raises
        ------
        InputError
            Naming file, field, value and remedy.
        """
        path = folder / INDEX_NAME
        library = cls(folder, parse_model(_Index, read_json(path), path).entries)
        seen: set[str] = set()
        for i, entry in enumerate(library.entries):
            if entry.name in seen:
                raise InputError(path, f"entries[{i}].name", f'"{entry.name}" is given twice', "use unique names")
            seen.add(entry.name)
        return library

    @property
    def path(self) -> Path:
        """The index file."""
        return self.folder / INDEX_NAME

    def position(self, name: str) -> int:
        """Return where an entry stands; InputError naming what there is when there is none of this name."""
        for i, entry in enumerate(self.entries):
            if entry.name == name:
                return i
        known = ", ".join(e.name for e in self.entries)
        raise InputError(self.path, "entries", f'there is no entry "{name}"', f"name some of: {known}")

    def entry(self, name: str) -> Entry:
        """Return an entry by its name; InputError naming what there is when there is none."""
        return self.entries[self.position(name)]

    def instance(self, name: str) -> Instance:
        """Return the instance of an entry.

        Raises
        ------
        InputError
            When the instance file is malformed or is not the one that the index was written for.
        """
        i = self.position(name)
        stated = self.entries[i].instance
        instance = Instance.load(self.folder / stated.file)
        if instance.digest != stated.sha256:
            problem = f'"{stated.sha256[:12]}..." is not the digest of {stated.file} ("{instance.digest[:12]}...")'
            remedy = "undo the change, or write a new index: python -m cappuccino.instances.generate_index"
            raise InputError(self.path, f"entries[{i}].instance.sha256", problem, remedy)
        return instance

    def with_entry(self, entry: Entry) -> "Library":
        """Return the library with the entry of the same name replaced."""
        place = self.position(entry.name)
        return replace(self, entries=(*self.entries[:place], entry, *self.entries[place + 1 :]))

    def text(self) -> str:
        """Return the index as JSON: a field of an entry a line, what is not set left out."""
        entries = [_entry_text(entry.model_dump(mode="json")) for entry in self.entries]
        return f'{{\n  "format": {json.dumps(FORMAT)},\n  "entries": [\n' + ",\n".join(entries) + "\n  ]\n}\n"

    def save(self) -> None:
        """Write the index file, whole or not at all."""
        write_atomically(self.path, self.text())


def _entry_text(entry: Mapping[str, Any]) -> str:
    fields = dict(entry)
    fields["options"] = {key: value for key, value in entry["options"].items() if value is not None}
    lines = [f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items()]
    return "    {\n" + ",\n".join(lines) + "\n    }"
