"""The folder of `plan --export-models`: the models behind a plan, and what they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.files import renewed_folder, require_renewable
from cappuccino.instance import Instance
from cappuccino.solvers.export.partition import PartitionModel, PartitionNames, column_table, write_partition
from cappuccino.solvers.export.readme import HEADING, readme
from cappuccino.solvers.export.replicas import MOST_CHOICES, write_replicas
from cappuccino.solvers.scheduling.schedule import PlacedReplica

_STEM = "set_partitioning"
_OWN = re.compile(rf"README\.txt|columns\.csv|{_STEM}\.(lp|mps)|replica-\d+\.pbtxt")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    """Replicas without a model, or with one of fewer micro-batches than samples: why, and what to do about it."""


@dataclass(frozen=True)
class PlanModels:
    """The models behind a plan."""

    instance: Instance
    """The whole one, also where the plan is on its free GPUs only."""
    partition: PartitionModel
    replicas: tuple[PlacedReplica, ...]
    """In the order of the plan."""

    @classmethod
    def of(cls, instance: Instance, partition: PartitionModel, replicas: Sequence[PlacedReplica]) -> "PlanModels":
        """Return the models of replicas in any order: plans number them by their adapters."""
        return cls(instance, partition, tuple(sorted(replicas, key=lambda r: r.schedule.problem.adapters)))

    def export(self, folder: Path, most_choices: int = MOST_CHOICES) -> Exported:
        """Write everything into a folder, whole or not at all; files of an earlier export are replaced.

        Parameters
        ----------
        most_choices
            Samples x micro-batches of a replica up to which its model is written.

        Raises
        ------
        InputError
            When the folder holds anything else, or cannot be written.
        """
        names = PartitionNames.of(self.partition)
        with renewed_folder(folder, is_own) as new:
            built = self.partition.build()
            write_partition(built, names, new, _STEM)
            (new / "columns.csv").write_text(column_table(self.partition, names), encoding="utf-8")
            replicas = write_replicas(self.replicas, new, most_choices)
            text = readme(self.instance, self.partition, names, built.unit, replicas)
            (new / "README.txt").write_text(text, encoding="utf-8")
            files = sorted(p.name for p in new.iterdir())
        return Exported(tuple(folder / name for name in files), tuple(r.reason for r in replicas if r.reason))


def is_own(path: Path) -> bool:
    """Return whether a file is one of an export: it is called so, and the README.txt beside it says so."""
    try:
        with (path.parent / "README.txt").open(encoding="utf-8", errors="replace") as told:
            return _OWN.fullmatch(path.name) is not None and told.readline().rstrip() == HEADING
    except OSError:
        return False


def require_exportable(folder: Path, outputs: Sequence[Path] = (), most_choices: int | None = None) -> None:
    """Raise InputError when no models could be written into a folder: before the work, not after it.

    Parameters
    ----------
    outputs
        Other files that are written: none may lie in the folder, or stand where it is to be.
    most_choices
        As of `PlanModels.export`; None: by default.
    """
    if most_choices is not None and most_choices < 1:
        raise InputError(folder, "export_limit", f"{most_choices} is not allowed", "give 1 or more")
    require_renewable(folder, is_own)
    for path in outputs:
        here, there = folder.resolve(), path.resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            problem = f'"{path}" would stand in the way of the models'
            raise InputError(folder, "", problem, "name a folder that holds nothing else")
