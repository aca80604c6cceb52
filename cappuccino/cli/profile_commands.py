"""profile: measures a backbone."""

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cappuccino.cli.run_commands import DeviceOption, DtypeOption
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.runtime.profiling.grid import Targets

DEFAULT_MINUTES = {"cpu": 5.0, "cuda": 10.0}
"""Time budget by device."""
TOO_FAR_OFF = 0.2
"""Error on rows left out from which on a plan is not to be relied on."""


class ProfiledRecompute(StrEnum):
    """Kinds of activation recomputation as the command line asks for them."""

    NONE = "none"
    FULL = "full"
    BOTH = "both"


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
    repeats: Annotated[int, typer.Option(min=1, help="Steps measured per point, after one to warm up.")] = 2,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="MINUTES",
            help="Time that this call may take, what is needed most measured first; default: 5 on the CPU, 10 on cuda; "
            "0 or none: no limit, the whole grid.",
        ),
    ] = None,
    target_error: Annotated[
        float, typer.Option(min=0.0, help="Error on rows left out at which a profile with a time budget ends.")
    ] = 0.05,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    recompute: Annotated[
        ProfiledRecompute, typer.Option(help="Activation recomputation that is measured.")
    ] = ProfiledRecompute.NONE,
    again: Annotated[bool, typer.Option("--again", help="Measure a finished table anew.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure a backbone on this machine and write its cost table; started again, it goes on where it was ended."""
    from cappuccino.plan import Recompute  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import find_backbone, table_name  # noqa: PLC0415
    from cappuccino.runtime.profiling.grid import ProfileGrid  # noqa: PLC0415
    from cappuccino.runtime.profiling.profiler import partial_file, profile_backbone  # noqa: PLC0415

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
    called = name or table_name(place)
    minutes = _minutes(time_budget, device)
    modes = tuple(Recompute) if recompute is ProfiledRecompute.BOTH else (Recompute(recompute.value),)
    points = counted(len(grid.points()) * len(grid.num_stages) * len(modes), "point")
    console.note(f"{points}, all measured" if minutes is None else f"{points}, a budget of {minutes:.3g} minutes")
    partials = [partial_file(output, mode) for mode in modes]
    with console.progress_bar("profiling") as show, _ended_by_sigterm(), _saying_what_is_kept(partials):
        result = profile_backbone(
            place,
            output,
            name=called,
            gpu=gpu,
            grid=grid,
            device=device,
            dtype=dtype,
            again=again,
            recompute=modes,
            time_budget_s=None if minutes is None else 60 * minutes,
            target_error=target_error,
            on_progress=show,
        )
    table = result.table
    for shortage in result.shortages:
        console.warn(f"{output}: {shortage}")
    ran = int((table["status"] == "OK").sum())
    errors = result.errors
    if errors is not None and max(errors.time or 0.0, errors.memory or 0.0) > TOO_FAR_OFF:
        much = f"fitted costs are off by more than {100 * TOO_FAR_OFF:.0f}% on rows left out"
        console.warn(f"{output}: {much}: profile more points, or --again while nothing else runs here")
    if json:
        found = None if errors is None else {"time_mape_cv": errors.time, "memory_mape_cv": errors.memory}
        console.print_json(
            {
                "table": str(output),
                "rows": len(table),
                "out_of_memory": len(table) - ran,
                "errors": found,
                "new_points": result.new_points,
                "seconds": result.seconds,
                "budget_s": None if minutes is None else 60 * minutes,
                "ended": result.ended,
                "shortages": list(result.shortages),
            }
        )
        return
    lost = f", {len(table) - ran} of them out of memory" if ran < len(table) else ""
    print(f"{counted(len(table), 'row')} in {output}{lost}")
    if errors is not None and errors.time is not None and errors.memory is not None:
        off = f"{100 * errors.time:.1f}% in time and {100 * errors.memory:.1f}% in memory"
        print(f"fitted costs are off by {off} on rows left out")
    print(f"{result.ended}: {counted(result.new_points, 'point')} measured in {result.seconds:.0f} s")


def _minutes(text: str | None, device: str) -> float | None:
    """Return the time budget in minutes, None for no limit."""
    if text is None:
        return DEFAULT_MINUTES.get(device, DEFAULT_MINUTES["cpu"])
    if text.strip().lower() == "none":
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < math.inf:
        problem = f'"{text}" is no number of minutes'
        raise InputError("--time-budget", "", problem, "give a number of minutes, or none for no limit")
    return minutes or None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs as an exception does, so that processes are ended and folders removed."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _targets(text: str) -> "tuple[Targets, ...]":
    from cappuccino.backbone import ALL_LINEAR  # noqa: PLC0415

    parts = [part for part in text.split(",") if part]
    return tuple(ALL_LINEAR if part == ALL_LINEAR else tuple(part.split("+")) for part in parts)


@contextmanager
def _saying_what_is_kept(partials: Sequence[Path]) -> Iterator[None]:
    """Say where the points measured so far are, when what runs is ended."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        kept = " and ".join(str(partial) for partial in partials if partial.exists())
        if kept:
            console.answer(f"what was measured is kept in {kept}: the same command goes on from there")
        raise
