"""Fitting the cost model to a cost table, to relative error."""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares, nnls

from cappuccino.backbone import ALL_LINEAR, BACKBONES
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.curves import SmoothMaximum
from cappuccino.costs.memory_fit import _usable_memory, fit_memory, kept_memory
from cappuccino.costs.model import CostModel
from cappuccino.costs.stages import StageParts
from cappuccino.costs.table import (
    ADAPTERS,
    DROPOUT,
    ENGINE,
    LAYERS,
    MIXED,
    PARTS,
    REFERENCE,
    CostTable,
    adapter_sizes,
    layer_count,
    layer_shape,
    read_cost_table,
)
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.plan import even_layers

BACKWARD_OVER_FORWARD = 2.0
"""Ratio of backward to forward time where a table has step times only (frozen backbone, activations recomputed)."""
FEWEST_ROWS = 4
"""Of a backbone on a GPU type, without which nothing is fitted."""
_POWER_BOUNDS = (1.0, 16.0)
_FEWEST_ADAPTER_KINDS = 3
"""Sizes and numbers of adapters without which a table does not tell what adapters add."""
ADAPTER_COLUMNS = ("modules", "widths", "parameters", "dropped")
_LEAST_S = 1e-9
_BUBBLE_BOUNDS = (0.05, 3.0)


def fit_instance_costs(
    instance: Instance, backward_over_forward: float = BACKWARD_OVER_FORWARD
) -> dict[str, CostModel]:
    """Return the cost model of every GPU pool of an instance, by GPU type.

    Where the table was measured with the engine that trains, plans are kept to the micro-batches that it holds.

    Raises
    ------
    InputError
        When the cost table is malformed or lacks the backbone or a GPU type.
    """
    table = read_cost_table(instance.cost_table)
    if "gpu" not in table.ok.columns and len(instance.gpu_pools) > 1:
        remedy = "add a `gpu` column to the table, or keep one pool"
        raise InputError(
            instance.cost_table, "gpu", f"column is missing for {len(instance.gpu_pools)} GPU pools", remedy
        )
    models = (fit_costs(table, instance.backbone, p.gpu, backward_over_forward) for p in instance.gpu_pools)
    longest = max(
        int(lengths.max(initial=0))
        for i, trained in enumerate(instance.step_lengths)
        for lengths in (trained, instance.evaluation_lengths(i))
    )
    return {m.gpu: m.kept_to(longest) if m.engine == ENGINE and not m.analytic else m for m in models}


def fit_costs(
    table: CostTable, backbone: str, gpu: str, backward_over_forward: float = BACKWARD_OVER_FORWARD
) -> CostModel:
    """Fit times and memory of one backbone on one GPU type.

    A row's `time_per_step_s` is about `(grad_acc_steps + pp_size - 1)` slots of one micro-batch (forward and backward)
    on a stage, flush included (`fit_slot`). Where the table has `forward_time_s` and `backward_time_s`, these are
    fitted instead, for every stage count by itself; where it has the times of a decoder layer and of what first and
    last stage have besides, every stage is put together from them (`StageParts`), so that the slowest of a measured
    count takes what was measured.

    Rows of different recomputation are fitted apart: the first kind that has enough rows gives the model, further ones
    its alternatives.

    Raises
    ------
    InputError
        When too few rows are left to fit.
    """
    rows = table.select(backbone, gpu)
    by_mode = [(mode, rows.of_recomputation(mode)) for mode in rows.recomputations]
    enough = [(mode, part) for mode, part in by_mode if len(part.ok) >= FEWEST_ROWS]
    if not enough:
        few = f"{max(len(part.ok) for _, part in by_mode)} OK rows"
        apart = " of one kind of recomputation" if len(by_mode) > 1 else ""
        problem = f'{few} of "{backbone}"{apart}'
        raise InputError(table.source, "status", problem, f"profile at least {FEWEST_ROWS} points")
    first, *others = (
        replace(_fit(part, backbone, gpu, backward_over_forward), recompute=mode) for mode, part in enough
    )
    return replace(first, alternatives=tuple(others))


