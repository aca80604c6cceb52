"""Fitting the efficiency behind analytic tables to measured ones, and how far off the estimate then is.

Few numbers are fitted, the same for every backbone and GPU: three of the times (share of the peak, element-wise
traffic, floor of a layer) and three of the memory (bytes a logit, tensors kept at a stage's boundary, what no tensor
accounts for), each set by least squares on the logarithm of predicted over measured; the usable share of the memory
lies between the fullest row that ran and the emptiest that failed. All rows of a backbone err together, so a backbone
counts as one observation however many rows it has, and the values stay near those of `COUNTED` where a table cannot
tell them apart: one backbone alone cannot tell matrix products from element-wise kernels, both grow with its tokens.

The flush of a pipeline counts g - 1 slots. Measured ones are cheaper, but not by one factor: 0.37 slots a stage on
Llama-2-7b, 0.84 on Qwen2.5-32B (`cappuccino.costs.fit.fit_slot`). A factor fitted to both lowers the mean error by less
than a point and the backbone left out is then further off at worst, so there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from cappuccino.analytic.catalogue import DTYPES, GPUS, GpuSpec
from cappuccino.analytic.efficiency import PUBLISHED, Efficiency
from cappuccino.analytic.roofline import peak_memory_gib, slot_time
from cappuccino.backbone import BACKBONES, BackboneShape
from cappuccino.costs.table import CostTable
from cappuccino.errors import InputError

COUNTED = replace(
    PUBLISHED, elementwise_bytes=300, overlapped=False, context_gib=0.0, one_f_one_b=True, boundary_tensors=4
)
"""Where a calibration starts and what it stays near. An eager layer moves about 300 bytes per token and unit of hidden
width: two norms in fp32 70, rotary embedding 40, four adapters with fp32 dropout 150, gate 30 to 50, residuals 10. The
peak that PyTorch reports leaves the context out. A boundary has an input and an output, and a gradient of each."""

TIME_FIELDS = ("compute_share", "elementwise_bytes", "layer_floor_s")
MEMORY_FIELDS = ("logit_bytes", "boundary_tensors", "context_gib")
FACTOR_SPREAD = 1.25
"""Factor by which a fitted value is expected to differ from its count, as published shares of the peak (40% to 59%) and
floors of a layer (3.3 to 5.2 ms) do. Looser, the error on the A100 table's backbones left out grows: 26% at 1.5."""
CONTEXT_SPREAD_GIB = 0.5
TIME_SPREAD, MEMORY_SPREAD = 0.2, 0.05
"""Relative error that is expected of the estimate itself, whatever the values."""
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class MeasuredRow:
    """One row of a measured table, with the specifications that an estimate of it needs."""

    backbone: str
    spec: BackboneShape
    gpu_spec: GpuSpec
    num_stages: int
    accumulated: int
    """Micro-batches of a step."""
    held: int
    """Micro-batches that count as held."""
    tokens: int
    seqlen: int
    rank: int
    dtype: str
    seconds: float | None
    """Time of a step; None where the row failed."""
    memory_gib: float | None
    """Peak memory; None where the row failed."""

    def predicted_seconds(self, efficiency: Efficiency) -> float:
        """Return the estimate of the step's time, seconds, flush included."""
        slot = slot_time(self.spec, self.gpu_spec, self.num_stages, self.tokens, self.seqlen, efficiency, self.dtype)
        return (self.accumulated + self.num_stages - 1) * slot

    def predicted_memory_gib(self, efficiency: Efficiency) -> float:
        """Return the estimate of the peak memory, GiB."""
        return peak_memory_gib(self.spec, self.num_stages, self.tokens, self.held, self.rank, efficiency, self.dtype)


@dataclass(frozen=True)
class Deviation:
    """Predicted over measured, of several rows."""

    mape: float
    """Mean absolute relative error, a fraction."""
    median_ratio: float
    worst_factor: float
    """Largest factor between the two, at least 1."""

    @staticmethod
    def of(ratios: Sequence[float]) -> "Deviation":
        """Return the deviation of predicted over measured values."""
        found = np.asarray(ratios, dtype=float)
        worst = float(np.exp(np.abs(np.log(found)).max()))
        return Deviation(float(np.abs(found - 1).mean()), float(np.median(found)), worst)


