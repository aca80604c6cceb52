"""Fitting the cost model to a cost table, to relative error."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import least_squares, nnls

from cappuccino.catalogue import BACKBONES
from cappuccino.costs.model import CostModel, MemoryModel, SmoothMaximum
from cappuccino.costs.table import CostTable, read_cost_table
from cappuccino.errors import InputError
from cappuccino.instance import Instance

BACKWARD_OVER_FORWARD = 2.0
"""Ratio of backward to forward time where a table has step times only (frozen backbone, activations recomputed)."""
_MIB_PER_GIB = 1024
_FEWEST_ROWS = 4
_POWER_BOUNDS = (1.0, 16.0)


def fit_instance_costs(
    instance: Instance, backward_over_forward: float = BACKWARD_OVER_FORWARD
) -> dict[str, CostModel]:
    """Return the cost model of every GPU pool of an instance, by GPU type.

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
    return {p.gpu: fit_costs(table, instance.backbone, p.gpu, backward_over_forward) for p in instance.gpu_pools}


def fit_costs(
    table: CostTable, backbone: str, gpu: str, backward_over_forward: float = BACKWARD_OVER_FORWARD
) -> CostModel:
    """Fit times and memory of one backbone on one GPU type.

    A row's `time_per_step_s` is `(grad_acc_steps + pp_size - 1)` slots of one micro-batch (forward and backward) on a
    stage, flush included. Where the table has `forward_time_s` and `backward_time_s`, these are fitted instead, for
    every stage count by itself.

    Raises
    ------
    InputError
        When too few rows are left to fit.
    """
    rows = table.select(backbone, gpu)
    ok = rows.ok
    if len(ok) < _FEWEST_ROWS:
        problem = f'{len(ok)} OK rows of "{backbone}"'
        raise InputError(table.source, "status", problem, f"profile at least {_FEWEST_ROWS} points")
    spec = BACKBONES.get(backbone)
    layers = int(ok["num_layers"].iloc[0]) if "num_layers" in ok else (spec.num_layers if spec else None)
    stage_forward: dict[int, SmoothMaximum] = {}
    stage_backward: dict[int, SmoothMaximum] = {}
    if "forward_time_s" in ok and "backward_time_s" in ok:
        forward = fit_smooth_maximum(ok, ok["forward_time_s"] * ok["pp_size"])
        backward = fit_smooth_maximum(ok, ok["backward_time_s"] * ok["pp_size"])
        for g, group in ok.groupby("pp_size"):
            if len(group) >= _FEWEST_ROWS:
                stage_forward[int(str(g))] = fit_smooth_maximum(group, group["forward_time_s"])
                stage_backward[int(str(g))] = fit_smooth_maximum(group, group["backward_time_s"])
    else:
        both = fit_smooth_maximum(ok, slot_time(ok) * ok["pp_size"])
        forward = both.scaled(1 / (1 + backward_over_forward))
        backward = both.scaled(backward_over_forward / (1 + backward_over_forward))
    memory = fit_memory(ok)
    return CostModel(
        backbone=backbone,
        gpu=gpu,
        forward=forward,
        backward=backward,
        stage_forward=stage_forward,
        stage_backward=stage_backward,
        memory=memory,
        optimizer_s=float(ok["optimizer_time_s"].median()) if "optimizer_time_s" in ok else 0.0,
        transfer=_fit_transfer(ok),
        num_layers=layers,
        weights_gib=spec.parameters * 2 / 2**30 if spec else None,
        usable_memory_gib=_usable_memory(rows, memory),
        profiled_tokens=(int(ok["tokens"].min()), int(ok["tokens"].max())),
        analytic=rows.is_analytic,
    )


def slot_time(rows: pd.DataFrame) -> pd.Series:
    """Return the time of one micro-batch (forward and backward) on one stage, from step times, seconds."""
    return rows["time_per_step_s"] / (rows["grad_acc_steps"] + rows["pp_size"] - 1)


def fit_smooth_maximum(rows: pd.DataFrame, seconds: pd.Series) -> SmoothMaximum:
    """Fit a smooth maximum to the logarithm of the times: a robust fit of the relative error."""
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
        return np.log(curve(parameters)(tokens, squares) / times)

    spread = np.array([8.0, 8.0, 12.0])
    lower = np.append(start[:3] - spread, np.log(_POWER_BOUNDS[0]))
    upper = np.append(start[:3] + spread, np.log(_POWER_BOUNDS[1]))
    return curve(least_squares(error, start, loss="soft_l1", f_scale=0.05, bounds=(lower, upper)).x)


