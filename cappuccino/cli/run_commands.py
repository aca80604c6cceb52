"""demo, run: commands that load torch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.plan_commands import InstanceOption, PlanArgument, RecomputeChoice
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError

if TYPE_CHECKING:
    from cappuccino.runtime.launch.keeper import CheckpointOptions
    from cappuccino.runtime.monitoring.metrics import MetricEvent

BackboneOption = Annotated[
    str, typer.Option("--backbone", help="Folder of the Hugging Face backbone, or its name on the hub.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
DIVERGED = 3
"""Exit code of a run that ended with adapters whose loss or gradients were not finite."""
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, float64 or bfloat16.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with <dataset>.jsonl, .json or .parquet for every dataset; default: the sources in the instance.",
    ),
]


class KeepChoice(StrEnum):
    """Which weights an adapter is written with."""

    LAST = "last"
    BEST = "best"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(demo)
    app.command()(run)
    app.command()(stop)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything the demo makes.")] = Path(
        "out/demo"
    ),
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds for planning.")] = 20.0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Profile, plan, check, run and report a tiny backbone with three adapters on this machine's CPU."""
    from cappuccino.cli.demo import print_report, run_demo  # noqa: PLC0415

    report = run_demo(output, time_limit)
    if json:
        console.print_json(report)
    else:
        print_report(report)


