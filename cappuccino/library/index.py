"""The instance library: shipped instances, what each is planned for, and the best that is known of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cappuccino import instances
from cappuccino.costs import CostModel
from cappuccino.errors import CappuccinoError, InputError
from cappuccino.files import parse_model, read_json, write_atomically
from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.plan import Objective, objective_gap

FORMAT = "cappuccino.index/2"
INDEX_NAME = "index.json"
SHIPPED = Path(instances.__file__).parent
"""Folder of the library that comes with the package."""
TOLERANCE = 1e-5
"""Relative difference that two machines' fits of one cost table may show; figures closer than this count as equal."""
PROBE_TOLERANCE = 1e-4
"""The same of cost probes: curves differ most at the ends of what was profiled."""
_PROBE_TOKENS = (64, 1024, 8192)
_PROBE_ADAPTERS = (
    Adapter(name="small", dataset="probe", global_batch_size=1),
    Adapter(name="large", dataset="probe", global_batch_size=1, rank=64, target_modules="all-linear"),
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, strict=True)]
EntryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]

_PROBES = len(_PROBE_TOKENS) * len(_PROBE_ADAPTERS)


class ContradictionError(CappuccinoError):
    """A proven bound stands above an objective that the checker confirmed: one of the two is wrong."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstanceFile(_Record):
    """Where an entry's instance is."""

    file: str
    """Relative to the folder of the index."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """`Instance.digest`."""


class Size(_Record):
    """How large an instance is."""

    adapters: Count
    steps: Count
    """Optimizer steps of all adapters."""
    samples: Count
    """Samples trained, repetitions counted."""
    gpus: Annotated[dict[str, Count], Field(min_length=1)]
    """By pool."""

    @classmethod
    def of(cls, instance: Instance) -> "Size":
        """Return the size of an instance."""
        steps = [instance.num_steps(i) for i in range(len(instance.adapters))]
        return cls(
            adapters=len(steps),
            steps=sum(steps),
            samples=sum(n * a.global_batch_size for n, a in zip(steps, instance.adapters, strict=True)),
            gpus={p.gpu: p.count for p in instance.gpu_pools},
        )


class EntryOptions(_Record):
    """What an entry's instance is planned for."""

    objective: Objective = Objective.GPU_TIME
    deadline_s: Positive | None = None
    """Every replica is to end within this, seconds."""
    num_stages: Count | None = None
    """Fixes the depth of every replica."""
    time_limit_s: Positive = 60.0
    """Of the planner in a full run of the library, seconds."""


class Finding(_Record):
    """A figure and the run that found it."""

    value: NonNegative
    """In the unit of the entry's objective."""
    cappuccino: str
    """Version."""
    wall_time_s: NonNegative
    seed: Annotated[int, Field(ge=0, strict=True)]


class BestKnown(_Record):
    """The least objective and the largest bound found so far, by the same run or by two."""

    objective: Finding
    """Of a plan that the checker confirmed."""
    bound: Finding | None
    """Proven by the planner; null where none was."""
    gap: NonNegative | None
    """`(objective - bound) / objective`."""

    @model_validator(mode="after")
    def _consistent(self) -> "BestKnown":
        value, bound = self.objective.value, None if self.bound is None else self.bound.value
        if bound is not None and bound > value * (1 + TOLERANCE):
            raise ValueError(f"A proven bound ({bound:g}) cannot stand above the objective ({value:g}); correct it")
        gap = objective_gap(value, bound)
        if (gap is None) != (self.gap is None) or (gap is not None and abs(gap - (self.gap or 0.0)) > TOLERANCE):
            raise ValueError(f"State the gap that objective and bound give: {gap}")
        return self

    @classmethod
    def of(cls, objective: Finding, bound: Finding | None) -> "BestKnown":
        """Return the two findings with their gap."""
        gap = objective_gap(objective.value, None if bound is None else bound.value)
        return cls(objective=objective, bound=bound, gap=gap)


class Reference(_Record):
    """What the baseline `reference` reaches."""

    value: NonNegative | None
    """In the unit of the entry's objective; null where it has no plan to compare with."""
    reason: str | None = None
    """Why not."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> "Reference":
        if (self.value is None) == (self.reason is None):
            raise ValueError("Give either a value or the reason why there is none")
        return self


class CostProbe(_Record):
    """Some figures of a fitted cost model at one depth, by which a later fit is seen to be the same."""

    num_stages: Count
    slots_s: Annotated[tuple[Positive, ...], Field(min_length=_PROBES, max_length=_PROBES)]
    """Forward, backward, transfer and optimizer step of one sample of 64, 1,024 and 8,192 tokens, seconds on one of the
    stages: first of an adapter of rank 16 on q, k, v and o, then of one of rank 64 on all linear modules."""
    max_tokens: Annotated[int, Field(ge=0, strict=True)]
    """Largest micro-batch that fits a stage."""

    def same(self, other: "CostProbe") -> bool:
        """Return whether the two are of one cost model, within what two machines' fits may differ."""
        near = np.allclose(self.slots_s, other.slots_s, rtol=PROBE_TOLERANCE, atol=0)
        tokens = abs(self.max_tokens - other.max_tokens) <= max(1.0, PROBE_TOLERANCE * self.max_tokens)
        return self.num_stages == other.num_stages and near and tokens