def _fit(rows: CostTable, backbone: str, gpu: str, backward_over_forward: float) -> CostModel:
    ok = rows.ok.assign(**adapter_columns(rows.ok))
    spec = BACKBONES.get(backbone)
    layers = layer_count(ok)
    stage_forward: dict[int, SmoothMaximum] = {}
    stage_backward: dict[int, SmoothMaximum] = {}
    parts: dict[int, StageParts] = {}
    mixed: dict[int, tuple[float, float]] = {}
    bubble = 1.0
    by_count = {int(str(g)): group for g, group in ok.groupby("pp_size")}
    splits = _splits(ok, layers) if layers is not None else {}
    if "forward_time_s" in ok and "backward_time_s" in ok:
        enough = {g: group for g, group in by_count.items() if len(group) >= FEWEST_ROWS}
        if set(PARTS) <= set(ok) and layers is not None:
            deepest = max(by_count)
            parts = {g: fit_parts(group, splits[g]) for g, group in (enough or {deepest: ok}).items()}
            forward, backward = (curve.scaled(layers) for curve in parts[max(parts)].layer)
        else:
            forward = fit_smooth_maximum(ok, ok["forward_time_s"] * ok["pp_size"])
            backward = fit_smooth_maximum(ok, ok["backward_time_s"] * ok["pp_size"])
            stage_forward = {g: fit_smooth_maximum(group, group["forward_time_s"]) for g, group in enough.items()}
            stage_backward = {g: fit_smooth_maximum(group, group["backward_time_s"]) for g, group in enough.items()}
        if set(MIXED) <= set(ok):
            found = {g: (float(rows[MIXED[0]].iloc[0]), float(rows[MIXED[1]].iloc[0])) for g, rows in by_count.items()}
            mixed = {g: found.get(g, found[max(found)]) for g in {*found, *stage_forward, *parts}}
            stage_forward = {g: curve.scaled(mixed[g][0]) for g, curve in stage_forward.items()}
            stage_backward = {g: curve.scaled(mixed[g][1]) for g, curve in stage_backward.items()}
            parts = {g: part.scaled(*mixed[g]) for g, part in parts.items()}
            forward, backward = (c.scaled(x) for c, x in zip((forward, backward), found[max(found)], strict=True))
    else:
        both, bubble = fit_slot(ok)
        forward = both.scaled(1 / (1 + backward_over_forward))
        backward = both.scaled(backward_over_forward / (1 + backward_over_forward))
    memory = fit_memory(ok)
    balanced: dict[int, tuple[int, ...]] = {}
    if parts and layers is not None:
        largest = int(np.argmax(ok["tokens"]))
        shape = float(ok["tokens"].iloc[largest]), float(ok["squares"].iloc[largest])
        counts = [g for g in range(1, min(layers, 2 * max(by_count)) + 1) if g not in by_count]
        balanced = {g: parts[max(parts)].balanced(layers, g, *shape) for g in counts}
    return CostModel(
        backbone=backbone,
        gpu=gpu,
        forward=forward,
        backward=backward,
        stage_forward=stage_forward,
        stage_backward=stage_backward,
        memory=memory,
        bubble=bubble,
        optimizer_s=float(ok["optimizer_time_s"].median()) if "optimizer_time_s" in ok else 0.0,
        transfer=_fit_transfer(ok),
        parts=parts,
        num_layers=layers,
        splits=splits | balanced,
        measured_splits=splits,
        kept=kept_memory(ok, splits, memory),
        mixed=mixed,
        reference_s={g: float(group[REFERENCE].median()) for g, group in by_count.items()} if REFERENCE in ok else {},
        layer_shape=layer_shape(ok),
        weights_gib=spec.parameters * 2 / 2**30 if spec else None,
        usable_memory_gib=_usable_memory(rows, memory),
        profiled_tokens=(int(ok["tokens"].min()), int(ok["tokens"].max())),
        analytic=rows.is_analytic,
        device=_only(rows, ok, "device"),
        dtype=_only(rows, ok, "dtype"),
        engine=_only(rows, ok, "engine"),
    )


def _only(table: CostTable, rows: pd.DataFrame, column: str) -> str | None:
    """Return the one value of a column, None where the table does not have it."""
    values = sorted(set(rows[column])) if column in rows else []
    if len(values) > 1:
        problem = f'rows of {" and ".join(values)} for "{rows["param_name"].iloc[0]}" on one GPU type'
        raise InputError(table.source, column, problem, "keep those of one, or name the GPU types apart")
    return str(values[0]) if values and values[0] else None