@dataclass(frozen=True)
class Accuracy:
    """How far an estimate is off on measured rows."""

    rows: int
    time: Deviation
    memory: Deviation


@dataclass(frozen=True)
class RooflineCalibration:
    """An efficiency fitted to measured rows, and what to expect of it."""

    efficiency: Efficiency
    fitted: Accuracy
    """On all the rows it was fitted to."""
    fitted_by_backbone: Mapping[str, Accuracy]
    left_out: Accuracy | None
    """On all rows, each backbone predicted by a calibration on the others; None where there is one backbone only."""
    left_out_by_backbone: Mapping[str, Accuracy]


def measured_rows(
    table: CostTable, gpu: str | None = None, specs: Mapping[str, BackboneShape] = BACKBONES
) -> list[MeasuredRow]:
    """Return the rows of a measured table, those that failed included.

    Parameters
    ----------
    table
        Measured; its `gpu`, `dtype` and `held_micro_batches` are used where it has them.
    gpu
        Catalogued GPU of a table without a column `gpu`.
    specs
        Backbones by name.

    Raises
    ------
    InputError
        When the table is analytic, does not say its GPU, names a backbone, GPU or type that is not known, or has no
        row of one adapter.
    """
    if table.is_analytic:
        problem = "has analytic rows: calibrating on an estimate says nothing"
        raise InputError(table.source, "source", problem, "give a table that was measured")
    if "gpu" not in table.ok.columns and gpu is None:
        remedy = f"add it, or name the GPU with --calibrate-gpu: {', '.join(GPUS)}"
        raise InputError(table.source, "gpu", "column is missing", remedy)
    ran = _rows(table, table.ok, gpu, specs, ran=True)
    if not ran:
        raise InputError(table.source, "num_adapters", "no row is of one adapter", "profile one adapter")
    return [*ran, *_rows(table, table.failed, gpu, specs, ran=False)]


def calibrate_roofline(
    rows: Sequence[MeasuredRow], prior: Efficiency = COUNTED, factor_spread: float = FACTOR_SPREAD
) -> RooflineCalibration:
    """Fit an efficiency to measured rows and state its errors.

    Parameters
    ----------
    rows
        Of one or more tables; at least one that ran.
    prior
        Values to start from and to stay near.
    factor_spread
        How near: the factor by which a fitted value is expected to differ from its prior.
    """
    efficiency = fit_efficiency(rows, prior, factor_spread)
    names = list(dict.fromkeys(r.backbone for r in rows if r.seconds is not None))
    fitted = {name: _ratios(efficiency, [r for r in rows if r.backbone == name]) for name in names}
    left_out = {}
    for name in names if len(names) > 1 else ():
        others = fit_efficiency([r for r in rows if r.backbone != name], prior, factor_spread)
        left_out[name] = _ratios(others, [r for r in rows if r.backbone == name])
    return RooflineCalibration(
        efficiency=efficiency,
        fitted=_accuracy(fitted.values()),
        fitted_by_backbone={name: _accuracy([ratios]) for name, ratios in fitted.items()},
        left_out=_accuracy(left_out.values()) if left_out else None,
        left_out_by_backbone={name: _accuracy([ratios]) for name, ratios in left_out.items()},
    )


def accuracy(efficiency: Efficiency, rows: Sequence[MeasuredRow]) -> Accuracy:
    """Return how far an efficiency is off on the measured rows that ran."""
    return _accuracy([_ratios(efficiency, rows)])


