"""Correcting a cost table by what a run measured: the next plan of the same backbone on the same GPUs predicts better.

What is corrected are the times: those of forward and backward by a factor that depends on the tokens of a micro-batch,
that of an optimizer step and that of a transfer by the measured ones. Memory stays as it was profiled.

Legend: N operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cappuccino.costs.fit import BACKWARD_OVER_FORWARD
from cappuccino.costs.table import ENGINE, OK, PARTS, RECOMPUTE
from cappuccino.errors import InputError
from cappuccino.plan import Recompute
from cappuccino.reports.prediction_error import ReplicaComparison, durations, measured_transfers
from cappuccino.workload import Workload

MOST_BINS, FEWEST_IN_BIN = 6, 5
"""Bins of operations by tokens that a factor is found for, and operations in each."""
CALIBRATED = "calibrated"
"""Value of the column `source`."""


@dataclass(frozen=True)
class Correction:
    """Factor on the time of an operation, as a function of the tokens of its micro-batch."""

    tokens: np.ndarray
    """Ascending, shape (bins,)."""
    factors: np.ndarray
    """Measured over predicted there, shape (bins,)."""

    @classmethod
    def of(cls, tokens: np.ndarray, ratios: np.ndarray) -> "Correction":
        """Find the median ratio in bins of equally many operations.

        Parameters
        ----------
        tokens, ratios
            Of single operations, shape (N,); there is at least one.
        """
        order = np.argsort(tokens, kind="stable")
        bins = np.array_split(order, max(1, min(MOST_BINS, len(order) // FEWEST_IN_BIN)))
        middles = np.array([float(np.exp(np.log(tokens[b]).mean())) for b in bins])
        medians = np.array([float(np.median(ratios[b])) for b in bins])
        distinct = np.unique(middles)
        return cls(distinct, np.array([float(np.mean(medians[middles == t])) for t in distinct]))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Return the factors of micro-batches, interpolated between bins and constant beyond the last ones."""
        return np.asarray(np.interp(np.log(tokens), np.log(self.tokens), self.factors))


@dataclass(frozen=True)
class Calibration:
    """What the runs on one GPU type say."""

    forward: Correction
    backward: Correction
    optimizer_s: float | None
    """Median of the measured optimizer steps; None where there were none."""
    transfer_s: float | None
    """Median of the measured transfers; None on single stages."""
    operations: int


def calibrate(compared: Sequence[tuple[ReplicaComparison, Workload]]) -> Calibration:
    """Find the corrections from replicas of one GPU type and recomputation that ran.

    The stage that took longest counts, as it does in cost tables. Times are those at the machine's speed of the table,
    where the runs tell theirs.
    """
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"F": [], "B": []}
    steps: list[np.ndarray] = []
    transfers: list[np.ndarray] = []
    for comparison, workload in compared:
        predicted = durations(comparison.predicted)
        measured = [taken / comparison.slower for taken in durations(comparison.measured)]
        programs = comparison.replica.programs
        for kind, ratios in found.items():
            chosen = [np.array([op[0] == kind for op in program], dtype=bool) for program in programs]
            slowest = max(range(len(programs)), key=lambda s: float(measured[s][chosen[s]].sum()))
            batches = [op[1] for op in programs[slowest] if op[0] == kind]
            expected, taken = predicted[slowest][chosen[slowest]], measured[slowest][chosen[slowest]]
            ratios.append((workload.tokens[batches].astype(float), taken / expected))
        for program, taken in zip(programs, measured, strict=True):
            steps.append(taken[np.array([op[0] == "S" for op in program], dtype=bool)])
        if len(programs) > 1:
            transfers.append(measured_transfers(comparison.measured, workload))
    forward, backward = (
        Correction.of(np.concatenate([t for t, _ in r]), np.concatenate([x for _, x in r])) for r in found.values()
    )
    every_step = np.concatenate(steps)
    return Calibration(
        forward,
        backward,
        float(np.median(every_step)) if len(every_step) else None,
        float(np.median(np.concatenate(transfers))) if transfers else None,
        sum(len(t) for t, _ in (*found["F"], *found["B"])),
    )


def corrected_table(
    path: Path, backbone: str, calibrations: Mapping[tuple[str, Recompute | None], Calibration]
) -> pd.DataFrame:
    """Return the rows of a cost table as text, those of a backbone on what was calibrated with corrected times.

    Parameters
    ----------
    path
        A table that `read_cost_table` accepts.
    calibrations
        By GPU type and recomputation; rows of a kind that did not run stay as they are.

    Raises
    ------
    InputError
        When no row is of that backbone and type.
    """
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "source" not in frame:
        frame["source"] = "measured"
    if "engine" not in frame:
        frame["engine"] = ""
    for (gpu, mode), calibration in calibrations.items():
        chosen = (frame["param_name"] == backbone) & (frame["status"] == OK)
        if "gpu" in frame:
            chosen &= frame["gpu"] == gpu
        if mode is not None and RECOMPUTE in frame:
            chosen &= frame[RECOMPUTE] == mode.value
        if not chosen.any():
            problem = f'no OK rows of backbone "{backbone}" on "{gpu}"'
            raise InputError(path, "param_name", problem, "give the table that the plan was made with")
        rows = frame[chosen]
        tokens = (rows["micro_bsz"].astype(float) * rows["seqlen"].astype(float)).to_numpy()
        forward, backward = calibration.forward(tokens), calibration.backward(tokens)
        parts = np.full(len(rows), 1.0), np.full(len(rows), BACKWARD_OVER_FORWARD)
        if "forward_time_s" in frame and "backward_time_s" in frame:
            parts = (rows["forward_time_s"].astype(float).to_numpy(), rows["backward_time_s"].astype(float).to_numpy())
            frame.loc[chosen, "forward_time_s"] = _text(parts[0] * forward)
            frame.loc[chosen, "backward_time_s"] = _text(parts[1] * backward)
        for column in PARTS:
            if column in frame:
                factor = forward if "_forward_" in column else backward
                frame.loc[chosen, column] = _text(rows[column].astype(float).to_numpy() * factor)
        step = (parts[0] * forward + parts[1] * backward) / (parts[0] + parts[1])
        frame.loc[chosen, "time_per_step_s"] = _text(rows["time_per_step_s"].astype(float).to_numpy() * step)
        for column, value in (
            ("optimizer_time_s", calibration.optimizer_s),
            ("transfer_time_s", calibration.transfer_s),
        ):
            if column in frame and value is not None:
                several = chosen & ((frame["pp_size"].astype(int) > 1) | (column == "optimizer_time_s"))
                frame.loc[several, column] = f"{value:.6g}"
        frame.loc[chosen, "source"] = CALIBRATED
        frame.loc[chosen, "engine"] = ENGINE
    return frame


def _text(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" for value in values]
