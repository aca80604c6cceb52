"""Families of cost curves on one cost table, each judged by rows that it has not seen.

`python benchmarks/cost_curves.py --table FILE` prints mean absolute relative errors of step times and peak memory for
every backbone; by default of the measured A100 table in the folder beside the checkout that the tests read as well. All
families see the same rows. `none`: a family cannot predict every row of a split; `--json` says why.

Legend: T tokens of a micro-batch, Q its sum of squared sequence lengths, L = Q / T its mean length as its tokens see
it, g pipeline stages, m micro-batches of an optimizer step; a slot is the forward and backward of one micro-batch.
"""

import argparse
import json
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.optimize import isotonic_regression, nnls
from scipy.spatial import QhullError

from cappuccino.backbone import BACKBONES
from cappuccino.costs import CostModel, SmoothMaximum, read_cost_table
from cappuccino.costs.fit import fit_slot, fit_smooth_maximum
from cappuccino.costs.memory_fit import fit_memory, predicted_memory_mib
from cappuccino.costs.validation import CONFIGURATION, stages
from cappuccino.errors import InputError

REFERENCE_TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "profile_a100_40gb.csv"
FOLDS = 10
SHAPE = [name for name in CONFIGURATION if name != "pp_size"]
"""Rows that differ in nothing of this measure the same micro-batch, on any stages."""
FEWEST_ROWS = 4
"""To fit anything to; as `fit_costs` wants them."""
KERNEL_WIDTH = float(np.log(2))
"""In log T, log L and log g: the spacing of the usual profile."""
PRIOR_ROWS = 1.0
"""Rows without residual that every smoothed residual is averaged with: it fades where nothing was measured."""
ROBUST_SCALE = 0.05
"""Relative error from which on a row counts less, as in `fit_smooth_maximum`."""
_MIB_PER_GIB = 1024

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Predictor = Callable[[pd.DataFrame], Floats]
"""From rows to a value each: seconds a step, or peak GiB."""


class CannotPredictError(Exception):
    """The rows do not determine a curve, or it says nothing of the rows asked for; the message says why."""


@dataclass(frozen=True)
class Training:
    """The rows that families are fitted to."""

    rows: pd.DataFrame

    @cached_property
    def slot(self) -> tuple[SmoothMaximum, float]:
        """The project's fit, a slot of the whole backbone and the flush: shared by the families that build on it."""
        return fit_slot(self.rows)


Family = Callable[[Training], Predictor]


def slots(rows: pd.DataFrame, flush: float) -> Floats:
    """Return the slots of the whole backbone that a step takes, `(m + flush (g - 1)) / g`."""
    behind = _column(rows, "pp_size") - 1
    return (_column(rows, "grad_acc_steps") + flush * behind) / (behind + 1)


def smooth_maximum(training: Training) -> Predictor:
    """Fit what the project uses, the flush with it."""
    curve, flush = training.slot
    return lambda asked: _of_shape(curve, asked) * slots(asked, flush)


def smooth_maximum_full_flush(training: Training) -> Predictor:
    """Fit a smooth maximum where a flush takes `g - 1` slots."""
    curve = _smooth_maximum_of(training.rows, 1.0)
    return lambda asked: _of_shape(curve, asked) * slots(asked, 1.0)


def smooth_maximum_by_stages(training: Training) -> Predictor:
    """Fit a smooth maximum to every stage count by itself, the flush to all of them."""
    _, flush = training.slot

    def fit(rows: pd.DataFrame) -> Predictor:
        curve = _smooth_maximum_of(rows, flush)
        return lambda asked: _of_shape(curve, asked) * slots(asked, flush)

    return _for_each_stage_count(training.rows, fit)


