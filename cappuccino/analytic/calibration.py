"""Fitting an engine to measured tables, and how far off the estimate then is.

Few numbers are fitted, the same for every backbone: four of the times (shares of arithmetic and bandwidth, what a
kernel and what a launch takes) and three of the memory (bytes a logit, tensors kept at a stage's boundary, what no
tensor accounts for), each set by least squares on the logarithm of predicted over measured; the usable share of the
memory lies between the fullest row that ran and the emptiest that failed. All observations of a backbone err together,
so a backbone counts as one however many rows it has, and the values stay near those that were counted or published
(`COUNTED`) where a table cannot tell them apart: a launch is seen only where the host is slower than the GPU.

The flush of a pipeline counts g - 1 slots. Measured ones are cheaper, but not by one factor: 0.37 slots a stage on
Llama-2-7b, 0.84 on Qwen2.5-32B (`cappuccino.costs.fit.fit_slot`). A factor fitted to both lowers the mean error by less
than a point and the backbone left out is then further off at worst, so there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.optimize import least_squares

from cappuccino.analytic.catalogue import GpuSpec
from cappuccino.analytic.efficiency import COUNTED_FUSED, Efficiency
from cappuccino.analytic.measured import Measured, MeasuredRow, Pair

SHARES = ("compute_share", "bandwidth_share", "kernel_s")
"""Of the GPU: what an engine on another GPU has to say about them is carried over."""
TIME_FIELDS = (*SHARES, "launch_s")
MEMORY_FIELDS = ("logit_bytes", "boundary_tensors", "context_gib")
FACTOR_SPREAD = 1.25
"""Factor by which a fitted value is expected to differ from its count, as published shares of the peak (40% to 59%) and
floors of a layer (3.3 to 5.2 ms) do."""
CONTEXT_SPREAD_GIB = 0.5
TENSOR_SPREAD = 0.5
"""By how many tensors a boundary is expected to differ from its count where that is 0."""


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
    """How far an estimate is off on what was measured."""

    times: int
    """Measured times."""
    time: Deviation
    memory: Deviation | None
    """None where no memory was measured."""


@dataclass(frozen=True)
class RooflineCalibration:
    """An engine fitted to what was measured, and what to expect of it."""

    efficiency: Efficiency
    fitted: Accuracy
    """On all that it was fitted to."""
    fitted_by_backbone: Mapping[str, Accuracy]
    left_out: Accuracy | None
    """On all, each backbone predicted by a calibration on the others; None where there is one backbone only."""
    left_out_by_backbone: Mapping[str, Accuracy]
    gpu_left_out: Accuracy | None
    """On all, each GPU predicted by a calibration on the others; None where there is one GPU only."""


def calibrate_roofline(
    rows: Sequence[Measured], prior: Efficiency = COUNTED_FUSED, factor_spread: float = FACTOR_SPREAD
) -> RooflineCalibration:
    """Fit an engine to what was measured and state its errors.

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
    names = list(dict.fromkeys(r.backbone for r in rows if r.times(prior)))
    fitted = {name: _ratios(efficiency, [r for r in rows if r.backbone == name]) for name in names}
    backbones = _left_out(rows, [r.backbone for r in rows], prior, factor_spread)
    gpus = _left_out(rows, [r.gpu_spec for r in rows], prior, factor_spread)
    return RooflineCalibration(
        efficiency=efficiency,
        fitted=_accuracy(fitted.values()),
        fitted_by_backbone={name: _accuracy([ratios]) for name, ratios in fitted.items()},
        left_out=_accuracy(backbones.values()) if backbones else None,
        left_out_by_backbone={name: _accuracy([ratios]) for name, ratios in backbones.items()},
        gpu_left_out=_accuracy(gpus.values()) if gpus else None,
    )


Kind = TypeVar("Kind", str, GpuSpec)


def _left_out(
    rows: Sequence[Measured], kinds: Sequence[Kind], prior: Efficiency, factor_spread: float
) -> dict[Kind, tuple[list[float], list[float]]]:
    """Return predicted over measured, times and memory, of every kind of row by a fit to the others."""
    ran = dict.fromkeys(kind for row, kind in zip(rows, kinds, strict=True) if row.times(prior))
    result = {}
    for out in ran if len(ran) > 1 else ():
        others = fit_efficiency([r for r, k in zip(rows, kinds, strict=True) if k != out], prior, factor_spread)
        result[out] = _ratios(others, [r for r, k in zip(rows, kinds, strict=True) if k == out])
    return result