def fit_memory(rows: pd.DataFrame) -> dict[int, MemoryModel]:
    """Fit the peak memory for every stage count, to relative error with coefficients that are not negative.

    All micro-batches of a step count as held (`held_micro_batches` where the table says better): in the A100 table the
    peak keeps growing with `grad_acc_steps` beyond `pp_size`. Where rows cannot tell held from working memory, because
    one micro-batch is held throughout, all of it counts as held, which is the safe side.
    """
    result = {}
    for g, group in rows.groupby("pp_size"):
        tokens = group["tokens"].to_numpy(float)
        held = tokens * _held_micro_batches(group)
        peak = group["peak_memory_mb"].to_numpy(float) / _MIB_PER_GIB
        columns = [np.ones_like(tokens), held]
        separable = bool(np.any(held != tokens))
        if separable:
            columns.insert(1, tokens)
        coefficients, _ = nnls(np.stack(columns, axis=1) / peak[:, None], np.ones_like(peak))
        static, *slopes = (float(c) for c in coefficients)
        result[int(str(g))] = MemoryModel(static, slopes[0] if separable else 0.0, slopes[-1])
    return result


def _held_micro_batches(rows: pd.DataFrame) -> np.ndarray:
    if "held_micro_batches" in rows:
        return rows["held_micro_batches"].to_numpy(float)
    return np.where(rows["pp_size"] > 1, rows["grad_acc_steps"], 1).astype(float)


def _usable_memory(rows: CostTable, memory: dict[int, MemoryModel]) -> float | None:
    """Half way between the fullest GPU that ran and the emptiest that failed, as the fitted memory tells."""
    failed = rows.failed[rows.failed["pp_size"].isin(list(memory))]
    if failed.empty:
        return None
    held = failed["tokens"].to_numpy() * _held_micro_batches(failed)
    peaks = [
        float(memory[int(g)].peak(t, h)) for g, t, h in zip(failed["pp_size"], failed["tokens"], held, strict=True)
    ]
    ran = float(rows.ok["peak_memory_mb"].max()) / _MIB_PER_GIB
    return max(ran, (ran + min(peaks)) / 2)


def _fit_transfer(rows: pd.DataFrame) -> tuple[float, float]:
    if "transfer_time_s" not in rows or not (rows["pp_size"] > 1).any():
        return 0.0, 0.0
    linked = rows[rows["pp_size"] > 1]
    tokens = linked["tokens"].to_numpy(float)
    design = np.stack([np.ones_like(tokens), tokens], axis=1)
    (latency, per_token), _ = nnls(design, linked["transfer_time_s"].to_numpy(float))
    return float(latency), float(per_token)


def cross_validated_errors(
    table: CostTable, backbone: str, gpu: str, folds: int = 10, seed: int = 0
) -> dict[str, float]:
    """Return the mean absolute relative error of predicted step times and peak memory on rows left out of the fit.

    Returns
    -------
    dict
        `time_mape_cv` and `memory_mape_cv`, fractions; `rows`, how many were predicted.
    """
    rows = table.select(backbone, gpu)
    order = np.random.default_rng(seed).permutation(len(rows.ok))
    time_errors: list[float] = []
    memory_errors: list[float] = []
    for part in np.array_split(order, min(folds, len(order))):
        test = rows.ok.iloc[np.sort(part)]
        train = rows.ok.drop(test.index)
        model = fit_costs(CostTable(rows.source, train.reset_index(drop=True), rows.failed), backbone, gpu)
        time_errors += _relative_errors(test, "time_per_step_s", _predicted_step_time(model))
        memory_errors += _relative_errors(test, "peak_memory_mb", _predicted_memory_mib(model))
    errors = {"time_mape_cv": float(np.mean(time_errors)), "memory_mape_cv": float(np.mean(memory_errors))}
    return {**errors, "rows": len(time_errors)}


def _relative_errors(rows: pd.DataFrame, column: str, predict: Callable[[pd.Series], float]) -> list[float]:
    return [abs(predict(row) / row[column] - 1) for _, row in rows.iterrows()]


def _predicted_step_time(model: CostModel) -> Callable[[pd.Series], float]:
    def predict(row: pd.Series) -> float:
        g, shape = int(row["pp_size"]), (row["tokens"], row["squares"])
        slot = model.forward_curve(g)(*shape) + model.backward_curve(g)(*shape)
        return float(slot) * (row["grad_acc_steps"] + g - 1)

    return predict


def _predicted_memory_mib(model: CostModel) -> Callable[[pd.Series], float]:
    def predict(row: pd.Series) -> float:
        held = row["tokens"] * float(_held_micro_batches(row.to_frame().T)[0])
        return float(model.memory_model(int(row["pp_size"])).peak(row["tokens"], held)) * _MIB_PER_GIB

    return predict
