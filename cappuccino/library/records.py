"""What the index of the instance library says of an entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from cappuccino.errors import CappuccinoError
from cappuccino.files import Record
from cappuccino.instance import Adapter, Instance
from cappuccino.plan import Objective, objective_gap

TOLERANCE = 1e-5
"""Relative difference that two machines' fits of one cost table may show; figures closer than this count as equal."""
PROBE_TOLERANCE = 1e-4
"""The same of cost probes: curves differ most at the ends of what was profiled."""
PROBE_TOKENS = (64, 1024, 8192)
PROBE_ADAPTERS = (
    Adapter(name="small", dataset="probe", global_batch_size=1),
    Adapter(name="large", dataset="probe", global_batch_size=1, rank=64, target_modules="all-linear"),
)
_PROBES = len(PROBE_TOKENS) * len(PROBE_ADAPTERS)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, strict=True)]
EntryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]


class ContradictionError(CappuccinoError):
    """A proven bound stands above an objective that the checker confirmed: one of the two is wrong."""


class EntryFile(Record):
    """Where an entry's instance is."""

    file: str
    """Relative to the folder of the index."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """`Instance.digest`."""


class Size(Record):
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


class EntryOptions(Record):
    """What an entry's instance is planned for."""

    objective: Objective = Objective.GPU_TIME
    deadline_s: Positive | None = None
    """Every replica is to end within this, seconds."""
    num_stages: Count | None = None
    """Fixes the depth of every replica."""
    time_limit_s: Positive = 60.0
    """Of the planner in a full run of the library, seconds."""


class Finding(Record):
    """A figure and the run that found it."""

    value: NonNegative
    """In the unit of the entry's objective."""
    cappuccino: str
    """Version."""
    wall_time_s: NonNegative
    seed: Annotated[int, Field(ge=0, strict=True)]


class BestKnown(Record):
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


class Reference(Record):
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


class CostProbe(Record):
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


class Entry(Record):
    """One instance of the library with its options and the best that is known of it."""

    name: EntryName
    kind: Annotated[str, Field(min_length=1)]
    """What makes the instance hard."""
    instance: EntryFile
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


@dataclass(frozen=True)
class EntryResult:
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
