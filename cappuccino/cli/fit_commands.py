"""fit, calibrate: what there is to trust in a cost table, and what a run says of it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.plan_commands import InstanceOption, PlanArgument
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.costs.validation import Validation
    from cappuccino.reports.table_calibration import Calibration, Correction


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(fit)
    app.command()(calibrate)


def fit(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Cost table (CSV).")],
    backbone: Annotated[str | None, typer.Option(help="Only this backbone; by default all of the table.")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of one GPU; by default what the rows that failed say.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the rows, each predicted by a fit of the others.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the division into parts.")] = 0,
    one_depth: Annotated[
        bool, typer.Option("--one-depth", help="Take a table of one stage count: plans are to use no other.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write predicted against measured and residuals, .svg.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fit the cost model to a table; errors on rows left out of the fit, capacities, and what not to trust."""
    from cappuccino.costs import read_cost_table  # noqa: PLC0415
    from cappuccino.costs.fit import FEWEST_ROWS  # noqa: PLC0415
    from cappuccino.costs.validation import validate  # noqa: PLC0415
    from cappuccino.files import write_atomically  # noqa: PLC0415

    if plot is not None:
        if plot.suffix != ".svg":
            raise InputError(plot, "", f'"{plot.suffix}" is no format of plots', "name a file that ends in .svg")
        require_writable(plot)
    rows = read_cost_table(table)
    wanted = [pair for pair in rows.backbones if backbone in (None, pair[0])]
    if not wanted:
        known = ", ".join(sorted({name for name, _ in rows.backbones}))
        raise InputError(table, "param_name", f'no OK rows of "{backbone}"', f"use a backbone of the table: {known}")
    for name, gpu in () if one_depth else wanted:
        mine = rows.select(name, gpu).ok["pp_size"]
        depths = sorted(set(mine))
        if len(depths) == 1 and len(mine) >= FEWEST_ROWS:  # fewer are an error of their own
            problem = f'{depths[0]} is the only stage count of "{name}": it tells nothing of others'
            remedy = "profile another one, or give --one-depth where plans are to use this one only"
            raise InputError(table, "pp_size", problem, remedy)
    found = {}
    with console.progress_bar("fitting") as show:
        for done, (name, gpu) in enumerate(wanted):
            show(done / len(wanted), name)
            key = name if sum(other == name for other, _ in wanted) == 1 else f"{name} on {gpu}"
            found[key] = validate(rows, name, gpu, memory_gib=memory, folds=folds, seed=seed)
    if plot is not None:
        write_atomically(plot, _plot(found))
    if json:
        console.print_json({"backbones": {key: _figures(v) for key, v in found.items()}, "plot": plot and str(plot)})
    else:
        for key, validation in found.items():
            _print(key, validation)
    for key, validation in found.items():
        for warning in validation.warnings:
            console.warn(f"{key}: {warning}")


def calibrate(
    plan: PlanArgument,
    instance: InstanceOption,
    trace: Annotated[Path, typer.Option("--trace", metavar="TRACE", help="The trace that the plan's run wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE", help="Where the corrected table goes.")],
    json: JsonFlag = False,
) -> None:
    """Correct the instance's cost table by the measured times of a run; plan with it by naming it in the instance."""
    from cappuccino.checker import check as check_plan  # noqa: PLC0415
    from cappuccino.costs import fit_instance_costs  # noqa: PLC0415
    from cappuccino.files import write_atomically  # noqa: PLC0415
    from cappuccino.instance import Instance  # noqa: PLC0415
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.reports import table_calibration as calibrations  # noqa: PLC0415
    from cappuccino.reports.prediction_error import compare_with_trace  # noqa: PLC0415
    from cappuccino.timeline import read_trace  # noqa: PLC0415
    from cappuccino.workload import Workload  # noqa: PLC0415

    require_writable(output)
    loaded, stated = Instance.load(instance), Plan.load(plan)
    if stated.done:
        raise InputError(plan, "done", "is of what was left of a run", "calibrate by the run of a whole plan")
    costs = fit_instance_costs(loaded)
    check_plan(stated, loaded, costs).raise_if_invalid(plan)
    measured, kind, digest = read_trace(trace)
    if kind != "measured":
        raise InputError(trace, "otherData.kind", f'is "{kind}"', "give a trace that `cappuccino run` wrote")
    compared = compare_with_trace(stated, loaded, costs, measured, digest, trace)
    found = {}
    for gpu, mode in dict.fromkeys((c.replica.gpu, c.replica.recompute) for c in compared):
        mine = [c for c in compared if (c.replica.gpu, c.replica.recompute) == (gpu, mode)]
        found[gpu, mode] = calibrations.calibrate([(c, Workload.of(c.replica, loaded, costs[gpu])) for c in mine])
    table = calibrations.corrected_table(loaded.cost_table, loaded.backbone, found)
    write_atomically(output, table.to_csv(index=False))
    kinds = Counter(gpu for gpu, _ in found)
    named = {gpu if kinds[gpu] == 1 else f"{gpu}, recompute {mode}": c for (gpu, mode), c in found.items()}
    if json:
        console.print_json({"table": str(output), "gpus": {gpu: _calibration_figures(c) for gpu, c in named.items()}})
        return
    for gpu, c in named.items():
        factors = [f"{name} x {f.factors.min():.3f} to {f.factors.max():.3f}" for name, f in _corrections(c)]
        print(f"{gpu}: {', '.join(factors)}, from {counted(c.operations, 'operation')}")
    print(f"table {output}")


