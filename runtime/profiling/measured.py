"""All that a profile has measured so far, and its file: kept point by point, taken over by the next call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cappuccino.backbone import ALL_LINEAR, LayerShape
from cappuccino.costs import CostModel
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.fit import fit_smooth_maximum
from cappuccino.costs.table import MIXED, REFERENCE
from cappuccino.errors import InputError
from cappuccino.files import Record, parse_model, read_json, write_atomically
from cappuccino.runtime.profiling.drift import Drift
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.rows import point_columns
from cappuccino.runtime.profiling.samples import MixedSamples, PointSamples

OUT_OF_MEMORY = "OOM"
"""Status of points that do not fit."""
_FEWEST_TO_JUDGE_BY = 8
"""Points by whose agreement the correction of drift is judged; fewer are left as they are."""


class PointRecord(Record):
    """A point that was measured."""

    num_stages: int
    point: Point
    samples: PointSamples | None
    """None where it does not fit the memory."""


class RoundRecord(Record):
    """A run of processes that measured points."""

    num_stages: int
    overhead_s: float
    """What it took besides its operations."""
    seconds: float
    """What it took in all."""
    mixed: MixedSamples | None = None
    """None where the run was ended before."""


class _File(Record):
    settings: dict[str, Any]
    carried: tuple[dict[str, Any], ...]
    layers: dict[int, tuple[int, ...]]
    points: tuple[PointRecord, ...]
    rounds: tuple[RoundRecord, ...]


class Measured:
    """What is known of the points of a grid.

    Parameters
    ----------
    grid
        Steps and micro-batches of points, and their order.
    settings
        All that a measurement depends on.
    carried
        Rows of a finished table with the same settings.
    """

    def __init__(self, grid: ProfileGrid, settings: Mapping[str, Any], carried: Sequence[dict[str, Any]] = ()) -> None:
        self._grid, self._settings = grid, dict(settings)
        self._order = {point: n for n, point in enumerate(grid.points())}
        self.carried = [dict(row) for row in carried]
        self.layers: dict[int, tuple[int, ...]] = {
            int(row["pp_size"]): tuple(int(n) for n in str(row["layers_per_stage"]).split("+")) for row in self.carried
        }
        """By stage count, decoder layers by stage."""
        self.points: dict[tuple[int, Point], PointSamples | None] = {}
        """Of this profile, by stage count and point; None where it does not fit."""
        self.rounds: list[RoundRecord] = []

    def save(self, path: Path) -> None:
        """Write all of it."""
        content = _File(
            settings=self._settings,
            carried=tuple(self.carried),
            layers=self.layers,
            points=tuple(
                PointRecord(num_stages=stages, point=point, samples=samples)
                for (stages, point), samples in self.points.items()
            ),
            rounds=tuple(self.rounds),
        )
        write_atomically(path, content.model_dump_json() + "\n")

    @staticmethod
    def load(path: Path, grid: ProfileGrid, settings: Mapping[str, Any]) -> "Measured | None":
        """Read what `save` wrote; None where that is of other settings, or of another program."""
        try:
            content = parse_model(_File, read_json(path), path)
        except InputError:
            return None  # measured anew and replaced
        if content.settings != settings:
            return None
        found = Measured(grid, settings, content.carried)
        found.layers |= content.layers
        found.points = {(record.num_stages, record.point): record.samples for record in content.points}
        found.rounds = list(content.rounds)
        return found

    def known(self, stages: int) -> dict[Point, bool]:
        """Return the points measured at a stage count, and whether they fit."""
        known = {_point_of(row): row["status"] == "OK" for row in self.carried if row["pp_size"] == stages}
        return known | {p: samples is not None for (g, p), samples in self.points.items() if g == stages}

    def num_points(self) -> int:
        """Return how many points were measured in all."""
        return sum(len(self.known(stages)) for stages in self._grid.num_stages)

    def seconds(self, stages: int) -> dict[Point, float]:
        """Return how long each point that fits took, its mixed step included."""
        steps = self._grid.num_steps
        found = {
            _point_of(row): float(row["time_per_step_s"]) * steps
            for row in self.carried
            if row["pp_size"] == stages and row["status"] == "OK"
        }
        for (g, point), samples in self.points.items():
            if g == stages and samples is not None:
                found[point] = samples.seconds * steps / (steps - 1)
        return found

    def rows(self, common: Mapping[str, Any], extra: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a table, without mixed factors; times are those of the machine at its usual speed.

        Parameters
        ----------
        common, extra
            Columns before and after.
        """
        rows: list[dict[str, Any]] = []
        for stages in self._grid.num_stages:
            carried = [row for row in self.carried if row["pp_size"] == stages]
            mine = {_point_of(row): {k: v for k, v in row.items() if k not in MIXED} for row in carried}
            new = {point: samples for (g, point), samples in self.points.items() if g == stages}
            drift = self._drift(list(mine.values()), new)
            for point, samples in new.items():
                columns: dict[str, Any] = {"status": OUT_OF_MEMORY}
                if samples is not None and drift is not None:
                    around = samples.references()
                    columns = samples.scaled(drift.factors(around)).columns(point, self._grid.grad_acc_steps)
                    columns[REFERENCE] = float(np.mean([np.median(stage) for stage in around]))
                asked = point_columns(point, self.layers[stages], self._grid)
                mine[point] = {**common, "tasknum": 0, **asked, **columns, **extra}
            rows += [mine[point] for point in sorted(mine, key=self._order.__getitem__)]
        return [row | {"tasknum": n} for n, row in enumerate(rows, start=1)]

    def _drift(self, carried: list[dict[str, Any]], new: Mapping[Point, PointSamples | None]) -> Drift | None:
        fit = {point: found for point, found in new.items() if found is not None}
        samples = [found.references() for found in fit.values()]
        levels = [float(row[REFERENCE]) for row in carried if row["status"] == "OK"]
        if not samples:
            return None
        rows = pd.DataFrame({"tokens": [p.tokens for p in fit], "squares": [p.tokens * p.length for p in fit]})
        seconds = pd.Series([float(np.median([step.seconds for step in found.steps])) for found in fit.values()])

        def disagreement(factors: np.ndarray) -> float:
            """Return how far the points are from a curve fitted to them, relative to their times."""
            if len(fit) < _FEWEST_TO_JUDGE_BY:
                return 1.0  # a curve goes through few points whatever they are divided by
            curve = fit_smooth_maximum(rows, seconds / factors)
            return float(np.abs(np.log(curve(rows["tokens"], rows["squares"]) * factors / seconds)).mean())

        return Drift(samples, float(np.median(levels)) if levels else None, disagreement)

    def mixed_factors(self, costs: CostModel, layer: LayerShape) -> dict[int, dict[str, float]]:
        """Return how much longer forwards and backwards took among others than costs fitted to the rows say.

        Medians of operations alike leave out what happens now and then, and what one kind of operation does to another.
        Of several rounds the median counts; a stage count without any takes over from the deepest that has one.

        Parameters
        ----------
        costs
            Fitted to rows without these factors.
        layer
            Of the backbone.
        """
        found: dict[int, dict[str, float]] = {}
        for stages in self._grid.num_stages:
            factors: dict[str, list[float]] = {name: [] for name in MIXED}
            before = next((row for row in self.carried if row["pp_size"] == stages and row["status"] == "OK"), {})
            new = {point: samples for (g, point), samples in self.points.items() if g == stages}
            drift = self._drift([row for row in self.carried if row["pp_size"] == stages], new)
            for k, (name, field) in enumerate(zip(MIXED, ("forward_s", "backward_s"), strict=True)):
                if before.get(name, 0) > 0:
                    factors[name].append(float(before[name]))
                for one in self.rounds:
                    if one.num_stages == stages and one.mixed is not None and drift is not None:
                        slower = drift.factors(one.mixed.reference_s)
                        expected = sum(predicted(costs, stages, point, layer)[k] for point in one.mixed.points)
                        taken = np.array(getattr(one.mixed, field)) / np.array(slower)
                        slowest = int(np.argmax(expected))
                        alone = self._grid.grad_acc_steps * float(expected[slowest])
                        factors[name].append(float(taken[slowest]) / alone)
            if all(factors.values()):
                found[stages] = {name: float(np.median(values)) for name, values in factors.items()}
        return {g: found.get(g, found[max(found)]) for g in self._grid.num_stages} if found else {}


def predicted(costs: CostModel, num_stages: int, point: Point, layer: LayerShape) -> np.ndarray:
    """Return what costs say of a point's micro-batches, seconds, shape (2, num_stages)."""
    size = AdapterSize.of(layer, point.rank, point.target_modules, point.dropout)
    return costs.alike_times(num_stages, point.tokens, point.tokens * point.length, size, point.num_adapters)


def _point_of(row: Mapping[str, Any]) -> Point:
    text = str(row["target_modules"])
    return Point(
        int(row["micro_bsz"]),
        int(row["seqlen"]),
        int(row["num_adapters"]),
        int(row["rank"]),
        ALL_LINEAR if text == ALL_LINEAR else tuple(text.split("+")),
        float(row["dropout"]),
    )
