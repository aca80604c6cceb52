"""How well a cost model predicts rows that it has not seen: what there is to trust in a cost table."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from cappuccino.costs.fit import fit_costs, predicted_step_time
from cappuccino.costs.memory_fit import predicted_memory_mib
from cappuccino.costs.model import CostModel
from cappuccino.costs.table import COUNTS, RECOMPUTE, CostTable
from cappuccino.errors import InputError, counted
from cappuccino.plan import Recompute

CONFIGURATION = ["pp_size", "micro_bsz", "seqlen"]
"""Rows that differ in nothing of this measure the same micro-batch on the same stages."""
TOKEN_RANGES = (0, 512, 2048, 8192, 2**62)
"""Limits of the token ranges that errors are stated for."""
CONFIDENCE = 0.95
"""Part of the rows left out whose memory error is within the interval of a capacity."""
CONTRADICTION = 0.1
"""Relative difference from which on rows of equal counts contradict each other."""
FEW_ROWS = 12
"""Rows of a stage count below which its errors say little."""


@dataclass(frozen=True)
class Errors:
    """Mean absolute relative errors on rows left out of the fit, fractions; None where nothing could be predicted."""

    label: str
    rows: int
    time: float | None
    memory: float | None


@dataclass(frozen=True)
class Capacity:
    """The largest micro-batch that fits a stage's memory, tokens, and the interval that the memory's error leaves."""

    num_stages: int
    recompute: Recompute | None
    memory_gib: float
    tokens: int
    low: int
    high: int


@dataclass(frozen=True)
class Validation:
    """What is known of the fit of one backbone on one GPU type."""

    backbone: str
    gpu: str
    model: CostModel
    rows: pd.DataFrame
    """The rows that ran, with `time_predicted_s` and `memory_predicted_mb`, each by a fit without the row's fold."""
    folds: Errors
    configurations: Errors
    """Each configuration left out as a whole: micro-batches and sequence lengths that nobody measured."""
    stage_counts: Errors | None
    """Each stage count left out as a whole: depths that nobody measured; None where there is one only."""
    by_stages: tuple[Errors, ...]
    by_tokens: tuple[Errors, ...]
    capacities: tuple[Capacity, ...]
    warnings: tuple[str, ...]


def validate(
    table: CostTable, backbone: str, gpu: str, *, memory_gib: float | None = None, folds: int = 10, seed: int = 0
) -> Validation:
    """Fit one backbone on one GPU type again and again, each time without some of the rows.

    Parameters
    ----------
    memory_gib
        Of one GPU, for the capacities; by default what the rows that failed say can be used.

    Raises
    ------
    InputError
        When the rows are too few to fit at all.
    """
    chosen = table.select(backbone, gpu)
    model = fit_costs(table, backbone, gpu)
    rows = chosen.ok.copy()
    predicted = _left_out(chosen, backbone, gpu, _folds(len(rows), folds, seed))
    rows["time_predicted_s"], rows["memory_predicted_mb"] = predicted
    of_configuration = [*CONFIGURATION, *([RECOMPUTE] if RECOMPUTE in rows else [])]
    configurations = list(rows[of_configuration].itertuples(index=False, name=None))
    depths = rows["pp_size"].tolist()
    several = len(set(depths)) > 1
    return Validation(
        backbone=backbone,
        gpu=gpu,
        model=model,
        rows=rows,
        folds=_errors("rows left out", rows, (rows["time_predicted_s"], rows["memory_predicted_mb"])),
        configurations=_errors("configurations left out", rows, _left_out(chosen, backbone, gpu, configurations)),
        stage_counts=_errors("stage counts left out", rows, _left_out(chosen, backbone, gpu, depths))
        if several
        else None,
        by_stages=tuple(_part(stages(int(str(g))), group) for g, group in rows.groupby("pp_size", sort=True)),
        by_tokens=tuple(
            _part(_range_label(low, high), rows[(rows["tokens"] >= low) & (rows["tokens"] < high)])
            for low, high in pairwise(TOKEN_RANGES)
            if ((rows["tokens"] >= low) & (rows["tokens"] < high)).any()
        ),
        capacities=_capacities(model, rows, memory_gib),
        warnings=tuple(_warnings(model, rows)),
    )


@dataclass(frozen=True)
class CrossValidation:
    """What fits without some of the rows say."""

    errors: Errors
    models: tuple[CostModel, ...]
    """Each fitted without one fold."""


def cross_validated(table: CostTable, backbone: str, gpu: str, *, folds: int = 10, seed: int = 0) -> CrossValidation:
    """Return the errors on rows left out, as `validate` has them, without all else that takes it longer.

    Raises
    ------
    InputError
        When the table has no row of the backbone on the GPU type that ran.
    """
    chosen = table.select(backbone, gpu)
    models: list[CostModel] = []
    predicted = _left_out(chosen, backbone, gpu, _folds(len(chosen.ok), folds, seed), models=models)
    return CrossValidation(_errors("rows left out", chosen.ok, predicted), tuple(models))


