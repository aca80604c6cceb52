"""The cost table of what was measured so far, and how good a fit to it is."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cappuccino.backbone import BackboneShape
from cappuccino.costs import CostTable, fit_costs, read_cost_table
from cappuccino.costs.fit import FEWEST_ROWS
from cappuccino.costs.model import CostModel
from cappuccino.costs.table import ENGINE, MEASURED
from cappuccino.costs.validation import CrossValidation, Errors, cross_validated
from cappuccino.runtime.profiling.choice import uncertainty
from cappuccino.runtime.profiling.grid import Point
from cappuccino.runtime.profiling.measured import Measured, predicted
from cappuccino.runtime.profiling.rounds import Certainty
from cappuccino.runtime.profiling.settings import SETTINGS

FEWEST_ROWS_TO_CROSS_VALIDATE = 8
"""With fewer, what is left after one is taken out is too little to fit."""


class GrowingTable:
    """Makes tables of what was measured.

    Parameters
    ----------
    measured
        What is known; it may grow.
    shape
        Of the backbone.
    name, gpu, device, dtype
        As the table says.
    """

    def __init__(
        self, measured: Measured, shape: BackboneShape, *, name: str, gpu: str, device: str, dtype: str
    ) -> None:
        self._measured, self._shape, self._name, self._gpu = measured, shape, name, gpu
        self._validated: tuple[int, CrossValidation | None] | None = None
        self._common = {"param_name": name, "model_path": name}
        self._extra = {
            "gpu": gpu,
            "source": "measured",
            "num_layers": shape.num_layers,
            "hidden_size": shape.layer.hidden,
            "intermediate_size": shape.layer.intermediate,
            "query_size": shape.layer.query,
            "key_value_size": shape.layer.key_value,
            "device": device,
            "dtype": dtype,
            "engine": ENGINE,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows so far, without mixed factors."""
        return self._measured.rows(self._common, self._extra)

    def errors(self) -> Errors | None:
        """Return the errors on rows left out; None where rows are too few."""
        found = self._cross_validation()
        return found.errors if found is not None and found.errors.rows >= FEWEST_ROWS_TO_CROSS_VALIDATE else None

    def certainty(self, left: Mapping[int, Sequence[Point]]) -> Certainty:
        """Return how good the fit is, and how sure of the points that are left, by stage count."""
        found, covariances = self._cross_validation(), {}
        models = found.models if found is not None else ()
        for stages, points in left.items():
            if len(models) > 1:
                covariances[stages] = uncertainty(np.array([self._seconds(model, stages, points) for model in models]))
            else:  # without any of the rows there is no fit
                covariances[stages] = np.eye(len(points))
        return Certainty(largest_error(self.errors()), covariances)

    def _cross_validation(self) -> CrossValidation | None:
        """Return what fits without some of the rows say; it takes a while, so it is remembered."""
        if self._validated is None or self._validated[0] != self._measured.num_points():
            rows = self.rows()
            found = cross_validated(_read(rows), self._name, self._gpu) if _that_ran(rows) else None
            self._validated = self._measured.num_points(), found
        return self._validated[1]

    def _seconds(self, model: CostModel, stages: int, points: Sequence[Point]) -> list[float]:
        return [float(predicted(model, stages, point, self._shape.layer).sum(axis=0).max()) for point in points]

    def finished(self, digest: str) -> pd.DataFrame:
        """Return the table with all its columns.

        Parameters
        ----------
        digest
            Of the settings.
        """
        rows = self.rows()
        if _that_ran(rows) >= FEWEST_ROWS:
            costs = fit_costs(_read(rows), self._name, self._gpu)
            factors = self._measured.mixed_factors(costs, self._shape.layer)
            rows = [row | (factors.get(row["pp_size"], {}) if row["status"] == "OK" else {}) for row in rows]
        table = pd.DataFrame(rows).drop(columns=SETTINGS, errors="ignore").assign(**{SETTINGS: digest})
        for column in (c for c in MEASURED if c not in table):
            table[column] = np.nan  # not even one point fitted
        return table


def left_out_errors(table: pd.DataFrame, name: str, gpu: str) -> Errors | None:
    """Return the errors of a whole table on rows left out; None where they are too few."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    if _that_ran(rows) < FEWEST_ROWS_TO_CROSS_VALIDATE:
        return None
    return cross_validated(_read(rows), name, gpu).errors


def largest_error(errors: Errors | None) -> float | None:
    """Return the larger of the errors of time and memory."""
    known = [error for error in (errors.time, errors.memory) if error is not None] if errors else []
    return max(known) if known else None


def _that_ran(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row["status"] == "OK" for row in rows)


def _read(rows: Sequence[Mapping[str, Any]]) -> CostTable:
    with tempfile.TemporaryDirectory(prefix="cappuccino-profile-") as folder:
        table = Path(folder) / "table.csv"
        pd.DataFrame(rows).to_csv(table, index=False)
        return read_cost_table(table)
