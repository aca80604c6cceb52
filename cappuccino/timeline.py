"""When every operation of a replica ran: simulated or measured, and its file, which Perfetto opens.

The file is Chrome trace-event JSON: one process per replica, one thread per stage, complete events in microseconds, the
operation in `args.operation`; `otherData` says `cappuccino.trace/1` and whether times were simulated or measured.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cappuccino.files import parse_model, read_json, write_atomically
from cappuccino.plan import Operation, Replica

FORMAT = "cappuccino.trace/1"
_US = 1e6
Kind = Literal["simulated", "measured"]


@dataclass(frozen=True)
class Timeline:
    """Start and end of every operation of one replica, seconds from the replica's first operation."""

    replica: int
    programs: tuple[tuple[Operation, ...], ...]
    """By stage."""
    starts: tuple[np.ndarray, ...]
    """By stage, shape (operations of the stage,)."""
    ends: tuple[np.ndarray, ...]
    """Likewise."""
    reference_s: tuple[float, ...] = ()
    """By stage, what a small fixed piece of work took before and after the run: how fast the machine was. Empty where
    nobody measured it."""

    @property
    def makespan(self) -> float:
        """End of the last operation, seconds."""
        return max((float(e[-1]) for e in self.ends if len(e)), default=0.0)

    @property
    def busy(self) -> np.ndarray:
        """Seconds each stage spends in operations, shape (stages,)."""
        return np.array([float((e - s).sum()) for s, e in zip(self.starts, self.ends, strict=True)])

    @property
    def bubble(self) -> float:
        """Fraction of the stages' time in which they do nothing."""
        total = self.makespan * len(self.programs)
        return max(0.0, float(1 - self.busy.sum() / total)) if total else 0.0


def operation_adapters(operation: Operation, replica: Replica) -> tuple[str, ...]:
    """Return the names of the adapters that an operation works for, in the order of the replica."""
    kind, number = operation[0], operation[1]
    if kind == "S":
        return (replica.adapters[number],)
    if kind == "E":
        return (replica.adapters[replica.evaluations[number].adapter],)
    found = {adapter for adapter, _ in replica.micro_batches[number].samples}
    return tuple(name for i, name in enumerate(replica.adapters) if i in found)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="ignore")
    operation: Operation


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")
    ph: Literal["X"]
    pid: int
    tid: int
    ts: float
    dur: Annotated[float, Field(ge=0)]
    args: _Arguments


class _Other(BaseModel):
    model_config = ConfigDict(extra="ignore")
    format: Literal["cappuccino.trace/1"]
    kind: Kind
    instance_sha256: str
    reference_time_s: dict[int, tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]] = Field(
        default_factory=dict
    )


class _TraceFile(BaseModel):
    model_config = ConfigDict(extra="ignore")
    traceEvents: list[dict[str, Any]]  # noqa: N815 -- the format's own names
    otherData: _Other  # noqa: N815


_VERBS = {"F": "forward", "B": "backward", "S": "step", "E": "evaluation"}


def _event_name(operation: Operation, replica: Replica) -> str:
    """Return what a trace calls an operation: `forward 3: docs, code`, `step 2: docs`."""
    number = operation[2] if operation[0] == "S" else operation[1]
    return f"{_VERBS[operation[0]]} {number}: {', '.join(operation_adapters(operation, replica))}"


def write_trace(
    path: Path, timelines: Sequence[Timeline], replicas: Sequence[Replica], kind: Kind, instance_sha256: str
) -> None:
    """Write timelines as a trace file, whole or not at all.

    Parameters
    ----------
    replicas
        Of the plan, at least those of the timelines: operations are called by their adapters.
    """
    planned = {replica.id: replica for replica in replicas}
    events: list[dict[str, Any]] = []
    for line in timelines:
        name = {"name": f"replica {line.replica}"}
        events.append({"ph": "M", "name": "process_name", "pid": line.replica, "args": name})
        for stage, program in enumerate(line.programs):
            thread = {"ph": "M", "name": "thread_name", "pid": line.replica, "tid": stage}
            events.append({**thread, "args": {"name": f"stage {stage}"}})
            for operation, start, end in zip(program, line.starts[stage], line.ends[stage], strict=True):
                events.append(
                    {
                        "ph": "X",
                        "name": _event_name(operation, planned[line.replica]),
                        "cat": operation[0],
                        "pid": line.replica,
                        "tid": stage,
                        "ts": float(start) * _US,
                        "dur": float(end - start) * _US,
                        "args": {"operation": list(operation)},
                    }
                )
    other: dict[str, Any] = {"format": FORMAT, "kind": kind, "instance_sha256": instance_sha256}
    references = {line.replica: line.reference_s for line in timelines if line.reference_s}
    if references:
        other["reference_time_s"] = references
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}
    write_atomically(path, json.dumps(document) + "\n")


def read_trace(path: Path) -> tuple[list[Timeline], Kind, str]:
    """Read a trace file: its timelines, their kind and the digest of the instance.

    Raises
    ------
    InputError
        When the file is no trace of this project.
    """
    data = parse_model(_TraceFile, read_json(path), path)
    stages: dict[int, dict[int, list[_Event]]] = {}
    for i, raw in enumerate(data.traceEvents):
        if raw.get("ph") == "X":
            event = parse_model(_Event, raw, f"{path}: traceEvents[{i}]")
            stages.setdefault(event.pid, {}).setdefault(event.tid, []).append(event)
    lines = []
    for replica, by_stage in sorted(stages.items()):
        ordered = [sorted(by_stage.get(s, []), key=lambda e: e.ts) for s in range(max(by_stage) + 1)]
        starts = tuple(np.array([e.ts / _US for e in events]) for events in ordered)
        ends = tuple(np.array([(e.ts + e.dur) / _US for e in events]) for events in ordered)
        programs = tuple(tuple(e.args.operation for e in events) for events in ordered)
        references = data.otherData.reference_time_s.get(replica, ())
        lines.append(Timeline(replica, programs, starts, ends, references))
    return lines, data.otherData.kind, data.otherData.instance_sha256