def accuracy(efficiency: Efficiency, rows: Sequence[Measured]) -> Accuracy:
    """Return how far an engine is off on what was measured."""
    return _accuracy([_ratios(efficiency, rows)])


def carried_over(counted: Efficiency, other: Efficiency) -> Efficiency:
    """Return an engine of which nothing was measured: as counted, with the shares of one that was, on another GPU."""
    return replace(counted, **{name: getattr(other, name) for name in SHARES})


def fit_efficiency(
    rows: Sequence[Measured], prior: Efficiency = COUNTED_FUSED, factor_spread: float = FACTOR_SPREAD
) -> Efficiency:
    """Return the engine that fits what was measured best while near `prior`, as `calibrate_roofline` takes them.

    Memory stays as in `prior` where none was measured.
    """
    groups = [[r for r in rows if r.backbone == name] for name in dict.fromkeys(r.backbone for r in rows)]
    spread = np.log(factor_spread)
    start = np.log([getattr(prior, name) for name in TIME_FIELDS])

    def with_times(logarithms: np.ndarray) -> Efficiency:
        return replace(prior, **dict(zip(TIME_FIELDS, np.exp(logarithms).tolist(), strict=True)))

    def time_error(logarithms: np.ndarray) -> np.ndarray:
        found = with_times(logarithms)
        parts = [_errors([p for r in group for p in r.times(found)]) for group in groups]
        return np.concatenate([*parts, (logarithms - start) / spread])

    timed = with_times(least_squares(time_error, start).x)
    if not any(r.memories(timed) for r in rows):
        return timed
    centre = np.array([getattr(prior, name) for name in MEMORY_FIELDS], dtype=float)
    spreads = np.array([centre[0] * spread, max(centre[1] * spread, TENSOR_SPREAD), CONTEXT_SPREAD_GIB])

    def with_memory(values: np.ndarray) -> Efficiency:
        return replace(timed, **dict(zip(MEMORY_FIELDS, values.tolist(), strict=True)))

    def memory_error(values: np.ndarray) -> np.ndarray:
        found = with_memory(values)
        parts = [_errors([p for r in group for p in r.memories(found)]) for group in groups]
        return np.concatenate([*parts, (values - centre) / spreads])

    inside = np.maximum(centre, 1e-3)
    found = with_memory(least_squares(memory_error, inside, bounds=(0.0, np.inf)).x)
    return replace(found, usable_memory=_usable_memory(found, [r for r in rows if isinstance(r, MeasuredRow)]))


def _usable_memory(efficiency: Efficiency, rows: Sequence[MeasuredRow]) -> float:
    """Half way between the fullest GPU that ran and the emptiest that failed, as `efficiency` estimates it."""
    ran = max(r.memory_gib / r.gpu_spec.memory_gib for r in rows if r.memory_gib is not None)
    failed = [r.predicted_memory_gib(efficiency) / r.gpu_spec.memory_gib for r in rows if r.memory_gib is None]
    return max(ran, (ran + min(failed)) / 2 if failed else efficiency.usable_memory)


def _errors(pairs: Sequence[Pair]) -> np.ndarray:
    """Return relative errors in units of what is expected, all of them together weighing as one."""
    errors: np.ndarray = np.array([np.log(p.predicted / p.measured) / p.spread for p in pairs], dtype=float)
    return errors / float(np.sqrt(max(len(pairs), 1)))


def _ratios(efficiency: Efficiency, rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
    times = [p for r in rows for p in r.times(efficiency)]
    memories = [p for r in rows for p in r.memories(efficiency)]
    return [p.predicted / p.measured for p in times], [p.predicted / p.measured for p in memories]


def _accuracy(parts: Iterable[tuple[list[float], list[float]]]) -> Accuracy:
    times, memories = ([x for part in of for x in part] for of in zip(*parts, strict=True))
    return Accuracy(len(times), Deviation.of(times), Deviation.of(memories) if memories else None)
