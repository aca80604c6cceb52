"""compare: the plan beside every baseline."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.plan_commands import InstanceArgument
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InfeasibleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cappuccino.cli.terminal.console import Show
    from cappuccino.costs import CostModel
    from cappuccino.instance import Instance
    from cappuccino.plan import Plan

OURS = "cappuccino"
SEQUENTIAL = "sequential"
"""Baseline whose figure stands beside that of separate runs."""
DEFAULT_TIME_LIMIT_S = 60.0
_COLUMNS = ("", "GPU-s", "makespan s", "cost", "replicas", "GPUs", "ratio", "bubble", "checked")


@dataclass(frozen=True)
class ComparedPlan:
    """One row of the comparison."""

    name: str
    gpu_time_s: float
    makespan_s: float
    cost: float | None
    """Money, where every pool used has a price."""
    replicas: int
    gpus: int
    """GPUs that its replicas occupy."""
    ratio: float
    """GPU time as a multiple of our plan's."""
    bubble: float
    """Fraction of its GPU time in which GPUs do nothing."""
    checked: bool
    wall_time_s: float | None
    """What it took to make; None for a plan that was read."""


@dataclass(frozen=True)
class Impossible:
    """A baseline that cannot run on the instance."""

    name: str
    reason: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    instance: InstanceArgument,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN", help="Compare this plan instead of making one.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0.1, help=f"Seconds for making our plan.  [default: {DEFAULT_TIME_LIMIT_S:g}]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for making our plan.  [default: 0]")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare the plan with every baseline on the same costs: one table, and why a baseline cannot run."""
    if plan is not None and (time_limit is not None or seed is not None):
        raise typer.BadParameter("--plan is given, so that none is made: leave out --time-limit and --seed")
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.reports.plan_warnings import instance_warnings  # noqa: PLC0415

    loaded, given = Instance.load(instance), None
    if plan is not None:
        given, loaded = planned_alone(Plan.load(plan), loaded)
    costs = fit_instance_costs(loaded)
    from cappuccino.solvers.baselines import BASELINES, baseline_plan  # noqa: PLC0415

    share = 1 / (1 + len(BASELINES))
    rows: list[ComparedPlan | Impossible] = []
    with console.progress_bar("comparing") as show:
        if given is None:
            begin = time.monotonic()
            given = _make(loaded, costs, time_limit or DEFAULT_TIME_LIMIT_S, seed or 0, show, share)
            ours = _row(OURS, given, loaded, costs, None, time.monotonic() - begin)
        else:
            show(0, OURS)
            ours = _row(OURS, given, loaded, costs, None, None, plan)
        rows.append(ours)
        for number, name in enumerate(BASELINES, start=1):
            show(number * share, name)
            begin = time.monotonic()
            try:
                made = baseline_plan(name, loaded, costs)
            except InfeasibleError as error:
                rows.append(Impossible(name.value, str(error)))
            else:
                rows.append(_row(name.value, made, loaded, costs, ours.gpu_time_s, time.monotonic() - begin))
        show(1, f"{len(BASELINES)} baselines")
    warnings = list(instance_warnings(loaded))
    for warning in warnings:
        console.warn(warning)
    if json:
        console.print_json(
            {
                "instance": loaded.name,
                "plan": None if plan is None else str(plan),
                "rows": [asdict(row) for row in rows],
                "warnings": warnings,
            }
        )
    else:
        _print_table(rows)
        if any(isinstance(row, ComparedPlan) and row.name == SEQUENTIAL for row in rows):
            _print_separate(given)


def _make(
    instance: "Instance",
    costs: "Mapping[str, CostModel]",
    time_limit_s: float,
    seed: int,
    show: "Show",
    share: float,
) -> "Plan":
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    def on_progress(state: Progress) -> None:
        show(min(1.0, state.elapsed_s / time_limit_s) * share, f"{OURS}, {state.objective:.4g} GPU-s")

    return make_plan(instance, PlanOptions(time_limit_s=time_limit_s, seed=seed), costs, on_progress)


def _row(
    name: str,
    plan: "Plan",
    instance: "Instance",
    costs: "Mapping[str, CostModel]",
    ours_gpu_time_s: float | None,
    wall_time_s: float | None,
    source: Path | None = None,
) -> ComparedPlan:
    """Return the row of a plan after checking it; `ours_gpu_time_s` is None for our own."""
    from cappuccino.checker import check  # noqa: PLC0415

    report = check(plan, instance, costs)
    report.raise_if_invalid(source or name)
    result = report.simulation
    assert result is not None  # a valid plan was simulated
    busy = sum(float(run.timeline.busy.sum()) for run in result.replicas)
    reference = result.gpu_time_s if ours_gpu_time_s is None else ours_gpu_time_s
    return ComparedPlan(
        name=name,
        gpu_time_s=result.gpu_time_s,
        makespan_s=result.makespan_s,
        cost=result.cost,
        replicas=len(plan.replicas),
        gpus=sum(r.num_stages for r in plan.replicas),
        ratio=result.gpu_time_s / reference,
        bubble=max(0.0, 1 - busy / result.gpu_time_s),
        checked=report.valid,
        wall_time_s=wall_time_s,
    )


def _print_table(rows: Sequence[ComparedPlan | Impossible]) -> None:
    """Print one line per plan, and one per baseline that cannot run."""
    cells = []
    for row in rows:
        if isinstance(row, ComparedPlan):
            cost = "-" if row.cost is None else f"{row.cost:.4g}"
            figures = (f"{row.gpu_time_s:.1f}", f"{row.makespan_s:.1f}", cost, str(row.replicas), str(row.gpus))
            checked = "valid" if row.checked else "INVALID"
            cells.append((row.name, *figures, f"{row.ratio:.3f}", f"{100 * row.bubble:.1f}%", checked))
    console.print_table(_COLUMNS, cells)
    for row in rows:
        if isinstance(row, Impossible):
            print(f"{row.name} cannot run: {row.reason}")


def _print_separate(plan: "Plan") -> None:
    """Print what separate runs of all adapters take, where the plan says it, and why that is not `sequential`."""
    from cappuccino.reports.sharing import SEPARATE_AND_SEQUENTIAL, sharing_summary  # noqa: PLC0415

    found = sharing_summary(plan)
    if found is not None and found.separate is not None and found.compared == found.adapters:
        print(f"separate    {found.separate:.4g} {found.unit}; {SEPARATE_AND_SEQUENTIAL}")