def _folds(rows: int, folds: int, seed: int) -> list[int]:
    """Return by row the fold that leaves it out."""
    order = np.random.default_rng(seed).permutation(rows)
    fold = np.empty(rows, dtype=int)
    for k, part in enumerate(np.array_split(order, min(folds, rows))):
        fold[part] = k
    return fold.tolist()


def _left_out(
    chosen: CostTable,
    backbone: str,
    gpu: str,
    labels: Sequence[Hashable],
    models: list[CostModel] | None = None,
) -> tuple[pd.Series, pd.Series]:
    """Predict step time and memory of every row by a fit without the rows of its label; NaN where none is possible.

    Parameters
    ----------
    models
        Takes the fits.
    """
    ok = chosen.ok
    time, memory = pd.Series(np.nan, ok.index), pd.Series(np.nan, ok.index)
    for label in dict.fromkeys(labels):
        out = pd.Series([x == label for x in labels], ok.index)
        try:
            left = CostTable(chosen.source, ok[~out].reset_index(drop=True), chosen.failed)
            every = fit_costs(left, backbone, gpu)
        except InputError:
            continue  # too few rows are left: said by the error's None
        by_mode = {model.recompute: model for model in every.choices}
        if models is not None:
            models.append(every)
        for i in ok.index[out]:
            model = by_mode.get(ok.loc[i].get(RECOMPUTE, every.recompute))
            if model is not None:
                time[i], memory[i] = predicted_step_time(model, ok.loc[i]), predicted_memory_mib(model, ok.loc[i])
    return time, memory


def _errors(label: str, rows: pd.DataFrame, predicted: tuple[pd.Series, pd.Series]) -> Errors:
    means = []
    for found, column in zip(predicted, ("time_per_step_s", "peak_memory_mb"), strict=True):
        errors = (found / rows[column] - 1).abs().dropna()
        means.append(float(errors.mean()) if len(errors) else None)
    return Errors(label, len(rows), *means)


def _part(label: str, rows: pd.DataFrame) -> Errors:
    return _errors(label, rows, (rows["time_predicted_s"], rows["memory_predicted_mb"]))


def stages(count: int) -> str:
    """Return a stage count in words."""
    return counted(count, "stage")


def _range_label(low: int, high: int) -> str:
    return f"{low} tokens or more" if high >= 2**62 else f"{low} to {high - 1} tokens"


def _capacities(model: CostModel, rows: pd.DataFrame, memory_gib: float | None) -> tuple[Capacity, ...]:
    errors = (rows["memory_predicted_mb"] / rows["peak_memory_mb"] - 1).abs().dropna()
    if errors.empty:
        return ()
    error = float(errors.quantile(CONFIDENCE))
    found = []
    for mine in model.choices:
        limit = memory_gib if memory_gib is not None else mine.usable_memory_gib
        if limit is None:
            continue
        usable = mine.memory_limit(limit) if memory_gib is not None else limit
        for g in mine.profiled:
            sizes = (mine.memory_model(g).max_tokens(usable * factor) for factor in (1.0, 1 / (1 + error), 1 + error))
            found.append(Capacity(g, mine.recompute, limit, *sizes))
    return tuple(found)


def _warnings(model: CostModel, rows: pd.DataFrame) -> list[str]:
    found = []
    depths = rows["pp_size"].value_counts().sort_index()
    if len(depths) == 1:
        found.append(f"one stage count, {depths.index[0]}: every other depth is extrapolated from it")
    found += [
        f"{count} rows of {stages(int(str(g)))}: profile at least {FEW_ROWS}"
        for g, count in depths.items()
        if count < FEW_ROWS
    ]
    for g in depths.index:
        mine = rows[rows["pp_size"] == g]
        curve = model.pipeline(int(g)).curves[0][0]
        if float(curve.work(mine["tokens"], mine["squares"]).max()) < curve.floor_s:
            reach = f"micro-batches up to {int(mine['tokens'].max())} tokens all take about as long"
            found.append(f"{stages(int(g))}: {reach}: measure larger ones, the times of those are guessed")
    alike = [name for name in (*COUNTS, "num_adapters", RECOMPUTE) if name in rows]
    if "target_modules" in rows:
        rows = rows.assign(target_modules=rows["target_modules"].map("+".join))
        alike.append("target_modules")
    for counts, group in rows.groupby(alike):
        for column in ("time_per_step_s", "peak_memory_mb"):
            low, high = float(group[column].min()), float(group[column].max())
            if high / low - 1 > CONTRADICTION:
                where = ", ".join(f"{name} {value}" for name, value in zip(alike, counts, strict=True))
                found.append(f"rows contradict each other ({where}): {column} from {low:.4g} to {high:.4g}")
    for capacity in _capacities(model, rows, None):
        largest = int(rows.loc[rows["pp_size"] == capacity.num_stages, "tokens"].max())
        if capacity.tokens > 1.5 * largest:
            reach = f"profiled up to {largest} tokens, memory allows about {capacity.tokens}"
            found.append(f"{stages(capacity.num_stages)}: {reach}: larger micro-batches are extrapolated")
    return found