def fit_slot(rows: pd.DataFrame) -> tuple[SmoothMaximum, float]:
    """Fit the time of a micro-batch (forward and backward) and what the flush of an optimizer step costs.

    Returns
    -------
    SmoothMaximum
        Of the whole backbone; a stage takes `1 / pp_size` of it.
    float
        Slots of one micro-batch that a flush takes per stage behind the first: 1 in theory. It is fitted where a stage
        count was measured with several numbers of micro-batches; elsewhere nothing tells it from the slots.
    """
    count, behind = rows["grad_acc_steps"].to_numpy(float), rows["pp_size"].to_numpy(float) - 1
    steps = rows["time_per_step_s"].to_numpy(float) * (behind + 1)
    curve = fit_smooth_maximum(rows, pd.Series(steps / (count + behind), rows.index))
    if not (rows[behind > 0].groupby("pp_size")["grad_acc_steps"].nunique() > 1).any():
        return curve, 1.0
    tokens, squares = rows["tokens"].to_numpy(float), rows["squares"].to_numpy(float)
    start = np.log([curve.floor_s, curve.per_token_s, curve.per_square_s, curve.power, 1.0])

    def error(parameters: np.ndarray) -> np.ndarray:
        *of_curve, bubble = np.exp(parameters)
        return np.asarray(np.log(SmoothMaximum(*of_curve)(tokens, squares) * (count + bubble * behind) / steps))

    powers, bubbles = np.log(_POWER_BOUNDS), np.log(_BUBBLE_BOUNDS)
    lower = np.append(start[:3] - np.array([2.0, 2.0, 12.0]), [powers[0], bubbles[0]])
    upper = np.append(start[:3] + np.array([2.0, 2.0, 4.0]), [powers[1], bubbles[1]])
    start = np.clip(start, lower + 1e-6, upper - 1e-6)
    found = np.exp(least_squares(error, start, loss="soft_l1", f_scale=0.05, bounds=(lower, upper)).x)
    return SmoothMaximum(*(float(x) for x in found[:4])), float(found[4])


