"""What the stages of a replica leave behind, and how it becomes one result; needs no torch.

Every stage writes a report into the results folder of its replica; the launcher reads them when all stages are done.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from cappuccino.errors import CappuccinoError, InputError
from cappuccino.files import parse_model, read_json, write_atomically
from cappuccino.plan import Replica
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.timeline import Timeline


class StageReport(BaseModel):
    """What one stage measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: tuple[float, ...]
    """By operation, seconds on the machine's monotonic clock."""
    ends: tuple[float, ...]
    """Likewise."""
    memory_gib: tuple[float, ...]
    """Highest memory use of the process so far, after every operation: resident on the CPU, allocated on the GPU."""
    skipped: tuple[int, ...] = ()
    """Positions in the program of what did not run, since adapters were stopped; nothing above is of these."""
    parts: tuple[PartCost, ...] = ()
    """Parts of the operations, where they were measured."""
    reference_s: tuple[float, ...] = ()
    """What the reference kernel took before and after the operations; empty in a profile, whose journal has it."""


class StageFailure(BaseModel):
    """Why one stage gave up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: float
    """When, seconds on the machine's monotonic clock."""
    operation: int | None
    """Position in the program; None before its begin."""
    reason: str
    """Last lines of the traceback."""
    input_error: tuple[str, str, str, str] | None
    """Source, field, problem and remedy, when the user's input is at fault."""


def report_file(results: Path, stage: int) -> Path:
    """Return where a stage writes its report."""
    return results / f"stage-{stage}.json"


def failure_file(results: Path, stage: int) -> Path:
    """Return where a stage writes why it failed."""
    return results / f"stage-{stage}-failure.json"


def write_record(path: Path, record: StageReport | StageFailure) -> None:
    """Write a report or a failure, whole or not at all."""
    write_atomically(path, json.dumps(record.model_dump(mode="json")) + "\n")


def read_reports(results: Path, num_stages: int) -> list[StageReport]:
    """Return the reports by stage."""
    reports = []
    for stage in range(num_stages):
        file = report_file(results, stage)
        reports.append(parse_model(StageReport, read_json(file), file))
    return reports


def read_failure(results: Path, stage: int) -> StageFailure | None:
    """Return why a stage failed, None where it could not say."""
    file = failure_file(results, stage)
    return parse_model(StageFailure, read_json(file), file) if file.exists() else None


def measured_timeline(replica: Replica, reports: Sequence[StageReport]) -> Timeline:
    """Return the operations that ran, on one clock that starts with the first of them."""
    origin = min((r.starts[0] for r in reports if r.starts), default=0.0)
    starts = tuple(np.array(r.starts) - origin for r in reports)
    ends = tuple(np.array(r.ends) - origin for r in reports)
    programs = tuple(
        tuple(operation for k, operation in enumerate(program) if k not in skipped)
        for program, skipped in zip(replica.programs, (set(r.skipped) for r in reports), strict=True)
    )
    references = tuple(float(np.median(r.reference_s)) for r in reports if r.reference_s)
    return Timeline(replica.id, programs, starts, ends, references if len(references) == len(reports) else ())


def evaluations_as_json(evaluations: Mapping[str, Mapping[int, float]]) -> str:
    """Return the losses on evaluation data as JSON, which knows no NaN: by adapter, after how many steps which loss."""
    found = {
        name: [{"steps": step + 1, "loss": loss if math.isfinite(loss) else None} for step, loss in losses.items()]
        for name, losses in evaluations.items()
    }
    return json.dumps(found, indent=2) + "\n"


def losses_as_json(losses: Mapping[str, Sequence[float]]) -> str:
    """Return the losses as JSON: a diverged loss is null."""
    finite = {name: [x if math.isfinite(x) else None for x in values] for name, values in losses.items()}
    return json.dumps(finite, indent=2) + "\n"


def best_step(losses: Mapping[int, float]) -> int | None:
    """Return the step behind which the loss was least; None where none was finite."""
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda step: finite[step]) if finite else None


def as_failure(error: BaseException, time_s: float, reason: str, operation: int | None) -> StageFailure:
    """Return what a stage says about the exception that ended it."""
    fields = None
    if isinstance(error, InputError):
        fields = (error.source, error.field, error.problem, error.remedy)
    elif isinstance(error, CappuccinoError):
        reason = str(error)
    return StageFailure(time_s=time_s, operation=operation, reason=reason, input_error=fields)