def linear(training: Training) -> Predictor:
    """Fit `a + b T` to every stage count by relative least squares where a flush takes `g - 1` slots."""

    def design(rows: pd.DataFrame) -> Floats:
        return np.stack([np.ones(len(rows)), _column(rows, "tokens")], axis=1)

    def fit(rows: pd.DataFrame) -> Predictor:
        scaled = design(rows) / _slot_times(rows, 1.0)[:, None]
        coefficients, _, rank, _ = np.linalg.lstsq(scaled, np.ones(len(rows)), rcond=None)
        if rank < 2:
            raise CannotPredictError(f"one number of tokens only with {stages(int(rows['pp_size'].iloc[0]))}")
        return lambda asked: design(asked) @ coefficients * slots(asked, 1.0)

    return _for_each_stage_count(training.rows, fit)


def interpolation(training: Training) -> Predictor:
    """Interpolate the logarithm of the slot linearly in (log T, log L); beyond the hull the nearest node counts."""
    _, flush = training.slot
    at = _interpolated(_log_shape(training.rows), np.log(_slot_times(training.rows, flush)))
    return lambda asked: np.exp(at(_log_shape(asked))) * slots(asked, flush)


def isotonic(training: Training) -> Predictor:
    """Fit any curve that grows with the work `a T + q Q` of the smooth maximum; beyond the rows proportional to it."""
    curve, flush = training.slot
    works, node = np.unique(np.log(_work(curve, training.rows)), return_inverse=True)
    count = np.bincount(node)
    means = np.bincount(node, np.log(_slot_times(training.rows, flush))) / count
    levels = isotonic_regression(means, weights=count).x

    def predict(asked: pd.DataFrame) -> Floats:
        work = np.log(_work(curve, asked))
        return np.exp(np.interp(work, works, levels) + np.maximum(work - works[-1], 0)) * slots(asked, flush)

    return predict


def convex(training: Training) -> Predictor:
    """Fit any convex curve that grows with the work of the smooth maximum: a polyline with a kink wherever it helps."""
    curve, flush = training.slot
    work = _work(curve, training.rows)
    kinks = np.concatenate([[0.0], np.unique(work)[:-1]])

    def design(work: Floats) -> Floats:
        return np.column_stack([np.ones_like(work), np.maximum(work[:, None] - kinks, 0)])

    scaled = design(work) / _slot_times(training.rows, flush)[:, None]
    weight = np.ones_like(work)
    for _ in range(10):  # reweighted until it is the robust loss of `fit_smooth_maximum`
        coefficients, _ = nnls(scaled * weight[:, None], weight, maxiter=100 * scaled.shape[1])
        weight = (1 + ((scaled @ coefficients - 1) / ROBUST_SCALE) ** 2) ** -0.25
    return lambda asked: design(_work(curve, asked)) @ coefficients * slots(asked, flush)


def smooth_maximum_smoothed_residual(training: Training) -> Predictor:
    """Correct the smooth maximum by its residuals nearby, averaged with a Gaussian kernel in (log T, log L, log g)."""
    curve, flush = training.slot
    residuals = np.log(_slot_times(training.rows, flush) / _of_shape(curve, training.rows))

    def position(rows: pd.DataFrame) -> Floats:
        return np.column_stack([_log_shape(rows), np.log(_column(rows, "pp_size"))]) / KERNEL_WIDTH

    nodes = position(training.rows)

    def predict(asked: pd.DataFrame) -> Floats:
        weight = np.exp(-0.5 * ((position(asked)[:, None] - nodes) ** 2).sum(axis=2))
        correction = weight @ residuals / (weight.sum(axis=1) + PRIOR_ROWS)
        return np.exp(correction) * _of_shape(curve, asked) * slots(asked, flush)

    return predict


def memory_linear(training: Training) -> Predictor:
    """Fit what the project uses: every stage count by itself, other stage counts extrapolated with a margin."""
    rows = training.rows
    backbone = str(rows["param_name"].iloc[0])
    nothing = SmoothMaximum(0.0, 0.0, 0.0, 1.0)
    model = CostModel(
        backbone=backbone,
        gpu="",
        forward=nothing,
        backward=nothing,
        memory=fit_memory(rows),
        weights_gib=_weights_gib(backbone) if backbone in BACKBONES else None,
    )
    return lambda asked: np.array([predicted_memory_mib(model, row) / _MIB_PER_GIB for _, row in asked.iterrows()])