def run(
    plan: PlanArgument,
    instance: InstanceOption,
    backbone: BackboneOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for adapters, losses and trace.")],
    data: DataOption = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, float64 or bfloat16; by default the cost table's.")
    ] = None,
    recompute: Annotated[
        RecomputeChoice, typer.Option(help="Activation recomputation; auto: as planned.")
    ] = RecomputeChoice.AUTO,
    base_model_name: Annotated[
        str | None,
        typer.Option(help="What the adapters call their backbone; by default its name on the hub, or the path given."),
    ] = None,
    keep: Annotated[
        KeepChoice, typer.Option(help="Weights kept: those of the last step, or of the least evaluation loss.")
    ] = KeepChoice.LAST,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            metavar="K|auto|none", help="Optimizer steps of an adapter between checkpoints; auto: a tenth of its steps."
        ),
    ] = "auto",
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Checkpoints that stay of every adapter.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in the output folder.")] = False,
    report_to: Annotated[
        str | None,
        typer.Option(
            help="Trackers, separated by commas: tensorboard, wandb, mlflow, trackio; none. "
            "By default tensorboard, where it is installed."
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the adapters of a plan, one process per pipeline stage, exactly as planned.

    Ctrl-C or SIGTERM ends the run with checkpoints written and exit code 75; a second one ends it at once. `cappuccino
    stop` ends single adapters. Exit code 3 says that all adapters were written, and that some diverged: they are as
    they were before their loss or gradients were not finite.
    """
    from cappuccino.api.running import profiled_dtype, recomputing  # noqa: PLC0415
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.cli.terminal.summary import print_run, run_summary  # noqa: PLC0415
    from cappuccino.cli.terminal.training_view import TrainingView, show_training  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan, Recompute  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.reports.remaining_time import RemainingTime  # noqa: PLC0415
    from cappuccino.reports.run_warnings import run_warnings  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import backbone_name, find_backbone  # noqa: PLC0415
    from cappuccino.runtime.launch.devices import num_gpus  # noqa: PLC0415
    from cappuccino.runtime.launch.interruption import interruptible  # noqa: PLC0415
    from cappuccino.runtime.launch.local import run_plan  # noqa: PLC0415
    from cappuccino.runtime.monitoring.trackers import Trackers, chosen_trackers  # noqa: PLC0415
    from cappuccino.simulator import simulate  # noqa: PLC0415

    checkpoints = _checkpoints(checkpoint_every, keep_checkpoints)
    named = chosen_trackers(report_to)
    loaded, stated = Instance.load(instance), Plan.load(plan)
    costs = fit_instance_costs(loaded)
    check(*planned_alone(stated, loaded), costs).raise_if_invalid(plan)
    used = dtype or profiled_dtype(stated, costs) or "float32"
    asked = None if recompute is RecomputeChoice.AUTO else Recompute(recompute.value)
    planned, stated = stated, stated if asked is None else recomputing(stated, asked)
    gpus = num_gpus(device)
    for warning in run_warnings(planned, loaded, costs, device=device, dtype=used, recompute=asked, num_gpus=gpus):
        console.warn(warning)
    folder = find_backbone(backbone)
    trained = [loaded.adapters[loaded.adapter_index(name)] for r in stated.replicas for name in r.adapters]
    steps = {adapter.name: loaded.num_steps(loaded.adapter_index(adapter.name)) for adapter in trained}
    settings = {adapter.name: adapter.model_dump(mode="json", exclude={"name"}) for adapter in trained}
    trackers = Trackers(named, output, loaded.name, settings, console.warn)
    predicted = [r.timeline for r in simulate(*planned_alone(planned, loaded), costs).replicas]
    view = TrainingView(steps, RemainingTime(stated, predicted, gpus))
    with show_training(view) as refresh, interruptible(_say_that_it_ends) as interruption:

        def on_progress(done: int, total: int) -> None:
            trackers.begin()  # whatever could be refused was
            view.on_progress(done, total)
            refresh()

        def on_event(event: "MetricEvent") -> None:
            view.on_event(event)
            trackers.on_event(event)
            if event.kind == "stop":
                console.warn(_stop_said(event))

        try:
            result = run_plan(
                stated,
                loaded,
                folder,
                data,
                output,
                device=device,
                dtype=used,
                keep=keep.value,
                backbone_name=base_model_name or backbone_name(backbone, folder),
                checkpoints=checkpoints,
                resume=resume,
                interruption=interruption,
                on_progress=on_progress,
                on_note=console.warn,
                on_event=on_event,
            )
        finally:
            trackers.end()
    summary = run_summary(stated, result)
    if json:
        console.print_json(summary)
    else:
        print_run(summary)
    if result.diverged:
        raise typer.Exit(DIVERGED)


def stop(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a run that goes on.")],
    adapters: Annotated[list[str], typer.Argument(metavar="NAME...", help="Adapters whose training is to end.")],
    json: JsonFlag = False,
) -> None:
    """End the training of single adapters of a run: each is written as it is, and the others go on untouched."""
    from cappuccino.runtime.monitoring.requests import ask_to_stop  # noqa: PLC0415

    ask_to_stop(output, adapters)
    if json:
        console.print_json({"output": str(output), "asked": list(dict.fromkeys(adapters))})
    else:
        print(f"asked: {', '.join(dict.fromkeys(adapters))} in {output}, to end before the next optimizer step")


def _checkpoints(every: str, keep: int) -> "CheckpointOptions | None":
    """Return when checkpoints are written, as the command line says it."""
    from cappuccino.runtime.launch.keeper import CheckpointOptions  # noqa: PLC0415

    if every == "none":
        return None
    if every != "auto" and not (every.isascii() and every.isdigit() and int(every) > 0):
        raise InputError("--checkpoint-every", "", f'"{every}" is no number of steps', "give 1 or more, auto or none")
    return CheckpointOptions(every=None if every == "auto" else int(every), keep=keep)


def _stop_said(event: "MetricEvent") -> str:
    why = {
        "diverged": "diverged: its loss or its gradients are not finite",
        "patience": "stops early: its evaluations do not improve",
        "asked": "stops early, as asked",
    }[event.reason.value if event.reason else "asked"]
    return f'adapter "{event.adapter}" {why} at step {event.step}; it is kept as it was before'


def _say_that_it_ends() -> None:
    console.answer("interrupted: writing checkpoints; interrupt again to end at once")
