"""demo, run: commands that load torch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli import console
from cappuccino.cli.console import JsonFlag
from cappuccino.cli.plan_commands import InstanceOption, PlanArgument, RecomputeChoice
from cappuccino.errors import InputError

if TYPE_CHECKING:
    from cappuccino.costs import CostModel
    from cappuccino.plan import Plan, Recompute, Replica
    from cappuccino.runtime.launch.keeper import CheckpointOptions
    from cappuccino.runtime.launch.run_result import RunResult
    from cappuccino.timeline import Timeline

BackboneOption = Annotated[
    str, typer.Option("--backbone", help="Folder of the Hugging Face backbone, or its name on the hub.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
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
    json: JsonFlag = False,
) -> None:
    """Train the adapters of a plan, one process per pipeline stage, exactly as planned.

    Ctrl-C or SIGTERM ends the run with checkpoints written and exit status 75; a second one ends it at once.
    """
    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan, Recompute  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.runtime.backbone.hub import backbone_name, find_backbone  # noqa: PLC0415
    from cappuccino.runtime.launch.interruption import interruptible  # noqa: PLC0415
    from cappuccino.runtime.launch.local import run_plan  # noqa: PLC0415

    checkpoints = _checkpoints(checkpoint_every, keep_checkpoints)
    loaded, stated = Instance.load(instance), Plan.load(plan)
    costs = fit_instance_costs(loaded)
    check(*planned_alone(stated, loaded), costs).raise_if_invalid(plan)
    profiled = {costs[r.gpu].dtype for r in stated.replicas} - {None}
    used = dtype or (profiled.pop() if len(profiled) == 1 else None) or "float32"
    asked = None if recompute is RecomputeChoice.AUTO else Recompute(recompute.value)
    planned, stated = stated, stated if asked is None else _recomputing(stated, asked)
    warnings = [w for r in planned.replicas for w in _no_prediction(r, costs[r.gpu], device, used, asked)]
    for warning in dict.fromkeys(warnings):
        console.warn(f"{loaded.cost_table}: {warning}: its times and memory are no prediction for this run")
    folder = find_backbone(backbone)
    with console.progress_bar("training") as show, interruptible(_say_that_it_ends) as interruption:
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
            on_progress=lambda done, total: show(done / total, f"{done} of {total} operations"),
            on_note=console.warn,
        )
    planned_replicas = {r.id: r for r in stated.replicas}
    replicas = [_replica_entry(planned_replicas[line.replica], line, result) for line in result.timelines]
    adapters = {name: _trained(result, name, path) for name, path in result.adapters.items()}
    if json:
        console.print_json({"checked": True, "replicas": replicas, "adapters": adapters, "trace": str(result.trace)})
        return
    for entry in replicas:
        predicted = "what was left of the plan"
        if entry["predicted_s"] is not None:
            predicted = f"predicted {entry['predicted_s']:.3f} s ({100 * entry['difference']:+.1f}%)"
        print(f"replica {entry['id']}: measured {entry['measured_s']:.3f} s, {predicted}")
        taken, expected = (
            "/".join(f"{x:.3g}" for x in entry[name]) for name in ("peak_memory_gib", "predicted_memory_gib")
        )
        print(f"replica {entry['id']}: highest memory {taken} GiB, predicted {expected}")
    for name, found in adapters.items():
        print(f"{name}: loss {found['first_loss']:.3f} -> {found['last_loss']:.3f}, {found['path']}")
        evaluated = found["evaluations"]
        if evaluated:
            losses = ", ".join(f"{e['loss']:.3f} ({e['steps']} steps)" for e in evaluated)
            of = "" if found["kept_steps"] is None else f"; kept as after {found['kept_steps']} steps"
            print(f"{name}: evaluated {losses}, perplexity {evaluated[-1]['perplexity']:.4g}{of}")
    print(f"trace {result.trace}")


def _trained(result: "RunResult", name: str, path: Path) -> dict[str, Any]:
    """Return what is said of an adapter."""
    import math  # noqa: PLC0415

    evaluated = [
        {"steps": step + 1, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        for step, loss in result.evaluations.get(name, {}).items()
    ]
    kept = result.kept.get(name)
    return {
        "path": str(path),
        "first_loss": result.losses[name][0],
        "last_loss": result.losses[name][-1],
        "evaluations": evaluated,
        "kept_steps": None if kept is None else kept + 1,
    }


def _checkpoints(every: str, keep: int) -> "CheckpointOptions | None":
    """Return when checkpoints are written, as the command line says it."""
    from cappuccino.runtime.launch.keeper import CheckpointOptions  # noqa: PLC0415

    if every == "none":
        return None
    if every != "auto" and not (every.isascii() and every.isdigit() and int(every) > 0):
        raise InputError("--checkpoint-every", "", f'"{every}" is no number of steps', "give 1 or more, auto or none")
    return CheckpointOptions(every=None if every == "auto" else int(every), keep=keep)


def _say_that_it_ends() -> None:
    console.warn("interrupted: writing checkpoints; interrupt again to end at once")


def _replica_entry(planned: "Replica", line: "Timeline", result: "RunResult") -> dict[str, Any]:
    """Return what is said of a replica's run; there is no prediction for a part of its plan."""
    whole = line.programs == planned.programs
    return {
        "id": planned.id,
        "predicted_s": planned.makespan_s if whole else None,
        "measured_s": line.makespan,
        "difference": line.makespan / planned.makespan_s - 1 if whole else None,
        "measured_bubble": line.bubble,
        "peak_memory_gib": list(result.peak_memory_gib(planned.id)),
        "predicted_memory_gib": list(planned.peak_memory_gib),
    }


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
