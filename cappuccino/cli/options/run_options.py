"""What a plan is run from and how, as `run` and its kin take it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.errors import InputError

if TYPE_CHECKING:
    from cappuccino.runtime.launch.keeper import CheckpointOptions


class RecomputeChoice(StrEnum):
    """Activation recomputation as the command line asks for it."""

    AUTO = "auto"
    NONE = "none"
    FULL = "full"


class KeepChoice(StrEnum):
    """Which weights an adapter is written with."""

    LAST = "last"
    BEST = "best"


DIVERGED = 3
"""Exit code of a run that ended with adapters whose loss or gradients were not finite."""
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file (cappuccino.plan/1).")]
InstanceOption = Annotated[Path, typer.Option("--instance", help="The instance that the plan was made for.")]
BackboneOption = Annotated[
    str, typer.Option("--backbone", help="Folder of the Hugging Face backbone, or its name on the hub.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with <dataset>.jsonl, .json or .parquet for every dataset; default: the sources in the instance.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, float64 or bfloat16.")]
TableDtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, float64 or bfloat16; by default the cost table's.")
]
RecomputeOption = Annotated[RecomputeChoice, typer.Option(help="Activation recomputation; auto: as planned.")]
BaseModelOption = Annotated[
    str | None,
    typer.Option(help="What the adapters call their backbone; by default its name on the hub, or the path given."),
]
KeepOption = Annotated[
    KeepChoice, typer.Option(help="Weights kept: those of the last step, or of the least evaluation loss.")
]
EveryOption = Annotated[
    str,
    typer.Option(
        metavar="K|auto|none", help="Optimizer steps of an adapter between checkpoints; auto: a tenth of its steps."
    ),
]
KeptOption = Annotated[int, typer.Option(min=1, help="Checkpoints that stay of every adapter.")]


def checkpoint_options(every: str, keep: int) -> "CheckpointOptions | None":
    """Return when checkpoints are written, as the command line says it.

    Parameters
    ----------
    every
        Steps between two, "auto" or "none".
    keep
        How many stay of every adapter.

    Raises
    ------
    InputError
        When `every` is none of these.
    """
    from cappuccino.runtime.launch.keeper import CheckpointOptions  # noqa: PLC0415

    if every == "none":
        return None
    if every != "auto" and not (every.isascii() and every.isdigit() and int(every) > 0):
        raise InputError("--checkpoint-every", "", f'"{every}" is no number of steps', "give 1 or more, auto or none")
    return CheckpointOptions(every=None if every == "auto" else int(every), keep=keep)