def memory_shared(training: Training) -> Predictor:
    """Fit `c0 + c1 weights / g + (c2 + c3 / g + c4 held / g) T` to all stage counts together, no term negative."""
    backbone = str(training.rows["param_name"].iloc[0])
    if backbone not in BACKBONES:
        raise CannotPredictError(f'the weights of "{backbone}" are not in the catalogue')
    weights = _weights_gib(backbone)

    def design(rows: pd.DataFrame) -> Floats:
        g, tokens = _column(rows, "pp_size"), _column(rows, "tokens")
        held = np.where(g > 1, _column(rows, "grad_acc_steps"), 1.0)
        return np.stack([np.ones_like(g), weights / g, tokens, tokens / g, held * tokens / g], axis=1)

    peaks = _column(training.rows, "peak_memory_mb") / _MIB_PER_GIB
    coefficients, _ = nnls(design(training.rows) / peaks[:, None], np.ones_like(peaks))
    return lambda asked: design(asked) @ coefficients


def memory_interpolation(training: Training) -> Predictor:
    """Interpolate the logarithm of the peak in (log T, log m) for every stage count; beyond the hull the nearest."""

    def position(rows: pd.DataFrame) -> Floats:
        return np.log(np.stack([_column(rows, "tokens"), _column(rows, "grad_acc_steps")], axis=1))

    def fit(rows: pd.DataFrame) -> Predictor:
        at = _interpolated(position(rows), np.log(_column(rows, "peak_memory_mb") / _MIB_PER_GIB))
        return lambda asked: np.exp(at(position(asked)))

    return _for_each_stage_count(training.rows, fit)


TIME_FAMILIES: Mapping[str, Family] = {
    "smooth maximum, flush fitted (ours)": smooth_maximum,
    "smooth maximum, flush of g - 1 slots": smooth_maximum_full_flush,
    "smooth maximum for each stage count": smooth_maximum_by_stages,
    "linear for each stage count": linear,
    "interpolation": interpolation,
    "isotonic in the work": isotonic,
    "convex in the work": convex,
    "smooth maximum, residuals smoothed": smooth_maximum_smoothed_residual,
}
MEMORY_FAMILIES: Mapping[str, Family] = {
    "linear for each stage count (ours)": memory_linear,
    "linear, shared by stage counts": memory_shared,
    "interpolation for each stage count": memory_interpolation,
}


@dataclass(frozen=True)
class Part:
    """Rows to fit to and rows to predict."""

    label: str
    fitted: Mask
    predicted: Mask


SPLITS = {
    "rows": f"{FOLDS} folds",
    "config": "each configuration (stages, micro-batch, length) left out",
    "shape": "each micro-batch and length left out at every stage count",
    "depth": "each stage count left out",
    "above": "rows of more than the median of tokens, from those of fewer",
    "above+": "the same, from those of the median as well",
}
"""Column of the table, and what is predicted in it."""


def splits(rows: pd.DataFrame, seed: int) -> dict[str, list[Part]]:
    """Return the parts of every split, by `SPLITS`; those of `rows` and `config` are those of `cappuccino fit`."""
    fold = np.empty(len(rows), dtype=int)
    order = np.random.default_rng(seed).permutation(len(rows))
    for k, part in enumerate(np.array_split(order, min(FOLDS, len(rows)))):
        fold[part] = k
    tokens = _column(rows, "tokens")
    median = float(np.median(tokens))
    label = f"more than {median:g} tokens"
    return {
        "rows": _left_out([f"fold {k}" for k in fold]),
        "config": _left_out(list(rows[CONFIGURATION].itertuples(index=False, name=None))),
        "shape": _left_out(list(rows[SHAPE].itertuples(index=False, name=None))),
        "depth": _left_out([stages(int(g)) for g in rows["pp_size"]]),
        "above": [Part(label, tokens < median, tokens > median)],
        "above+": [Part(label, tokens <= median, tokens > median)],
    }


