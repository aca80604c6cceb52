"""simulate: a plan on the cost model, under noise, and beside what was measured."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.plan_commands import InstanceOption, PlanArgument
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag
from cappuccino.errors import InputError, InvalidPlanError, counted
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cappuccino.checker import CheckReport
    from cappuccino.reports.prediction_error import ReplicaComparison
    from cappuccino.reports.robustness import NoisyRuns
    from cappuccino.simulator import ReplicaSimulation, Simulation

QUANTILES = (0.05, 0.5, 0.95)
"""Of the runs under noise that are stated."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(simulate)


def simulate(
    plan: PlanArgument,
    instance: InstanceOption,
    trace: Annotated[Path | None, typer.Option(help="Write a trace that ui.perfetto.dev opens.")] = None,
    noise: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Run under noise too: standard deviation of the logarithm of its factors."),
    ] = None,
    runs: Annotated[int | None, typer.Option(min=2, help="How many runs under noise.", show_default="200")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise.", show_default="0")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="TRACE", help="Set the times beside those of a measured trace.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the timelines, the measured ones too, as .svg or .png.")
    ] = None,
    begin: Annotated[float, typer.Option("--from", min=0, help="First second that --plot shows.")] = 0.0,
    end: Annotated[
        float | None, typer.Option("--to", min=0, help="Last second that --plot shows; by default all.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run a plan on the cost model: times, bubble and memory of every stage; exit 1 when the plan is invalid."""
    from cappuccino.checker import check as check_plan  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.files import write_atomically  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.remaining import planned_alone  # noqa: PLC0415
    from cappuccino.reports.gantt import Row, drawing  # noqa: PLC0415
    from cappuccino.reports.prediction_error import compare_with_trace  # noqa: PLC0415
    from cappuccino.reports.robustness import run_under_noise  # noqa: PLC0415
    from cappuccino.timeline import read_trace, write_trace  # noqa: PLC0415

    for path, besides in ((trace, plot), (plot, trace)):
        if path is not None:
            require_writable(path, plan, instance, against, besides)
    _require_window(plot, begin, end)
    _require_noise(noise, runs, seed)
    stated, loaded = planned_alone(given := Plan.load(plan), Instance.load(instance))
    if given.done and against is not None:
        raise InputError(plan, "done", "is of what was left of a run", "set traces beside plans of whole runs")
    costs = fit_instance_costs(loaded)
    report = check_plan(stated, loaded, costs)
    if report.simulation is None:
        report.raise_if_invalid(plan)
        raise InvalidPlanError(f"{plan}: cannot be simulated")
    result = report.simulation
    planned = {replica.id: replica for replica in stated.replicas}
    rows = [Row(f"replica {r.timeline.replica}", r.timeline, planned[r.timeline.replica]) for r in result.replicas]
    noisy = None if noise is None else run_under_noise(stated, loaded, costs, noise, runs or 200, seed or 0)
    compared: Sequence[ReplicaComparison] = ()
    if against is not None:
        measured, kind, digest = read_trace(against)
        if kind != "measured":
            raise InputError(against, "otherData.kind", f'is "{kind}"', "give a trace that `cappuccino run` wrote")
        compared = compare_with_trace(stated, loaded, costs, measured, digest, against)
        rows = [
            Row(f"replica {c.replica.id} {what}", line, c.replica)
            for c in compared
            for what, line in (("predicted", c.predicted), ("measured", c.measured))
        ]
    _require_a_begin_before(begin, max((row.line.makespan for row in rows), default=0.0))
    if trace is not None:
        write_trace(trace, [r.timeline for r in result.replicas], stated.replicas, "simulated", loaded.digest)
    if plot is not None:
        write_atomically(plot, drawing(rows, plot.suffix, (begin, end)))
    if json:
        console.print_json(
            {
                "gpu_time_s": result.gpu_time_s,
                "makespan_s": result.makespan_s,
                "cost": result.cost,
                "checked": report.valid,
                "replicas": [_replica_figures(r) for r in result.replicas],
                "noise": None if noisy is None else _noise_figures(noisy),
                "against": None if against is None else [_comparison_figures(c) for c in compared],
                "trace": None if trace is None else str(trace),
                "plot": None if plot is None else str(plot),
            }
        )
    else:
        _print_simulation(result, report)
        if noisy is not None:
            _print_noise(noisy)
        for comparison in compared:
            _print_comparison(comparison)
        for what, path in (("trace", trace), ("plot", plot)):
            if path is not None:
                print(f"{what} {path}")
    console.end_invalid(plan, report)


def _require_noise(noise: float | None, runs: int | None, seed: int | None) -> None:
    if noise is None and (runs is not None or seed is not None):
        raise typer.BadParameter("is of --noise, which is not given", param_hint="--runs, --seed")


def _require_a_begin_before(begin: float, last: float) -> None:
    if begin > 0 and begin >= last:
        raise InputError("--from", "", f"{begin:g} s is behind the end, {last:.4g} s", "give an earlier one")


def _require_window(plot: Path | None, begin: float, end: float | None) -> None:
    """Raise InputError when the plot is of no format, or its window of time is none."""
    from cappuccino.reports.gantt import FORMATS  # noqa: PLC0415

    if plot is None and (begin > 0 or end is not None):
        raise typer.BadParameter("is of --plot, which is not given", param_hint="--from, --to")
    if plot is not None and plot.suffix not in FORMATS:
        ends = " or ".join(FORMATS)
        raise InputError(plot, "", f'"{plot.suffix}" is no format of plots', f"name a file that ends in {ends}")
    if not math.isfinite(begin) or (end is not None and not math.isfinite(end)):
        raise InputError("--from, --to", "", "are to be numbers of seconds", "leave --to out to see all")
    if end is not None and end <= begin:
        raise InputError("--to", "", f"{end:g} s is not behind --from, {begin:g} s", "give a later one")


def _print_simulation(result: "Simulation", report: "CheckReport") -> None:
    checked = "valid" if report.valid else "INVALID"
    print(f"GPU time {result.gpu_time_s:.4g} GPU-s, makespan {result.makespan_s:.4g} s, checked: {checked}")
    for run in result.replicas:
        line = run.timeline
        print(f"replica {line.replica}: {line.makespan:.4g} s, bubble {100 * line.bubble:.1f}%")
        for s, (busy, memory) in enumerate(zip(line.busy, run.peak_memory_gib, strict=True)):
            print(f"  stage {s}: busy {busy:.4g} s ({100 * busy / line.makespan:.1f}%), peak memory {memory:.2f} GiB")


def _replica_figures(run: "ReplicaSimulation") -> dict[str, Any]:
    line = run.timeline
    return {
        "id": line.replica,
        "makespan_s": line.makespan,
        "bubble": line.bubble,
        "busy_s": [float(b) for b in line.busy],
        "peak_memory_gib": list(run.peak_memory_gib),
    }


def _noise_figures(found: "NoisyRuns") -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    return {
        "sigma": found.sigma,
        "runs": len(found.gpu_time_s),
        "gpu_time_mean_s": float(found.gpu_time_s.mean()),
        "makespan_mean_s": float(found.makespan_s.mean()),
        "slowdown_mean": float(found.slowdowns.mean()),
        "quantiles": list(QUANTILES),
        "gpu_time_s": [float(q) for q in np.quantile(found.gpu_time_s, QUANTILES)],
        "makespan_s": [float(q) for q in np.quantile(found.makespan_s, QUANTILES)],
        "slowdown": [float(q) for q in np.quantile(found.slowdowns, QUANTILES)],
    }


def _print_noise(found: "NoisyRuns") -> None:
    figures = _noise_figures(found)
    low, middle, high = figures["gpu_time_s"]
    print(
        f"noise {found.sigma:g}, {figures['runs']} runs: GPU time {figures['gpu_time_mean_s']:.4g} GPU-s "
        f"({100 * (figures['slowdown_mean'] - 1):+z.1f}%), quantiles 5/50/95%: {low:.4g}/{middle:.4g}/{high:.4g}"
    )


def _comparison_figures(found: "ReplicaComparison") -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return {
        "id": found.replica.id,
        "predicted_s": found.predicted.makespan,
        "measured_s": found.measured.makespan,
        "difference": found.difference,
        "difference_at_usual_speed": found.difference_at_usual_speed,
        "causes": asdict(found.causes),
        "operations": [asdict(o) for o in found.operations],
        "steps": [asdict(s) for s in found.steps],
    }


def _print_comparison(found: "ReplicaComparison") -> None:
    predicted, causes = found.predicted.makespan, found.causes
    print(
        f"replica {found.replica.id}: predicted {predicted:.4g} s, measured {found.measured.makespan:.4g} s "
        f"({100 * found.difference:+z.1f}%), of which machine {100 * causes.machine_s / predicted:+z.1f}%, "
        f"compute {100 * causes.compute_s / predicted:+z.1f}%, "
        f"optimizer {100 * causes.optimizer_s / predicted:+z.1f}%, "
        f"transfer {100 * causes.transfer_s / predicted:+z.1f}%, waiting {100 * causes.waiting_s / predicted:+z.1f}%"
    )
    for o in found.operations:
        ratio = f"{o.measured_s / o.predicted_s:.3f}" if o.predicted_s > 0 else "none"
        spread = (
            "" if o.spread[0] != o.spread[0] else f"; of eight in ten operations {o.spread[0]:.2f} to {o.spread[1]:.2f}"
        )
        print(
            f"  stage {o.stage} {o.kind}: {o.count}, predicted {o.predicted_s:.4g} s, measured {o.measured_s:.4g} s, "
            f"ratio {ratio}{spread}"
        )
    off: dict[str, list[float]] = {}
    for step in found.steps:
        off.setdefault(step.adapter, []).append(step.measured_s - step.predicted_s)
    for adapter, late in off.items():
        worst = max(late, key=abs)
        print(f"  {adapter}: {counted(len(late), 'step')}, the last one {late[-1]:+z.4g} s, the worst {worst:+z.4g} s")
