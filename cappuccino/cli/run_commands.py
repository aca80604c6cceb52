"""demo, lengths, run: commands that load torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli import console
from cappuccino.cli.console import JsonFlag
from cappuccino.cli.plan_commands import InstanceOption, PlanArgument, RecomputeChoice
from cappuccino.files import require_folder, require_writable

if TYPE_CHECKING:
    from cappuccino.costs import CostModel
    from cappuccino.plan import Plan, Recompute, Replica
    from cappuccino.runtime.launch.local import RunResult
    from cappuccino.runtime.launch.metrics import MetricEvent

BackboneOption = Annotated[
    str, typer.Option("--backbone", help="Folder of the Hugging Face backbone, or its name on the hub.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
DIVERGED = 3
"""Exit code of a run that ended with adapters whose loss is not finite."""
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, float64 or bfloat16.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(demo)
    app.command()(lengths)
    app.command()(run)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything the demo makes.")] = Path(
        "out/demo"
    ),
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds for planning.")] = 20.0,
    json: JsonFlag = False,
) -> None:
    """Profile, plan, check, run and report a tiny backbone with three adapters on this machine's CPU."""
    from cappuccino.cli.demo import print_report, run_demo  # noqa: PLC0415

    report = run_demo(output, time_limit)
    if json:
        console.print_json(report)
    else:
        print_report(report)


