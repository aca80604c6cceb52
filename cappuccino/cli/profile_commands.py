"""profile: measures a backbone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli import console
from cappuccino.cli.console import JsonFlag
from cappuccino.cli.run_commands import DeviceOption, DtypeOption
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.runtime.profiling.grid import Targets

FEWEST_ROWS_TO_CROSS_VALIDATE = 8
TOO_FAR_OFF = 0.2
"""Error on rows left out from which on a plan is not to be relied on."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(profile)


def profile(
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="Folder of the Hugging Face backbone, its name on the hub, or a config.json: random weights then.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE", help="Where the cost table is written.")],
    name: Annotated[str | None, typer.Option(help="Name of the backbone in the table; default: the folder's.")] = None,
    gpu: Annotated[str, typer.Option(help="Name of this machine's GPU type in the table.")] = "cpu",
    num_stages: Annotated[str, typer.Option(help="Stage counts to profile, comma-separated.")] = "1,2",
    tokens: Annotated[str, typer.Option(help="Micro-batch sizes in tokens, comma-separated.")] = "64,128,256,512,1024",
    sequence_lengths: Annotated[str, typer.Option(help="Sample lengths in tokens, comma-separated.")] = "32,128,512",
    num_adapters: Annotated[str, typer.Option(help="Adapters in a micro-batch besides 1, comma-separated.")] = "2,4",
    ranks: Annotated[str, typer.Option(help="Ranks besides 16, comma-separated.")] = "64",
    target_modules: Annotated[
        str, typer.Option(help="Target modules besides q, k, v and o, joined by +, comma-separated.")
    ] = "q_proj+v_proj,all-linear",
    micro_batches: Annotated[int, typer.Option(min=1, help="Micro-batches of an optimizer step.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Steps measured per point, after one to warm up.")] = 3,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    again: Annotated[bool, typer.Option("--again", help="Measure a finished table anew.")] = False,
    json: JsonFlag = False,
) -> None:
    """Measure a backbone on this machine and write its cost table; started again, it goes on where it was ended."""
    from cappuccino.costs import read_cost_table  # noqa: PLC0415
    from cappuccino.costs.validation import validate  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import find_backbone  # noqa: PLC0415
    from cappuccino.runtime.profiling.grid import ProfileGrid  # noqa: PLC0415
    from cappuccino.runtime.profiling.profiler import expected_seconds, profile_backbone  # noqa: PLC0415

    require_writable(output)
    grid = ProfileGrid(
        num_stages=tuple(console.integers("--num-stages", num_stages, least=1)),
        tokens=tuple(console.integers("--tokens", tokens, least=1)),
        sequence_lengths=tuple(console.integers("--sequence-lengths", sequence_lengths, least=1)),
        num_adapters=tuple(console.integers("--num-adapters", num_adapters, least=1)) if num_adapters else (),
        ranks=tuple(console.integers("--ranks", ranks, least=1)) if ranks else (),
        target_modules=_targets(target_modules),
        grad_acc_steps=micro_batches,
        repeats=repeats,
    )
    place = find_backbone(backbone)
    called = name or (place.resolve().parent.name if place.suffix == ".json" else place.resolve().name)
    points, seconds = len(grid.points()) * len(grid.num_stages), expected_seconds(place, grid, device, dtype)
    console.note(f"{points} points, about {seconds:.0f} s")
    with console.progress_bar("profiling") as show:
        table = profile_backbone(
            place,
            output,
            name=called,
            gpu=gpu,
            grid=grid,
            device=device,
            dtype=dtype,
            again=again,
            on_progress=show,
        )
    ran = int((table["status"] == "OK").sum())
    # with fewer rows, what is left after one is taken out is too little to fit
    enough = ran >= FEWEST_ROWS_TO_CROSS_VALIDATE
    errors = validate(read_cost_table(output), called, gpu).folds if enough else None
    if errors is not None and max(errors.time or 0.0, errors.memory or 0.0) > TOO_FAR_OFF:
        much = f"fitted costs are off by more than {100 * TOO_FAR_OFF:.0f}% on rows left out"
        console.warn(f"{output}: {much}: profile more points, or --again while nothing else runs here")
    if json:
        found = None if errors is None else {"time_mape_cv": errors.time, "memory_mape_cv": errors.memory}
        console.print_json(
            {"table": str(output), "rows": len(table), "out_of_memory": len(table) - ran, "errors": found}
        )
        return
    print(
        f"{len(table)} rows in {output}" + (f", {len(table) - ran} of them out of memory" if ran < len(table) else "")
    )
    if errors is not None and errors.time is not None and errors.memory is not None:
        off = f"{100 * errors.time:.1f}% in time and {100 * errors.memory:.1f}% in memory"
        print(f"fitted costs are off by {off} on rows left out")


def _targets(text: str) -> "tuple[Targets, ...]":
    from cappuccino.backbone import ALL_LINEAR  # noqa: PLC0415

    parts = [part for part in text.split(",") if part]
    return tuple(ALL_LINEAR if part == ALL_LINEAR else tuple(part.split("+")) for part in parts)