@dataclass(frozen=True)
class Outcome:
    """How well a family predicts the rows of a split, relative to what was measured; None where it cannot."""

    error: float | None
    """Mean absolute error, a fraction."""
    lowest: float | None
    """Error of the row underestimated most, negative if any is: too little memory does not run."""
    failure: str
    """Which part could not be predicted, and why; empty otherwise."""


def evaluate(
    rows: pd.DataFrame, column: str, unit: float, families: Mapping[str, Family], by_split: Mapping[str, list[Part]]
) -> dict[str, dict[str, Outcome]]:
    """Predict every row of every split by every family, all of them fitted to the same rows.

    Parameters
    ----------
    column
        What is measured.
    unit
        Of the column in units of the predictions.
    by_split
        Parts of every split. A family that fails on one of them has no error in the split.

    Returns
    -------
    dict
        Outcome by family and split.
    """
    measured = _column(rows, column) * unit
    result: dict[str, dict[str, Outcome]] = {name: {} for name in families}
    for split, parts in by_split.items():
        errors: dict[str, list[Floats]] = {name: [] for name in families}
        failures: dict[str, str] = {}
        for part in parts:
            training, asked = Training(rows[part.fitted]), rows[part.predicted]
            for name, family in families.items():
                try:
                    errors[name].append(_predict(family, training, asked) / measured[part.predicted] - 1)
                except CannotPredictError as error:
                    failures.setdefault(name, f"{part.label}: {error}")
        for name in families:
            found = np.concatenate([np.empty(0), *errors[name]])
            failure = failures.get(name, "" if len(found) else "no rows to predict")
            result[name][split] = (
                Outcome(None, None, failure)
                if failure
                else Outcome(float(np.abs(found).mean()), float(found.min()), "")
            )
    return result


def scatter(rows: pd.DataFrame) -> float | None:
    """Return how far slots of one configuration lie from their mean, a fraction; None where none was measured twice.

    With the flush as the project fits it, hardly any function of micro-batch and stages comes nearer to these rows.
    """
    _, flush = fit_slot(rows)
    logs = pd.Series(np.log(_slot_times(rows, flush)), rows.index)
    groups = logs.groupby([rows[name] for name in CONFIGURATION])
    again = groups.transform("size") > 1
    return float((logs - groups.transform("mean"))[again].abs().mean()) if again.any() else None


def print_table(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Outcome]]]]) -> None:
    """Print errors by backbone, what is predicted, family and split; every backbone has the same families."""
    width = max(map(len, (*TIME_FAMILIES, *MEMORY_FAMILIES))) + 2
    block = 8 * len(SPLITS)
    print(" " * width + "".join(f"{key:>{block}}" for key in found))
    for what in ("time", "memory"):
        print(_line(what, [*SPLITS] * len(found), width))
        for name in next(iter(found.values()))[what]:
            outcomes = [found[key][what][name][split] for key in found for split in SPLITS]
            cells = ["none" if o.error is None else f"{100 * o.error:.2f}%" for o in outcomes]
            print(_line("  " + name, cells, width))


def _column(rows: pd.DataFrame, name: str) -> Floats:
    return rows[name].to_numpy(float)


def _slot_times(rows: pd.DataFrame, flush: float) -> Floats:
    return _column(rows, "time_per_step_s") / slots(rows, flush)


def _smooth_maximum_of(rows: pd.DataFrame, flush: float) -> SmoothMaximum:
    return fit_smooth_maximum(rows, pd.Series(_slot_times(rows, flush), rows.index))


def _of_shape(curve: SmoothMaximum, rows: pd.DataFrame) -> Floats:
    return curve(_column(rows, "tokens"), _column(rows, "squares"))


def _work(curve: SmoothMaximum, rows: pd.DataFrame) -> Floats:
    return curve.work(_column(rows, "tokens"), _column(rows, "squares"))


def _log_shape(rows: pd.DataFrame) -> Floats:
    tokens = _column(rows, "tokens")
    return np.log(np.stack([tokens, _column(rows, "squares") / tokens], axis=1))


def _weights_gib(backbone: str) -> float:
    return BACKBONES[backbone].parameters * 2 / 2**30