def adapter_columns(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Return size and number of the adapters in each row's micro-batches, where the table tells them apart."""
    shape = layer_shape(rows)
    if shape is None or not set(rows) >= ADAPTERS:
        return {}
    sizes = adapter_sizes(rows, shape)
    if len(set(zip(sizes, rows["num_adapters"], strict=True))) < _FEWEST_ADAPTER_KINDS:
        return {}
    columns = {name: [getattr(size, name) for size in sizes] for name in ADAPTER_COLUMNS}
    columns["modules"] = [m * k for m, k in zip(columns["modules"], rows["num_adapters"], strict=True)]
    return columns


def _splits(rows: pd.DataFrame, num_layers: int) -> dict[int, tuple[int, ...]]:
    """Return the decoder layers by stage that rows of a stage count are of."""
    return {
        int(str(g)): tuple(group[LAYERS].iloc[0]) if LAYERS in group else even_layers(num_layers, int(str(g)))
        for g, group in rows.groupby("pp_size")
    }


def fit_parts(rows: pd.DataFrame, layers: tuple[int, ...]) -> StageParts:
    """Fit the parts of stages; rows of several adapters tell their share of a layer.

    What the slowest stage takes as a whole, which the rows say too, corrects the parts by a factor: operations have
    more to do than their parts, and these were measured on all stages.

    Parameters
    ----------
    rows
        With the columns `PARTS`.
    layers
        Decoder layers by stage.
    """
    alike = rows.drop(columns=[name for name in ADAPTER_COLUMNS if name in rows])  # head and embedding know no adapters

    def curve(rows: pd.DataFrame, *parts: str) -> SmoothMaximum:
        seconds = sum((rows[f"{part}_time_s"] for part in parts), pd.Series(0.0, rows.index))
        return fit_smooth_maximum(rows, seconds.clip(lower=_LEAST_S))

    found = StageParts(
        layer=(curve(rows, "layer_forward"), curve(rows, "layer_backward")),
        last=(curve(alike, "head_forward", "loss_forward"), curve(alike, "head_backward", "loss_backward")),
        input_forward=curve(alike, "input_forward"),
    )
    return found.scaled(*_whole_over_parts(rows, layers))


def _whole_over_parts(rows: pd.DataFrame, layers: tuple[int, ...]) -> tuple[float, float]:
    """Return by how much forward and backward of the slowest stage take longer than their parts, in the median."""
    stages = np.zeros((2, len(layers), len(rows)))
    for k, kind in enumerate(("forward", "backward")):
        stages[k] = np.outer(layers, rows[f"layer_{kind}_time_s"])
        stages[k, -1] += rows[f"head_{kind}_time_s"] + rows[f"loss_{kind}_time_s"]
    stages[0] += rows["input_forward_time_s"].to_numpy()
    slowest = stages.sum(axis=0).argmax(axis=0)
    measured = rows[["forward_time_s", "backward_time_s"]].to_numpy(float).T
    together = stages[:, slowest, np.arange(len(rows))]
    forward, backward = np.median(measured / np.maximum(together, _LEAST_S), axis=1)
    return float(forward), float(backward)


def fit_smooth_maximum(rows: pd.DataFrame, seconds: pd.Series) -> SmoothMaximum:
    """Fit a smooth maximum to the logarithm of the times: a robust fit of the relative error.

    Rows with `modules` (of all adapters of a micro-batch), `widths`, `parameters` and `dropped` (of an adapter in a
    decoder layer) tell what adapters add.
    """
    if "modules" in rows:
        return _fit_with_adapters(rows, seconds)
    tokens, squares = rows["tokens"].to_numpy(float), rows["squares"].to_numpy(float)
    times = seconds.to_numpy(float)
    largest = np.argsort(tokens)[-max(1, len(tokens) // 4) :]
    slope = float(np.median(times[largest] / tokens[largest]))
    length = float(np.median(squares / tokens))
    start = np.log([times.min(), slope, 0.05 * slope / length, 4.0])

    def curve(parameters: np.ndarray) -> SmoothMaximum:
        floor, per_token, per_square, power = np.exp(parameters)
        return SmoothMaximum(float(floor), float(per_token), float(per_square), float(power))

    def error(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(curve(parameters)(tokens, squares) / times))

    spread = np.array([8.0, 8.0, 12.0])
    lower = np.append(start[:3] - spread, np.log(_POWER_BOUNDS[0]))
    upper = np.append(start[:3] + spread, np.log(_POWER_BOUNDS[1]))
    return curve(least_squares(error, start, loss="soft_l1", f_scale=0.05, bounds=(lower, upper)).x)


def _fit_with_adapters(rows: pd.DataFrame, seconds: pd.Series) -> SmoothMaximum:
    """Fit all coefficients together, those of the adapters not negative."""
    tokens, squares = rows["tokens"].to_numpy(float), rows["squares"].to_numpy(float)
    modules, widths, parameters, dropped = (rows[name].to_numpy(float) for name in ADAPTER_COLUMNS)
    times = seconds.to_numpy(float)
    plain = fit_smooth_maximum(rows[["tokens", "squares"]], seconds)
    # in units of what the whole curve has per module, width and parameter, so that all coefficients are about one
    of_token = [plain.per_token_s / x.mean() if x.any() else 0.0 for x in (widths, parameters, dropped)]
    units = np.array([plain.floor_s / modules.mean(), *of_token])

    def curve(values: np.ndarray) -> SmoothMaximum:
        return SmoothMaximum(*(float(x) for x in np.exp(values[:4])), *(float(x) for x in values[4:] * units))

    def error(values: np.ndarray) -> np.ndarray:
        found = curve(values)
        of_size = found.per_width_s * widths + found.per_parameter_s * parameters
        more_work = tokens * (of_size + found.per_dropped_s * dropped)
        return np.asarray(np.log(found(tokens, squares, found.per_module_s * modules, more_work) / times))

    start = np.log([plain.floor_s * 0.8, plain.per_token_s * 0.8, plain.per_square_s, plain.power])
    lower = np.append(start[:3] - np.array([8.0, 8.0, 12.0]), [np.log(_POWER_BOUNDS[0]), 0, 0, 0, 0])
    upper = np.append(start[:3] + np.array([8.0, 8.0, 12.0]), [np.log(_POWER_BOUNDS[1]), 2, 2, 2, 2])
    begin = np.clip(np.append(start, [0.1, 0.1, 0.1, 0.1]), lower + 1e-6, upper - 1e-6)
    return curve(least_squares(error, begin, loss="soft_l1", f_scale=0.05, bounds=(lower, upper)).x)


def _fit_transfer(rows: pd.DataFrame) -> tuple[float, float]:
    if "transfer_time_s" not in rows or not (rows["pp_size"] > 1).any():
        return 0.0, 0.0
    linked = rows[rows["pp_size"] > 1]
    tokens = linked["tokens"].to_numpy(float)
    design = np.stack([np.ones_like(tokens), tokens], axis=1)
    (latency, per_token), _ = nnls(design, linked["transfer_time_s"].to_numpy(float))
    return float(latency), float(per_token)


def predicted_step_time(model: CostModel, row: pd.Series) -> float:
    """Return what a model makes of a row's `time_per_step_s`, seconds."""
    g, size = int(row["pp_size"]), None
    if model.layer_shape is not None and "target_modules" in row:
        names = ALL_LINEAR if row["target_modules"] == [ALL_LINEAR] else row["target_modules"]
        size = AdapterSize.of(model.layer_shape, int(row["rank"]), names, float(row.get(DROPOUT, 0.0)))
    number = int(row.get("num_adapters", 1))
    times = model.alike_times(g, float(row["tokens"]), float(row["squares"]), size, number)
    return float(times.sum(axis=0).max()) * (float(row["grad_acc_steps"]) + model.bubble * (g - 1))