def lengths(
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Folder with a tokenizer, e.g. the backbone's.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the distribution file is written.")],
    data: Annotated[
        list[str], typer.Argument(metavar="NAME=SOURCE", help="Dataset: a .jsonl or .parquet file, or a hub name.")
    ],
    num_samples: Annotated[int, typer.Option(min=1, help="Samples per dataset.")] = 1000,
    max_length: Annotated[int, typer.Option(min=1, help="Longer samples are cut.")] = 4096,
    text_field: Annotated[str, typer.Option(help="Field of the text; several joined by +.")] = "text",
    split: Annotated[str, typer.Option(help="Split of a dataset from the hub.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 42,
    end: Annotated[
        bool, typer.Option("--end/--no-end", help="End samples that were not cut with the end-of-sequence (eos) token.")
    ] = True,
    data_out: Annotated[Path | None, typer.Option(help="Folder for the samples' tokens: the data of `run`.")] = None,
    json: JsonFlag = False,
) -> None:
    """Tokenize datasets and write their length distributions in the seed's format."""
    from cappuccino.runtime.data.lengths import measure_lengths  # noqa: PLC0415

    require_writable(output)
    if data_out is not None:
        require_folder(data_out)
    notes: list[str] = []
    with console.progress_bar("tokenizing") as show:
        measured = measure_lengths(
            data,
            tokenizer,
            output,
            num_samples=num_samples,
            max_length=max_length,
            text_fields=text_field.split("+"),
            split=split,
            seed=seed,
            end=end,
            data=data_out,
            on_progress=show,
            on_note=notes.append,
        )
    summary = {n: {k: v for k, v in s.items() if not k.startswith("permutation")} for n, s in measured.items()}
    if json:
        console.print_json({"output": str(output), "datasets": summary, "notes": notes})
        return
    for dataset, record in summary.items():
        print(f"{dataset}: {record['num_samples']} samples, median {record['p50']}, p99 {record['p99']} tokens")
    for note in notes:
        print(note)
    print(f"lengths in {output}")


def run(
    plan: PlanArgument,
    instance: InstanceOption,
    backbone: BackboneOption,
    data: Annotated[Path, typer.Option("--data", help="Folder with <dataset>.jsonl or .parquet for every dataset.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for adapters, losses and trace.")],
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
    report_to: Annotated[
        str | None,
        typer.Option(
            help="Trackers, separated by commas: tensorboard, wandb, mlflow, trackio; none. "
            "By default tensorboard, where it is installed."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Train the adapters of a plan, one process per pipeline stage, exactly as planned.

    Exit code 3 says that all adapters were written, and that some diverged: their loss is not finite.
    """
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.cli.training_view import TrainingView, show_training  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan, Recompute  # noqa: PLC0415
    from cappuccino.reports.remaining_time import RemainingTime  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import backbone_name, find_backbone  # noqa: PLC0415
    from cappuccino.runtime.launch.devices import num_gpus  # noqa: PLC0415
    from cappuccino.runtime.launch.local import run_plan  # noqa: PLC0415
    from cappuccino.runtime.launch.trackers import Trackers, chosen_trackers  # noqa: PLC0415
    from cappuccino.simulator import simulate  # noqa: PLC0415

    named = chosen_trackers(report_to)
    loaded, stated = Instance.load(instance), Plan.load(plan)
    costs = fit_instance_costs(loaded)
    check(stated, loaded, costs).raise_if_invalid(plan)
    profiled = {costs[r.gpu].dtype for r in stated.replicas} - {None}
    used = dtype or (profiled.pop() if len(profiled) == 1 else None) or "float32"
    asked = None if recompute is RecomputeChoice.AUTO else Recompute(recompute.value)
    planned, stated = stated, stated if asked is None else _recomputing(stated, asked)
    warnings = [w for r in planned.replicas for w in _no_prediction(r, costs[r.gpu], device, used, asked)]
    for warning in dict.fromkeys(warnings):
        console.warn(f"{loaded.cost_table}: {warning}: its times and memory are no prediction for this run")
    folder = find_backbone(backbone)
    trained = [loaded.adapters[loaded.adapter_index(name)] for r in stated.replicas for name in r.adapters]
    steps = {adapter.name: loaded.num_steps(loaded.adapter_index(adapter.name)) for adapter in trained}
    settings = {adapter.name: adapter.model_dump(mode="json", exclude={"name"}) for adapter in trained}
    trackers = Trackers(named, output, loaded.name, settings, console.warn)
    predicted = [replica.timeline for replica in simulate(planned, loaded, costs).replicas]
    view = TrainingView(steps, RemainingTime(stated, predicted, num_gpus(device)))
    diverged: set[str] = set()
    with show_training(view) as refresh:

        def on_progress(done: int, total: int) -> None:
            trackers.begin()  # whatever could be refused was
            view.on_progress(done, total)
            refresh()

        def on_event(event: "MetricEvent") -> None:
            view.on_event(event)
            trackers.on_event(event)
            if event.loss is None and event.kind == "train" and event.adapter not in diverged:
                diverged.add(event.adapter)
                console.warn(f'adapter "{event.adapter}" diverged: its loss is not finite at step {event.step}')

        try:
            result = run_plan(
                stated,
                loaded,
                folder,
                data,
                output,
                device=device,
                dtype=used,
                backbone_name=base_model_name or backbone_name(backbone, folder),
                on_progress=on_progress,
                on_note=console.warn,
                on_event=on_event,
            )
        finally:
            trackers.end()
    summary = _run_summary(stated, result)
    if json:
        console.print_json(summary)
    else:
        _print_run(summary)
    if result.diverged:
        raise typer.Exit(DIVERGED)


def _run_summary(plan: "Plan", result: "RunResult") -> dict[str, Any]:
    """Return what is to be said of a run: predicted beside measured, and what became of the adapters."""
    lines = list(zip(plan.replicas, result.timelines, strict=True))
    gpu_time = sum(r.num_stages * line.makespan for r, line in lines)
    return {
        "checked": True,
        "makespan": _compared(plan.makespan_s, max(line.makespan for _, line in lines)),
        "gpu_time": _compared(plan.gpu_time_s, gpu_time),
        "replicas": [
            {
                "id": r.id,
                **_compared(r.makespan_s, line.makespan),
                "measured_bubble": line.bubble,
                "peak_memory_gib": list(result.peak_memory_gib(r.id)),
                "predicted_memory_gib": list(r.peak_memory_gib),
            }
            for r, line in lines
        ],
        "adapters": {
            name: {
                "path": str(path),
                "first_loss": result.losses[name][0],
                "last_loss": result.losses[name][-1],
                "diverged_at_step": result.diverged.get(name),
            }
            for name, path in result.adapters.items()
        },
        "trace": str(result.trace),
        "metrics": str(result.metrics),
    }


def _compared(predicted_s: float, measured_s: float) -> dict[str, float]:
    return {"predicted_s": predicted_s, "measured_s": measured_s, "difference": measured_s / predicted_s - 1}


def _print_run(summary: dict[str, Any]) -> None:
    """Print what is to be said of a run as text."""
    times = [("makespan", "s", summary["makespan"]), ("GPU time", "GPU-s", summary["gpu_time"])]
    if len(summary["replicas"]) > 1:
        times += [(f"replica {entry['id']}", "s", entry) for entry in summary["replicas"]]
    for name, unit, entry in times:
        measured, predicted = (f"{entry[key]:.3f} {unit}" for key in ("measured_s", "predicted_s"))
        print(f"{name}: measured {measured}, predicted {predicted} ({100 * entry['difference']:+.1f}%)")
    for entry in summary["replicas"]:
        taken, expected = (
            "/".join(f"{x:.3g}" for x in entry[name]) for name in ("peak_memory_gib", "predicted_memory_gib")
        )
        print(f"replica {entry['id']}: highest memory {taken} GiB, predicted {expected}")
    for name, found in summary["adapters"].items():
        step = found["diverged_at_step"]
        word = "" if step is None else f" DIVERGED at step {step},"
        print(f"{name}:{word} loss {found['first_loss']:.3f} -> {found['last_loss']:.3f}, {found['path']}")
    print(f"trace {summary['trace']}, metrics {summary['metrics']}")


def _recomputing(plan: "Plan", mode: "Recompute") -> "Plan":
    """Return a plan whose replicas recompute otherwise than planned."""
    return plan.model_copy(update={"replicas": tuple(r.model_copy(update={"recompute": mode}) for r in plan.replicas)})


def _no_prediction(
    replica: "Replica", costs: "CostModel", device: str, dtype: str, recompute: "Recompute | None"
) -> list[str]:
    """Return why the costs say nothing of this run: they are of another device, type or software, or of none.

    Parameters
    ----------
    recompute
        What the run does instead of what was planned, if anything.
    """
    from cappuccino.costs.table import ENGINE  # noqa: PLC0415
    from cappuccino.plan import Recompute  # noqa: PLC0415

    gpu, model = replica.gpu, costs.of_recomputation(replica.recompute)
    if model.analytic:
        return [f'"{gpu}" was computed from specifications']
    found = []
    if model.engine is None:
        found.append(f'"{gpu}" does not say with which engine it was measured')
    elif model.engine != ENGINE:
        found.append(f'"{gpu}" was measured with the engine {model.engine}')
    does = (recompute or replica.recompute or Recompute.NONE).value
    for what, measured, used in (
        ("device", model.device, device),
        ("dtype", model.dtype, dtype),
        ("recompute", None if model.recompute is None else model.recompute.value, does),
    ):
        if measured is not None and measured != used:
            found.append(f'"{gpu}" was measured with {what} {measured}, the run has {used}')
    return found