def fit_efficiency(
    rows: Sequence[MeasuredRow], prior: Efficiency = COUNTED, factor_spread: float = FACTOR_SPREAD
) -> Efficiency:
    """Return the efficiency that fits measured rows best while near `prior`, as `calibrate_roofline` takes them."""
    by_backbone: dict[str, list[MeasuredRow]] = {}
    for row in rows:
        if row.seconds is not None:
            by_backbone.setdefault(row.backbone, []).append(row)
    groups = list(by_backbone.values())
    spread = np.log(factor_spread)
    start = np.log([getattr(prior, name) for name in TIME_FIELDS])

    def with_times(logarithms: np.ndarray) -> Efficiency:
        return replace(prior, **dict(zip(TIME_FIELDS, np.exp(logarithms).tolist(), strict=True)))

    def time_error(logarithms: np.ndarray) -> np.ndarray:
        found = with_times(logarithms)
        parts = [_time_errors(found, group) / (TIME_SPREAD * np.sqrt(len(group))) for group in groups]
        return np.concatenate([*parts, (logarithms - start) / spread])

    timed = with_times(least_squares(time_error, start).x)
    centre = np.array([getattr(prior, name) for name in MEMORY_FIELDS], dtype=float)
    spreads = np.array([*(centre[:2] * spread), CONTEXT_SPREAD_GIB])

    def with_memory(values: np.ndarray) -> Efficiency:
        return replace(timed, **dict(zip(MEMORY_FIELDS, values.tolist(), strict=True)))

    def memory_error(values: np.ndarray) -> np.ndarray:
        found = with_memory(values)
        parts = [_memory_errors(found, group) / (MEMORY_SPREAD * np.sqrt(len(group))) for group in groups]
        return np.concatenate([*parts, (values - centre) / spreads])

    inside = np.maximum(centre, 1e-3)
    found = with_memory(least_squares(memory_error, inside, bounds=(0.0, np.inf)).x)
    return replace(found, usable_memory=_usable_memory(found, rows))


def _usable_memory(efficiency: Efficiency, rows: Sequence[MeasuredRow]) -> float:
    """Half way between the fullest GPU that ran and the emptiest that failed, as `efficiency` estimates it."""
    ran = max(r.memory_gib / r.gpu_spec.memory_gib for r in rows if r.memory_gib is not None)
    failed = [r.predicted_memory_gib(efficiency) / r.gpu_spec.memory_gib for r in rows if r.memory_gib is None]
    return max(ran, (ran + min(failed)) / 2 if failed else efficiency.usable_memory)


def _time_errors(efficiency: Efficiency, rows: Iterable[MeasuredRow]) -> np.ndarray:
    return np.log([r.predicted_seconds(efficiency) / r.seconds for r in rows if r.seconds is not None])


def _memory_errors(efficiency: Efficiency, rows: Iterable[MeasuredRow]) -> np.ndarray:
    return np.log([r.predicted_memory_gib(efficiency) / r.memory_gib for r in rows if r.memory_gib is not None])


def _ratios(efficiency: Efficiency, rows: Sequence[MeasuredRow]) -> tuple[list[float], list[float]]:
    return (np.exp(_time_errors(efficiency, rows)).tolist(), np.exp(_memory_errors(efficiency, rows)).tolist())


def _accuracy(parts: Iterable[tuple[list[float], list[float]]]) -> Accuracy:
    times, memories = zip(*parts, strict=True)
    time, memory = (Deviation.of([x for part in of for x in part]) for of in (times, memories))
    return Accuracy(sum(len(part) for part in times), time, memory)


def _rows(
    table: CostTable, frame: pd.DataFrame, gpu: str | None, specs: Mapping[str, BackboneShape], ran: bool
) -> list[MeasuredRow]:
    found = []
    for row in frame.to_dict("records"):
        if int(row.get("num_adapters") or 1) > 1:
            continue  # the estimate is of one adapter
        backbone, dtype = str(row["param_name"]), str(row.get("dtype") or "bfloat16")
        name = str(row["gpu"]) if "gpu" in row else gpu
        for field, value, known in (("param_name", backbone, specs), ("gpu", name, GPUS), ("dtype", dtype, DTYPES)):
            if value not in known:
                problem = f'"{value}" has no known specification'
                remedy = f"leave its rows out; known are {', '.join(map(str, known))}"
                raise InputError(table.source, field, problem, remedy)
        stages, accumulated = int(row["pp_size"]), int(row["grad_acc_steps"])
        spec = specs[backbone]
        if stages > spec.num_layers:
            problem = f'{stages} stages for the {spec.num_layers} layers of "{backbone}"'
            raise InputError(table.source, "pp_size", problem, "correct the row")
        found.append(
            MeasuredRow(
                backbone=backbone,
                spec=spec,
                gpu_spec=GPUS[str(name)],
                num_stages=stages,
                accumulated=accumulated,
                held=int(row.get("held_micro_batches") or (accumulated if stages > 1 else 1)),
                tokens=int(row["tokens"]),
                seqlen=int(row["seqlen"]),
                rank=int(row["rank"]),
                dtype=dtype,
                seconds=float(row["time_per_step_s"]) if ran else None,
                memory_gib=float(row["peak_memory_mb"]) / _MIB_PER_GIB if ran else None,
            )
        )
    return found
