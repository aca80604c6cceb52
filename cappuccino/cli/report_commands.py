"""report: one page of HTML about a plan, and about its run where there was one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.plan_commands import InstanceOption, PlanArgument
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag
from cappuccino.errors import InputError
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cappuccino.instance import Instance
    from cappuccino.reports.page.contents import LossPoint
    from cappuccino.reports.prediction_error import ReplicaComparison


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    plan: PlanArgument,
    instance: InstanceOption,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="HTML", help="Where the page is written.")],
    trace: Annotated[
        Path | None, typer.Option(metavar="TRACE", help="Show what `run` measured beside the prediction.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(metavar="METRICS", help="Show the losses in the metrics.jsonl of a run.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show a plan as one page of HTML that needs no network: figures, timelines, memory, losses; exit 1 if invalid."""
    size = write_report(plan, instance, output, trace, metrics)
    if json:
        console.print_json({"page": str(output), "bytes": size, "checked": True})
    else:
        print(f"page {output} ({size / 1e6:.1f} MB)")


def write_report(plan: Path, instance: Path, output: Path, trace: Path | None, metrics: Path | None) -> int:
    """Check a plan and write its page; return the page's bytes.

    Parameters
    ----------
    trace, metrics
        Of a run of the plan.

    Raises
    ------
    InputError
        When a file is wrong, or of another plan.
    InvalidPlanError
        When the plan is invalid.
    ModuleNotFoundError
        Without the package bokeh.
    """
    import bokeh  # noqa: F401, PLC0415 -- where it is missing that is said before any work

    from cappuccino.checker import check  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.errors import InvalidPlanError  # noqa: PLC0415
    from cappuccino.files import write_atomically  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.reports.page.contents import PageContents  # noqa: PLC0415
    from cappuccino.reports.page.document import report_page  # noqa: PLC0415
    from cappuccino.reports.prediction_error import compare_with_trace  # noqa: PLC0415
    from cappuccino.timeline import read_trace  # noqa: PLC0415

    require_writable(output)
    whole = Instance.load(instance)
    stated, loaded = planned_alone(given := Plan.load(plan), whole)
    if given.done and trace is not None:
        raise InputError(plan, "done", "is of what was left of a run", "set traces beside plans of whole runs")
    losses = () if metrics is None else _losses(metrics, whole)
    costs = fit_instance_costs(loaded)
    checked = check(stated, loaded, costs)
    checked.raise_if_invalid(plan)
    if checked.simulation is None:
        raise InvalidPlanError(f"{plan}: cannot be simulated")
    measured: Sequence[ReplicaComparison] = ()
    if trace is not None:
        lines, kind, digest = read_trace(trace)
        if kind != "measured":
            raise InputError(trace, "otherData.kind", f'is "{kind}"', "give a trace that `cappuccino run` wrote")
        measured = compare_with_trace(stated, loaded, costs, lines, digest, trace)
    done = sum(given.done.values())
    found = checked.simulation, measured, losses, done, checked.bound.certified
    page = report_page(PageContents(stated, loaded, costs, *found)).encode()
    write_atomically(output, page)
    return len(page)


def _losses(metrics: Path, instance: "Instance") -> tuple["LossPoint", ...]:
    from cappuccino.reports.page.contents import LossPoint  # noqa: PLC0415
    from cappuccino.runtime.monitoring.metrics import read_events  # noqa: PLC0415

    if not metrics.is_file():
        raise InputError(metrics, "", "is no file", "give the metrics.jsonl in the output folder of a run")
    events = read_events(metrics)
    if not events:
        raise InputError(metrics, "", "holds no events of a run", "give the metrics.jsonl in its output folder")
    known = {a.name for a in instance.adapters}
    for event in events:
        if event.adapter not in known:
            problem = f'"{event.adapter}" is no adapter of the instance'
            raise InputError(metrics, "adapter", problem, "give the metrics of a run of this plan")
    return tuple(
        LossPoint(e.adapter, e.step, e.kind, e.loss, None if e.reason is None else e.reason.value) for e in events
    )