def _corrections(found: "Calibration") -> list[tuple[str, "Correction"]]:
    return [("forward", found.forward), ("backward", found.backward)]


def _calibration_figures(found: "Calibration") -> dict[str, Any]:
    factors = {n: {"tokens": c.tokens.tolist(), "factors": c.factors.tolist()} for n, c in _corrections(found)}
    times = {"optimizer_s": found.optimizer_s, "transfer_s": found.transfer_s, "operations": found.operations}
    return {**factors, **times}


def _figures(found: "Validation") -> dict[str, Any]:
    model = found.model
    return {
        "gpu": found.gpu,
        "rows": found.folds.rows,
        "time_mape_cv": found.folds.time,
        "memory_mape_cv": found.folds.memory,
        "configurations_left_out": asdict(found.configurations),
        "stage_counts_left_out": None if found.stage_counts is None else asdict(found.stage_counts),
        "by_stages": [asdict(e) for e in found.by_stages],
        "by_tokens": [asdict(e) for e in found.by_tokens],
        "capacities": [asdict(c) for c in found.capacities],
        "forward": asdict(model.forward),
        "backward": asdict(model.backward),
        "optimizer_s": model.optimizer_s,
        "transfer_s": {"latency": model.transfer[0], "per_token": model.transfer[1]},
        "layers_per_stage": {g: list(split) for g, split in sorted(model.splits.items())},
        "analytic": model.analytic,
        "warnings": list(found.warnings),
    }


def _print(key: str, found: "Validation") -> None:
    from cappuccino.costs.validation import stages  # noqa: PLC0415

    source = "analytic" if found.model.analytic else "measured"
    print(f"{key} ({found.gpu or 'any GPU'}, {source}), mean absolute errors on rows left out of the fit:")
    lines = [found.folds, found.configurations, *([found.stage_counts] if found.stage_counts else [])]
    cells = [
        (errors.label, str(errors.rows), _percent(errors.time), _percent(errors.memory))
        for errors in (*lines, *found.by_stages, *found.by_tokens)
    ]
    console.print_table(("left out", "rows", "time", "memory"), cells)
    model = found.model
    if any(model.transfer):
        per_token = f"{console.figure(1e6 * model.transfer[1])} us per token"
        print(f"transfer between stages: {console.figure(1e3 * model.transfer[0])} ms and {per_token}")
    if model.optimizer_s:
        print(f"optimizer step: {console.figure(1e3 * model.optimizer_s)} ms per adapter and stage")
    if model.layer_shape is not None:
        curve = model.forward
        added = (1e3 * curve.per_module_s, 1e9 * curve.per_width_s, 1e9 * curve.per_parameter_s)
        module, width, parameter = map(console.figure, added)
        charges = f"{module} ms a module; a token {width} ns a width, {parameter} ns a parameter"
        print(f"an adapter adds (forward): {charges}")
    for g, split in sorted(model.splits.items()):
        print(f"layers of {stages(g)}: {' + '.join(map(str, split))}")
    for capacity in found.capacities:
        mode = f", recompute {capacity.recompute}" if len(found.model.choices) > 1 else ""
        where = f"{stages(capacity.num_stages)}{mode}, {capacity.memory_gib:.3g} GiB"
        print(f"largest micro-batch, {where}: {capacity.tokens} tokens ({capacity.low} to {capacity.high})")


def _percent(error: float | None) -> str:
    return "none" if error is None else f"{100 * error:.1f}%"


def _plot(found: dict[str, "Validation"]) -> str:
    from cappuccino.costs.validation import stages  # noqa: PLC0415
    from cappuccino.reports.plot import Axis, Panel, Series, line_charts  # noqa: PLC0415

    panels = []
    for key, validation in found.items():
        rows = validation.rows.dropna(subset=["time_predicted_s"])
        times = [float(rows["time_per_step_s"].min()), float(rows["time_per_step_s"].max())]
        predicted, residuals = [Series("exact", times, times, dashed=True, markers=False)], []
        for g, group in rows.groupby("pp_size", sort=True):
            measured, expected = group["time_per_step_s"], group["time_predicted_s"]
            label = stages(int(str(g)))
            errors = (100 * (expected / measured - 1)).tolist()
            predicted.append(Series(label, measured.tolist(), expected.tolist(), shape="none"))
            residuals.append(Series(label, group["tokens"].tolist(), errors, shape="none"))
        x, y = Axis("measured, seconds", log=True), Axis("predicted, seconds", log=True)
        panels.append(Panel(f"{key}: step times", x, y, predicted))
        x, y = Axis("tokens of a micro-batch", log=True), Axis("predicted / measured - 1, %")
        panels.append(Panel(f"{key}: residuals", x, y, residuals))
    return line_charts(panels, columns=2)
