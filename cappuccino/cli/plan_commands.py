"""plan, check."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.instance import Instance

InstanceArgument = Annotated[
    Path, typer.Argument(metavar="INSTANCE", help="Instance file (cappuccino.instance/1), JSON or YAML.")
]
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file (cappuccino.plan/1).")]
InstanceOption = Annotated[Path, typer.Option("--instance", help="The instance that the plan was made for.")]


class ObjectiveOption(StrEnum):
    """Objectives as they are spelled on the command line."""

    GPU_TIME = "gpu-time"
    MAKESPAN = "makespan"
    COST = "cost"


class RecomputeChoice(StrEnum):
    """Activation recomputation as the command line asks for it."""

    AUTO = "auto"
    NONE = "none"
    FULL = "full"


class LayersChoice(StrEnum):
    """Layers by stage as the command line asks for them."""

    AUTO = "auto"
    EVEN = "even"


class MethodChoice(StrEnum):
    """What schedules replicas, as the command line asks for it."""

    AUTO = "auto"
    CP_SAT = "cp-sat"
    SEARCH = "search"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(plan)
    app.command()(check)


def plan(
    instance: InstanceArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PLAN", help="Where the plan is written.")],
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds for the search.")] = 60.0,
    objective: Annotated[ObjectiveOption, typer.Option(help="What is minimised.")] = ObjectiveOption.GPU_TIME,
    deadline: Annotated[float | None, typer.Option(min=0, help="Seconds within which every replica is to end.")] = None,
    num_stages: Annotated[int | None, typer.Option(min=1, help="Fix the pipeline depth of every replica.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    gap: Annotated[float, typer.Option(min=0, max=0.99, help="Stop at this gap to the bound, as a fraction.")] = 1e-3,
    profiled_only: Annotated[bool, typer.Option(help="Allow only the stage counts in the cost table.")] = False,
    recompute: Annotated[
        RecomputeChoice, typer.Option(help="Activation recomputation; auto: by replica, of what the cost table has.")
    ] = RecomputeChoice.AUTO,
    layers: Annotated[
        LayersChoice, typer.Option(help="Decoder layers by stage; auto: as suits the instance, where the table tells.")
    ] = LayersChoice.AUTO,
    method: Annotated[
        MethodChoice,
        typer.Option(help="What schedules replicas: local search, CP-SAT from a greedy schedule, or both."),
    ] = MethodChoice.AUTO,
    resume: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Plan what the checkpoints of the run in this folder leave.")
    ] = None,
    export_models: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the models behind the plan for other solvers: LP, MPS, CP-SAT."),
    ] = None,
    export_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="CHOICES",
            help="Samples x micro-batches up to which a replica's model is exported.  [default: 10000]",
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Plan an instance: replicas, micro-batches and the order of all operations, with a proven bound.

    Ctrl-C ends the search early: the best plan so far is checked and written. A second one gives up.
    """
    from cappuccino.checker import check as check_plan  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Objective, Recompute, objective_gap  # noqa: PLC0415
    from cappuccino.remaining import planned_onwards, remaining_instance  # noqa: PLC0415
    from cappuccino.reports.plan_warnings import instance_warnings, plan_warnings  # noqa: PLC0415

    require_writable(output, instance)
    _check_export(export_models, export_limit, output)
    whole = Instance.load(instance)
    done = {} if resume is None else _steps_done(whole, resume)
    loaded = remaining_instance(whole, done) if done else whole
    costs = fit_instance_costs(loaded)
    from cappuccino.solvers.budget import interruptible  # noqa: PLC0415
    from cappuccino.solvers.export.replicas import MOST_CHOICES  # noqa: PLC0415
    from cappuccino.solvers.layer_split import LayerSplit  # noqa: PLC0415
    from cappuccino.solvers.planning import PlanOptions, Progress, plan_with_models  # noqa: PLC0415
    from cappuccino.solvers.settings import Method, with_method  # noqa: PLC0415

    options = PlanOptions(
        objective=Objective(objective.value.replace("-", "_")),
        time_limit_s=time_limit,
        gap=gap,
        deadline_s=deadline,
        num_stages=num_stages,
        profiled_only=profiled_only,
        recompute=None if recompute is RecomputeChoice.AUTO else Recompute(recompute.value),
        layers=LayerSplit(layers.value),
        seed=seed,
        settings=with_method(Method(method.value)),
    )
    unit = console.objective_unit(options.objective.value)
    with console.progress_bar("planning") as show, interruptible(_say_that_it_ends):

        def on_progress(state: Progress) -> None:
            reached = objective_gap(state.objective, state.bound) or 0.0
            text = f"{state.objective:.4g} {unit}, bound {state.bound:.4g}, gap {100 * reached:.2f}%"
            show(state.elapsed_s / time_limit, text)

        found = plan_with_models(loaded, options, costs, on_progress)
    made = found.plan
    report = check_plan(made, loaded, costs)
    report.raise_if_invalid(output)
    (planned_onwards(made, whole, done) if done else made).save(output)
    exported = None if export_models is None else found.models.export(export_models, export_limit or MOST_CHOICES)
    warnings = [*instance_warnings(loaded), *plan_warnings(made, loaded, costs)]
    for warning in [*warnings, *(exported.notes if exported else ())]:
        console.warn(warning)
    if json:
        models = None if exported is None else {"files": list(map(str, exported.files)), "notes": list(exported.notes)}
        summary = console.plan_summary(made, report)
        console.print_json({"plan": str(output), **summary, "models": models, "warnings": warnings})
    else:
        console.print_plan(made, report)
        print(f"plan        {output}")
        if exported is not None:
            print(
                f"models      {export_models} ({counted(len(exported.files), 'file')}, README.txt tells what they are)"
            )


def _check_export(folder: Path | None, limit: int | None, output: Path) -> None:
    """Raise InputError for a folder that no models could be written into, or a limit without a folder."""
    if folder is None:
        if limit is not None:
            raise InputError(
                "--export-limit", "", "is given without --export-models", "name the folder, or leave it out"
            )
        return
    from cappuccino.solvers.export.models import require_exportable  # noqa: PLC0415

    require_exportable(folder, [output])


def _steps_done(instance: "Instance", out: Path) -> dict[str, int]:
    from cappuccino.runtime.checkpoint.progress import steps_done  # noqa: PLC0415

    return steps_done(instance, out)


def _say_that_it_ends() -> None:
    console.answer("interrupted: finishing with the best plan so far; press Ctrl-C again to give up")


def check(plan: PlanArgument, instance: InstanceOption, json: JsonFlag = False) -> None:
    """Verify a plan against the seven rules and its bound by its certificate; exit 1 and name a rule that is broken."""
    from cappuccino.checker import check as check_plan  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415

    stated, loaded = planned_alone(Plan.load(plan), Instance.load(instance))
    report = check_plan(stated, loaded, fit_instance_costs(loaded))
    if json:
        violations = [{"rule": v.rule, "message": v.message} for v in report.violations]
        console.print_json({**console.plan_summary(stated, report), "violations": violations})
    elif report.valid:
        console.print_plan(stated, report)
    console.end_invalid(plan, report)
