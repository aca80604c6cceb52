"""pareto: what a tighter deadline costs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from xml.sax.saxutils import escape

import typer

from cappuccino.cli.plan_commands import InstanceArgument, ObjectiveOption
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError
from cappuccino.files import require_folder, require_writable, write_atomically

if TYPE_CHECKING:
    from cappuccino.instance import Instance
    from cappuccino.solvers.pareto import FrontProgress, ParetoPoint


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pareto)


def pareto(
    instance: InstanceArgument,
    points: Annotated[int, typer.Option(min=1, help="Deadlines between the fastest and the cheapest plan.")] = 6,
    deadline: Annotated[
        list[float] | None, typer.Option(help="A further deadline, seconds; may be given several times.")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds for all plans together.")] = 300.0,
    objective: Annotated[
        ObjectiveOption, typer.Option(help="What is minimised at every deadline: gpu-time or cost.")
    ] = ObjectiveOption.GPU_TIME,
    num_stages: Annotated[int | None, typer.Option(min=1, help="Fix the pipeline depth of every replica.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    gap: Annotated[float, typer.Option(min=0, max=0.99, help="Stop a plan at this gap, as a fraction.")] = 1e-3,
    profiled_only: Annotated[bool, typer.Option(help="Allow only the stage counts in the cost table.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for every plan and pareto.csv.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot, .svg or .html.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show GPU time (or money) against deadline: a checked plan and a proven bound at every point."""
    from cappuccino.checker import check as check_plan  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Objective  # noqa: PLC0415
    from cappuccino.reports.plan_warnings import instance_warnings, plan_warnings  # noqa: PLC0415

    if plot is not None:
        if plot.suffix not in (".svg", ".html"):
            raise InputError(
                plot, "", f'"{plot.suffix}" is no format of plots', "name a file that ends in .svg or .html"
            )
        require_writable(plot)
    if output is not None:
        require_folder(output)
    loaded = Instance.load(instance)
    costs = fit_instance_costs(loaded)
    from cappuccino.solvers.pareto import pareto_front  # noqa: PLC0415
    from cappuccino.solvers.planning import PlanOptions  # noqa: PLC0415

    wanted = Objective(objective.value.replace("-", "_"))
    options = PlanOptions(
        objective=wanted,
        time_limit_s=time_limit,
        gap=gap,
        num_stages=num_stages,
        profiled_only=profiled_only,
        seed=seed,
    )
    with console.progress_bar("pareto") as show:

        def on_progress(state: "FrontProgress") -> None:
            within = 0.0 if state.plan is None else min(1.0, state.plan.elapsed_s * state.total / time_limit)
            reached = "" if state.plan is None else f": {state.plan.objective:.4g}, bound {state.plan.bound:.4g}"
            text = f"plan {state.solved + 1} of {state.total}, {state.what}{reached}"
            show((state.solved + within) / state.total, text)

        front = pareto_front(loaded, options, points, costs, on_progress, tuple(deadline or ()))
    rows = []
    warned: dict[str, list[float]] = {}
    for k, point in enumerate(front, start=1):
        report = None if point.plan is None else check_plan(point.plan, loaded, costs)
        if point.plan is not None and report is not None:
            report.raise_if_invalid(f"point {k}")
            for warning in plan_warnings(point.plan, loaded, costs):
                warned.setdefault(warning, []).append(point.deadline_s)
        rows.append(_row(point, None if report is None else report.valid, _plan_file(output, k, point)))
    planned = sum(point.plan is not None for point in front)
    warnings = [*instance_warnings(loaded), *(_said_once(w, at, planned) for w, at in warned.items())]
    if output is not None:
        _save(output, front, rows)
    if plot is not None:
        write_atomically(plot, _plot(loaded, wanted.value, front, html=plot.suffix == ".html"))
    for warning in warnings:
        console.warn(warning)
    if json:
        files = {
            "csv": None if output is None else str(output / "pareto.csv"),
            "plot": None if plot is None else str(plot),
        }
        console.print_json({"objective": wanted.value, "points": rows, **files, "warnings": warnings})
    else:
        _print_table(wanted.value, rows)
        for path in (None if output is None else output / "pareto.csv", plot):
            if path is not None:
                print(f"written     {path}")


