"""The plan: the contract between solvers, checker and runtime (`cappuccino.plan/1`)."""

import hashlib
import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from cappuccino.certificate import Certificate
from cappuccino.files import Record, parse_model, read_json, write_atomically

if TYPE_CHECKING:
    import pandas as pd

Index = Annotated[int, Field(ge=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = NonNegative

Forward = tuple[Literal["F"], Index]
Backward = tuple[Literal["B"], Index]
Step = tuple[Literal["S"], Index, Index]
Evaluate = tuple[Literal["E"], Index]


def _operation(value: Any) -> Forward | Backward | Step | Evaluate:
    if isinstance(value, list | tuple) and all(type(i) is int and i >= 0 for i in value[1:]):
        match tuple(value):
            case ("F", m):
                return "F", m
            case ("B", m):
                return "B", m
            case ("S", a, j):
                return "S", a, j
            case ("E", e):
                return "E", e
    known = '["F", micro-batch], ["B", micro-batch], ["S", adapter, step] or ["E", evaluation]'
    raise ValueError(f"Give {known}, indices counting from 0")


_INDEX_SCHEMA = {"type": "integer", "minimum": 0}
_OPERATION_SCHEMA = {
    "anyOf": [
        {"type": "array", "prefixItems": [kind, *indices], "minItems": 1 + len(indices), "maxItems": 1 + len(indices)}
        for kind, indices in (({"enum": ["F", "B", "E"]}, [_INDEX_SCHEMA]), ({"const": "S"}, [_INDEX_SCHEMA] * 2))
    ]
}
Operation = Annotated[
    Forward | Backward | Step | Evaluate,
    PlainValidator(_operation),
    PlainSerializer(list, return_type=list),
    WithJsonSchema(_OPERATION_SCHEMA),
]
"""`("F", m)` forward and `("B", m)` backward of micro-batch m; `("S", a, j)` optimizer step j of adapter a; `("E", e)`
forward of evaluation micro-batch e, which no backward follows.
"""
Sample = tuple[Index, Index]
"""Position in the replica's adapters, number of the sample in the adapter's training order."""
PRECISION = 1e-6
"""Gap up to which objective and bound are the same: that of the solvers."""


class Objective(StrEnum):
    """What a plan minimises."""

    GPU_TIME = "gpu_time"
    """Sum over replicas of stages x makespan, GPU-seconds."""
    MAKESPAN = "makespan"
    """Longest makespan of a replica, seconds."""
    COST = "cost"
    """Sum over replicas of price x stages x makespan, money."""


class Status(StrEnum):
    """How good a plan is known to be."""

    OPTIMAL = "optimal"
    """Objective and bound meet to the precision of the solvers."""
    WITHIN_GAP = "within_gap"
    """The gap is within the one asked for."""
    FEASIBLE = "feasible"
    """Valid, with the gap stated."""


class Recompute(StrEnum):
    """What a stage keeps of a micro-batch between its forward and its backward."""

    NONE = "none"
    """All activations that the backward needs."""
    FULL = "full"
    """The input of every decoder layer: the backward runs the layer's forward again."""


class MicroBatch(Record):
    """Samples that run together, adapter by adapter."""

    samples: Annotated[tuple[Sample, ...], Field(min_length=1)]


class EvaluationBatch(Record):
    """Samples of an adapter's evaluation data that run together, without gradients."""

    adapter: Index
    """Position in the replica's adapters."""
    step: Index
    """Optimizer step behind which it is evaluated."""
    samples: Annotated[tuple[Index, ...], Field(min_length=1)]
    """Numbers in the adapter's evaluation data."""


class AdapterSaving(Record):
    """What an adapter costs on its own and what it adds to its replica; null what there was no time to find out.

    Both are figures of schedules found, not bounds.
    """

    alone_gpu: str | None = None
    """GPU type of the best separate run found: that of the least GPU time, of the least money in plans for cost."""
    alone_num_stages: Annotated[int, Field(gt=0, strict=True)] | None = None
    """GPUs of the separate run."""
    alone_gpu_time_s: Seconds | None = None
    """GPU time of the separate run, GPU-seconds. It meets the plan's deadline or, in plans for makespan, makespan."""
    added_gpu_time_s: Seconds | None = None
    """GPU time of the replica less that of the best one found for its other adapters on no more GPUs of its type."""
    alone_cost: NonNegative | None = None
    """Money for the separate run, where the pool has a price."""
    added_cost: NonNegative | None = None
    """Money for the GPU time added, likewise."""

    @model_validator(mode="after")
    def _whole_run(self) -> "AdapterSaving":
        run = (self.alone_gpu, self.alone_num_stages, self.alone_gpu_time_s)
        if any(v is None for v in run) and any(v is not None for v in (*run, self.alone_cost)):
            raise ValueError("Give alone_gpu, alone_num_stages and alone_gpu_time_s, or none of them")
        if self.added_gpu_time_s is None and self.added_cost is not None:
            raise ValueError("Give added_gpu_time_s with added_cost")
        return self

    @property
    def evaluated(self) -> bool:
        """Whether the adapter's saving is known."""
        return self.alone_gpu_time_s is not None and self.added_gpu_time_s is not None


class Replica(Record):
    """One pipeline: its adapters, micro-batches and one program per stage."""

    id: Index
    gpu: str
    num_stages: Annotated[int, Field(gt=0, strict=True)]
    layers_per_stage: Annotated[tuple[Annotated[int, Field(gt=0, strict=True)], ...], Field(min_length=1)] | None = None
    """Decoder layers by stage; null leaves an even split to the runtime."""
    recompute: Recompute | None = None
    """Activation recomputation; null where the cost table does not say: the runtime then recomputes nothing."""
    adapters: Annotated[tuple[str, ...], Field(min_length=1)]
    makespan_s: Seconds
    lower_bound_s: Seconds | None
    """Proven bound on the makespan of these adapters on these stages; null when none was proven."""
    peak_memory_gib: tuple[NonNegative, ...]
    """By stage."""
    micro_batches: tuple[MicroBatch, ...]
    evaluations: tuple[EvaluationBatch, ...] = ()
    """Every sample of an adapter's evaluation data once for every step behind which it is evaluated."""
    programs: tuple[tuple[Operation, ...], ...]
    """By stage; a stage runs its list in order, each operation as soon as its input has arrived."""
    savings: tuple[AdapterSaving, ...] | None = None
    """By adapter; null in plans that do not compare with separate runs."""


class FoundPlan(Record):
    """A plan that was the best one for a while in the search for this one."""

    time_s: NonNegative
    """When it was found, seconds from the beginning of the search."""
    method: str
    """What found it: `allocation` (another choice of replicas), `baseline` (one of those that plans are compared with),
    `separation` (of adapters that gain by it) or, in one replica, `construction`, `annealing`, `packing_window`,
    `whole_replica`, `order_window` (the last three: CP-SAT).
    """
    objective: NonNegative
    """Its objective, in the objective's unit."""
    bound: NonNegative
    """Proven bound at that time, likewise."""


class InstanceReference(Record):
    """Which instance a plan belongs to."""

    name: str
    sha256: str
    """`Instance.digest`."""


class Plan(Record):
    """Replicas with their programs, the objective reached and what is proven about it."""

    model_config = ConfigDict(populate_by_name=True)

    format: Literal["cappuccino.plan/1"] = "cappuccino.plan/1"
    instance: InstanceReference
    objective: Objective
    status: Status
    gpu_time_s: Seconds
    makespan_s: Seconds
    cost: NonNegative | None = None
    """Money, where every pool used has a price."""
    deadline_s: Seconds | None = None
    """Every replica's makespan was to be at most this."""
    lower_bound: Annotated[NonNegative | None, Field(alias="lower_bound_s")]
    """Proven bound on the objective, in the objective's unit; the file's name for it is older than money."""
    gap: NonNegative | None
    """`(objective - bound) / objective`."""
    certificate: Certificate | None = None
    """What proves the bound; null in plans without a bound and in those written before there were any."""
    solver: dict[str, float | int | str]
    incumbents: tuple[FoundPlan, ...] = ()
    """How the search came to it; the last one is this plan."""
    done: dict[str, Annotated[int, Field(gt=0, strict=True)]] = Field(default_factory=dict)
    """By adapter, the optimizer steps that were done when it was planned: it holds the others. Times, bound and gap are
    of these; adapters without any are in no replica.
    """
    replicas: Annotated[tuple[Replica, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _earlier_status(cls, data: Any) -> Any:
        """Read "optimal" in plans older than certificates as it was meant: within the gap asked for."""
        older = isinstance(data, dict) and "certificate" not in data and data.get("status") == Status.OPTIMAL
        if older and isinstance(gap := data.get("gap"), float) and gap > PRECISION:
            return {**data, "status": Status.WITHIN_GAP.value}
        return data

    @property
    def objective_value(self) -> float:
        """The value of the objective, in its unit."""
        if self.objective is Objective.COST:
            if self.cost is None:
                raise ValueError("a plan for the objective cost carries its cost")
            return self.cost
        return self.gpu_time_s if self.objective is Objective.GPU_TIME else self.makespan_s

    @classmethod
    def load(cls, path: Path | str) -> "Plan":
        """Read a plan file.

        Raises
        ------
        InputError
            When the file is truncated or malformed; validity is the checker's business.
        """
        path = Path(path)
        return parse_model(cls, read_json(path), path)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's content."""
        return hashlib.sha256(json.dumps(self.dump(), sort_keys=True).encode()).hexdigest()

    def dump(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: Path | str) -> None:
        """Write the plan file, whole or not at all."""
        write_atomically(Path(path), json.dumps(self.dump(), separators=(",", ":")) + "\n")

    def to_dataframe(self) -> "pd.DataFrame":
        """Return the replicas as a table, a row each; `.explode("adapters")` gives a row an adapter.

        Returns
        -------
        pandas.DataFrame
            With these columns; what is not known is missing (NaN or None):

            - `replica`: its id.
            - `gpu`: GPU type.
            - `num_stages`: pipeline stages, as many GPUs.
            - `recompute`: activation recomputation, "none" or "full".
            - `layers_per_stage`: decoder layers, a tuple by stage.
            - `adapters`: names, a tuple.
            - `micro_batches`, `evaluations`: how many micro-batches are trained and evaluated.
            - `makespan_s`, `lower_bound_s`: seconds, and the proven bound on them.
            - `gpu_time_s`: stages times makespan, GPU-seconds.
            - `peak_memory_gib`: of the fullest stage, GiB.
            - `alone_gpu_time_s`: GPU-seconds of the best separate runs found for its adapters together.

        Examples
        --------
        >>> from importlib.resources import files
        >>> import cappuccino
        >>> instance = cappuccino.Instance.load(files("cappuccino.instances") / "tiny1-llama7b.json")
        >>> plan = cappuccino.plan(instance, time_limit=None)
        >>> table = plan.to_dataframe()
        >>> bool(abs(table["gpu_time_s"].sum() / plan.gpu_time_s - 1) < 1e-9)
        True
        """
        import pandas as pd  # noqa: PLC0415 - a plan is read in a moment, pandas is not

        return pd.DataFrame([_table_row(replica) for replica in self.replicas])


def _table_row(replica: Replica) -> dict[str, Any]:
    """Return a replica's row of `Plan.to_dataframe`."""
    alone = [saving.alone_gpu_time_s for saving in replica.savings or ()]
    known = [s for s in alone if s is not None]
    return {
        "replica": replica.id,
        "gpu": replica.gpu,
        "num_stages": replica.num_stages,
        "recompute": None if replica.recompute is None else replica.recompute.value,
        "layers_per_stage": replica.layers_per_stage,
        "adapters": replica.adapters,
        "micro_batches": len(replica.micro_batches),
        "evaluations": len(replica.evaluations),
        "makespan_s": replica.makespan_s,
        "lower_bound_s": math.nan if replica.lower_bound_s is None else replica.lower_bound_s,
        "gpu_time_s": replica.num_stages * replica.makespan_s,
        "peak_memory_gib": max(replica.peak_memory_gib, default=math.nan),
        "alone_gpu_time_s": sum(known) if len(known) == len(replica.adapters) else math.nan,
    }


def objective_gap(objective: float, bound: float | None) -> float | None:
    """Return `(objective - bound) / objective`, None without a bound."""
    if bound is None:
        return None
    return max(0.0, (objective - bound) / objective) if objective > 0 else 0.0


def plan_status(gap: float | None, tolerance: float) -> Status:
    """Return how good a plan of this gap is where one of `tolerance` was asked for."""
    if gap is None or gap > max(tolerance, PRECISION):
        return Status.FEASIBLE
    return Status.OPTIMAL if gap <= PRECISION else Status.WITHIN_GAP


def rounded_bound(bound: float, value: float) -> float:
    """Return a bound that rounding put a hair above the value reached, as that value.

    A bound further above stays as it is: it is wrong, and the checker is to see it.
    """
    return value if value < bound <= value * (1 + 1e-9) else bound


def even_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Split layers evenly; the first stages take what is left over, since the last one has the head."""
    share, rest = divmod(num_layers, num_stages)
    return tuple(share + (s < rest) for s in range(num_stages))