def _for_each_stage_count(rows: pd.DataFrame, fit: Callable[[pd.DataFrame], Predictor]) -> Predictor:
    found = {int(str(g)): fit(group) for g, group in rows.groupby("pp_size")}

    def predict(asked: pd.DataFrame) -> Floats:
        result = np.empty(len(asked))
        for g in sorted(set(asked["pp_size"])):
            if g not in found:
                raise CannotPredictError(f"nothing is known of {stages(int(g))}")
            mine = (asked["pp_size"] == g).to_numpy()
            result[mine] = found[g](asked[mine])
        return result

    return predict


def _interpolated(points: Floats, values: Floats) -> Callable[[Floats], Floats]:
    nodes, node = np.unique(points, axis=0, return_inverse=True)
    means = np.bincount(node, values) / np.bincount(node)
    try:
        inside = LinearNDInterpolator(nodes, means)
    except (QhullError, ValueError) as error:
        raise CannotPredictError(f"{len(nodes)} nodes span no area") from error
    nearest = NearestNDInterpolator(nodes, means)

    def at(asked: Floats) -> Floats:
        found = inside(asked)
        return np.where(np.isnan(found), nearest(asked), found)

    return at


def _left_out(labels: Sequence[Hashable]) -> list[Part]:
    parts = []
    for label in dict.fromkeys(labels):
        out = np.array([other == label for other in labels])
        parts.append(Part(str(label), ~out, out))
    return parts


def _predict(family: Family, training: Training, asked: pd.DataFrame) -> Floats:
    if len(training.rows) < FEWEST_ROWS:
        raise CannotPredictError(f"{len(training.rows)} rows to fit to")
    found = family(training)(asked)
    bad = ~(np.isfinite(found) & (found > 0))
    if bad.any():
        raise CannotPredictError(f"predicts {found[bad][0]:.3g} for {asked['tokens'].to_numpy()[bad][0]} tokens")
    return found


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:{width}}" + "".join(f"{cell:>8}" for cell in cells)


def main() -> int:
    """Print the table; return 0 however well the families do."""
    parser = argparse.ArgumentParser(description="Compare families of cost curves on rows left out of their fit.")
    parser.add_argument("--table", type=Path, help="cost table (CSV); by default the measured A100 table")
    parser.add_argument("--seed", type=int, default=0, help="of the division into folds (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.table is None and not REFERENCE_TABLE.is_file():
        print(f"skipped: there is no {REFERENCE_TABLE}; name a table with --table", file=sys.stderr)
        return 0
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: give 0 or more")
    path = arguments.table or REFERENCE_TABLE
    try:
        table = read_cost_table(path)
    except InputError as error:
        parser.error(str(error))
    found: dict[str, dict[str, dict[str, dict[str, Outcome]]]] = {}
    scatters: dict[str, float | None] = {}
    for backbone, gpu in table.backbones:
        key = f"{backbone} on {gpu}" if gpu else backbone
        rows = table.select(backbone, gpu).ok.reset_index(drop=True)
        parts = splits(rows, arguments.seed)
        scatters[key] = scatter(rows)
        found[key] = {
            "time": evaluate(rows, "time_per_step_s", 1.0, TIME_FAMILIES, parts),
            "memory": evaluate(rows, "peak_memory_mb", 1 / _MIB_PER_GIB, MEMORY_FAMILIES, parts),
        }
    if arguments.json:
        figures = {
            key: {"scatter": scatters[key]}
            | {
                what: {name: {split: asdict(o) for split, o in by.items()} for name, by in families.items()}
                for what, families in of.items()
            }
            for key, of in found.items()
        }
        document = {"table": str(path), "seed": arguments.seed, "splits": SPLITS, "backbones": figures}
        print(json.dumps(document, indent=2))
        return 0
    print_table(found)
    print("\n".join(f"{column}: {meaning}" for column, meaning in SPLITS.items()))
    for key, value in scatters.items():
        if value is not None:
            print(f"{key}: slots of one configuration lie {100 * value:.1f}% from their mean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