Probes = tuple[CostProbe, ...]
"""Of one cost model, by profiled depth."""


class Entry(_Record):
    """One instance of the library with its options and the best that is known of it."""

    name: EntryName
    kind: Annotated[str, Field(min_length=1)]
    """What makes the instance hard."""
    instance: InstanceFile
    size: Size
    options: EntryOptions
    costs: dict[str, Probes] | None = None
    """By GPU type, the cost models that the figures below were found with; null where there are none."""
    best_known: BestKnown | None = None
    reference: Reference | None = None
    """Null until a run has asked."""

    @model_validator(mode="after")
    def _figures_have_costs(self) -> "Entry":
        if self.costs is None and (self.best_known is not None or self.reference is not None):
            raise ValueError("Figures need the `costs` that they were found with")
        return self

    def stale(self, costs: Mapping[str, Probes]) -> bool:
        """Return whether the figures were found with other costs than these."""
        known = self.costs
        if known is None:
            return False
        same = known.keys() == costs.keys() and all(len(known[g]) == len(costs[g]) for g in costs)
        return not (same and all(a.same(b) for g in costs for a, b in zip(known[g], costs[g], strict=True)))


class _Index(_Record):
    format: Literal["cappuccino.index/2"]
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]


@dataclass(frozen=True)
class RunResult:
    """What a run of an entry found; its plan is one that the checker confirmed."""

    value: float
    """Objective, as the checker's simulation found it."""
    bound: float | None
    costs: Mapping[str, Probes]
    reference: Reference
    wall_time_s: float
    seed: int
    cappuccino: str

    def finding(self, value: float) -> Finding:
        """Return a figure as found by this run."""
        return Finding(value=value, cappuccino=self.cappuccino, wall_time_s=round(self.wall_time_s, 1), seed=self.seed)


def require_no_contradiction(entry: Entry, value: float, bound: float | None, reference: float | None = None) -> None:
    """Compare checked objectives and a proven bound with each other and with what is known of the entry.

    Parameters
    ----------
    value, bound
        Of a run.
    reference
        Objective of the baseline's plan, where it has one that obeys the entry's options.

    Raises
    ------
    ContradictionError
        When a bound stands above an objective.
    """
    known = entry.best_known
    bounds = {
        "the best-known bound": known.bound.value if known and known.bound else None,
        "this run's bound": bound,
    }
    objectives = {
        "this run's checked objective": value,
        "the best-known objective": known.objective.value if known else None,
        "the checked objective of the reference": reference,
    }
    for what, low in bounds.items():
        for other, high in objectives.items():
            if low is not None and high is not None and low > high * (1 + TOLERANCE):
                message = f'entry "{entry.name}": {what} {low:.8g} stands above {other} {high:.8g}'
                raise ContradictionError(f"{message}; one of them is wrong: find out which before either is kept")


def updated_entry(entry: Entry, run: RunResult) -> Entry:
    """Return the entry with the least objective and the largest bound of what is known and what the run found.

    Figures that were found with other costs are replaced.

    Raises
    ------
    ContradictionError
        When known and found figures contradict each other.
    """
    objective, bound = run.finding(run.value), None if run.bound is None else run.finding(run.bound)
    known = None if entry.stale(run.costs) else entry.best_known
    require_no_contradiction(entry.model_copy(update={"best_known": known}), run.value, run.bound, run.reference.value)
    if known is not None:
        if known.objective.value <= objective.value * (1 + TOLERANCE):
            objective = known.objective
        if known.bound is not None and (bound is None or known.bound.value >= bound.value * (1 - TOLERANCE)):
            bound = known.bound
    return entry.model_copy(
        update={
            "costs": dict(run.costs),
            "best_known": BestKnown.of(objective, bound),
            "reference": run.reference,
        }
    )


def cost_probes(instance: Instance, costs: Mapping[str, CostModel]) -> dict[str, Probes]:
    """Return the probes of an instance's cost models, by GPU type."""
    models = [(pool, costs[pool.gpu]) for pool in instance.gpu_pools]
    return {pool.gpu: tuple(_probe(model, pool, g) for g in model.profiled) for pool, model in models}


def _probe(model: CostModel, pool: GpuPool, num_stages: int) -> CostProbe:
    forward, backward = model.forward_curve(num_stages), model.backward_curve(num_stages)
    adapters = model.adapter_costs(num_stages, _PROBE_ADAPTERS)
    slots = []
    for adapter in range(len(_PROBE_ADAPTERS)):
        for tokens in _PROBE_TOKENS:
            more = adapters.of_micro_batch([adapter], [tokens], padded=False)
            slot = forward(tokens, tokens**2, *more[:2]) + backward(tokens, tokens**2, *more[2:])
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
        for stages in costs[pool.gpu].stage_counts(pool.count)
        if costs[pool.gpu].max_tokens(stages, pool.memory_gib) >= shortest
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
