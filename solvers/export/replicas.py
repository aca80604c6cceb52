"""Packing and order of a plan's replicas as CP-SAT models in text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cappuccino.errors import CappuccinoError
from cappuccino.solvers.scheduling.schedule import PlacedReplica, ReplicaSchedule
from cappuccino.solvers.scheduling.whole import WholeModel, whole_model

MOST_CHOICES = 10_000
"""Samples x micro-batches of a model, which decide its size: so many are about 50 MB of text."""


@dataclass(frozen=True)
class ReplicaFile:
    """A replica's model, or why there is none."""

    number: int
    """Of the replica in the plan."""
    name: str | None
    """Of the file; None where there is none."""
    reason: str
    """Why there is none, and what to do about it; of a model with fewer micro-batches than samples, how many."""
    whole: WholeModel | None
    """The model written, with the grid that its integers stand on."""
    schedule: ReplicaSchedule


def write_replicas(replicas: Sequence[PlacedReplica], folder: Path, most_choices: int) -> list[ReplicaFile]:
    """Write `replica-N.pbtxt` for every replica whose model is small enough.

    Parameters
    ----------
    replicas
        In the order of the plan.
    most_choices
        Samples x micro-batches that a model may have.

    Raises
    ------
    CappuccinoError
        When a file cannot be written.
    """
    return [_write(number, replica.schedule, folder, most_choices) for number, replica in enumerate(replicas)]


def _write(number: int, schedule: ReplicaSchedule, folder: Path, most_choices: int) -> ReplicaFile:
    problem = schedule.problem
    if problem.instance.layout == "padded":
        reason = f"replica {number} has no model: the model packs samples that are not padded"
        return ReplicaFile(number, None, reason, None, schedule)
    samples = sum(x.size for x in problem.lengths)
    planned = sum(b.evaluation is None for b in schedule.order)
    if samples * planned > most_choices:
        reason = (
            f"replica {number} is too large for one model: {samples} samples x {planned} micro-batches = "
            f"{samples * planned} choices, the limit is {most_choices}; raise it (export limit {samples * planned}, "
            f"--export-limit on the command line), at some 5 KB of text a choice, or plan fewer steps"
        )
        return ReplicaFile(number, None, reason, None, schedule)
    slots = min(samples, most_choices // samples)
    whole = whole_model(schedule, slots)
    name = f"replica-{number}.pbtxt"
    if not whole.model.model.export_to_file(str(folder / name)):
        raise CappuccinoError(f"{folder / name}: cannot be written; free space on the disk")
    fewer = (
        f"replica {number} may have {slots} micro-batches in its model, not one a sample ({samples}), "
        f"for the limit of {most_choices} choices: an export limit of {samples**2} allows every packing"
    )
    return ReplicaFile(number, name, "" if slots == samples else fewer, whole, schedule)