def _said_once(warning: str, deadlines: Sequence[float], planned: int) -> str:
    """Return a warning with the points that it is of."""
    if len(deadlines) == planned > 1:
        return f"at every deadline: {warning}"
    return f"deadline{'s' * (len(deadlines) > 1)} {', '.join(f'{d:.5g}' for d in deadlines)} s: {warning}"


def _plan_file(output: Path | None, number: int, point: "ParetoPoint") -> str | None:
    return None if output is None or point.plan is None else str(output / f"plan-{number:02d}.json")


def _row(point: "ParetoPoint", checked: bool | None, file: str | None) -> dict[str, Any]:
    plan = point.plan
    return {
        "deadline_s": point.deadline_s,
        "status": point.status.value,
        "makespan_s": None if plan is None else plan.makespan_s,
        "gpu_time_s": None if plan is None else plan.gpu_time_s,
        "cost": None if plan is None else plan.cost,
        "lower_bound": point.lower_bound,
        "gap": point.gap,
        "gpus": None if plan is None else sum(r.num_stages for r in plan.replicas),
        "replicas": None if plan is None else len(plan.replicas),
        "dominated": point.dominated,
        "checked": checked,
        "plan": file,
        "reason": point.reason,
    }


def _save(folder: Path, front: tuple["ParetoPoint", ...], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for point, row in zip(front, rows, strict=True):
        if point.plan is not None:
            point.plan.save(row["plan"])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "plan": row["plan"] and Path(row["plan"]).name} for row in rows)
    write_atomically(folder / "pareto.csv", text.getvalue())


def _print_table(objective: str, rows: list[dict[str, Any]]) -> None:
    unit = console.objective_unit(objective)
    value = "gpu_time_s" if objective == "gpu_time" else "cost"
    columns = ("deadline s", "makespan s", f"{objective} {unit}", "bound", "gap", "GPUs", "replicas", "checked")
    cells, reasons = [], []
    for row in rows:
        bound = "-" if row["lower_bound"] is None else f"{row['lower_bound']:.5g}"
        if row["makespan_s"] is None:
            figures, state = ("-", "-", bound, "-", "-", "-"), row["status"]
        else:
            gap, state = f"{100 * row['gap']:z.2f}%", "valid" if row["checked"] else "INVALID"
            numbers = str(row["gpus"]), str(row["replicas"])
            figures = (f"{row['makespan_s']:.5g}", f"{row[value]:.5g}", bound, gap, *numbers)
        dominated = ", dominated by a tighter deadline" if row["dominated"] else ""
        cells.append((f"{row['deadline_s']:.5g}", *figures, state + dominated))
        if row["reason"]:
            reasons.append(f"deadline {row['deadline_s']:.5g} s: {row['reason']}")
    console.print_table(columns, cells, words={"checked"})
    print("\n".join(reasons), end="\n" if reasons else "")


def _plot(instance: "Instance", objective: str, front: tuple["ParetoPoint", ...], *, html: bool) -> str:
    from cappuccino.reports.plot import Axis, Panel, Series, line_charts  # noqa: PLC0415

    unit = console.objective_unit(objective)
    what = {"gpu_time": "GPU time", "cost": "cost"}[objective]
    deadlines = [p.deadline_s for p in front]
    title = f"{instance.name}: {what} against deadline"
    series = (
        Series("plan found", deadlines, [p.value for p in front], "step-after"),
        Series("proven bound", deadlines, [p.lower_bound for p in front], "step-before", dashed=True),
    )
    svg = line_charts([Panel(title, Axis("deadline, s", log=True), Axis(f"{what}, {unit}"), series)])
    if not html:
        return svg
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title></head>'
    return f"{head}\n<body>\n{svg}</body></html>\n"
