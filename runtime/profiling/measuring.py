"""Measures the points of a profile of one kind of recomputation, round by round."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cappuccino.backbone import BackboneShape
from cappuccino.costs.stages import balanced_layers
from cappuccino.costs.validation import Errors
from cappuccino.runtime.launch.errors import RunError, is_out_of_memory
from cappuccino.runtime.launch.local import Watch, run_plan
from cappuccino.runtime.profiling.budget import Budget
from cappuccino.runtime.profiling.choice import spanning_points
from cappuccino.runtime.profiling.expectation import Expectation
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.growing_table import GrowingTable, largest_error
from cappuccino.runtime.profiling.guess import FirstGuess
from cappuccino.runtime.profiling.measured import Measured, RoundRecord
from cappuccino.runtime.profiling.plan import profile_plan
from cappuccino.runtime.profiling.rounds import Ended, Round, Rounds, Shortage
from cappuccino.runtime.profiling.rows import ProfileRun
from cappuccino.runtime.profiling.settings import settings_digest

Progress = Callable[[float, str], None]


class _OverError(Exception):
    """A round's time is over."""


class Measuring:
    """One call's work on the points of one kind of recomputation.

    Parameters
    ----------
    backbone
        Folder of a checkpoint, or a `config.json` alone.
    partial
        File that keeps what was measured until the table is written.
    name, gpu, device, dtype
        As the table says.
    grid
        What is to be measured.
    shape
        Of the backbone.
    settings
        All that a measurement depends on.
    budget
        Time for it.
    on_progress
        Called with the fraction done and what is being done.
    """

    def __init__(
        self,
        backbone: Path,
        partial: Path,
        name: str,
        gpu: str,
        grid: ProfileGrid,
        device: str,
        dtype: str,
        shape: BackboneShape,
        settings: dict[str, Any],
        budget: Budget,
        on_progress: Progress | None,
    ) -> None:
        self._backbone, self._partial, self._name, self._gpu = backbone, partial, name, gpu
        self._grid, self._device, self._dtype, self._shape = grid, device, dtype, shape
        self._settings, self._budget, self._on_progress = settings, budget, on_progress
        self._measured = Measured(grid, settings)
        self._table = self._table_of(self._measured)
        self._error: float | None = None
        self._fraction = 0.0
        self.new_points = 0
        """Measured by this call."""
        self.shortage: Shortage | None = None
        """Stage counts that the time was too little for, where there are any."""

    def take_over(self, finished: pd.DataFrame | None) -> bool:
        """Go on from the partial file, or else from a finished table; return whether there was such a file."""
        found = Measured.load(self._partial, self._grid, self._settings)
        if found is not None:
            self._measured = found
        elif finished is not None:
            rows = [{str(name): value for name, value in row.items()} for row in finished.to_dict("records")]
            self._measured = Measured(self._grid, self._settings, rows)
        self._table = self._table_of(self._measured)
        return found is not None

    def _table_of(self, measured: Measured) -> GrowingTable:
        words = {"name": self._name, "gpu": self._gpu, "device": self._device, "dtype": self._dtype}
        return GrowingTable(measured, self._shape, **words)

    def measure(self, target_error: float) -> Ended:
        """Measure round by round; return what ended that."""
        guess = FirstGuess(self._shape, self._grid, self._device, self._dtype)
        expectation = Expectation(self._measured, guess)
        points = self._grid.points()
        rounds = Rounds(
            self._grid.num_stages, points, self._measured, self._budget, expectation, target_error, self._table
        )
        while (round_ := rounds.next()) is not None:
            before = self._measured.num_points()
            self._run_round(round_)
            if self._measured.num_points() == before:
                rounds.in_vain(round_.num_stages)
            if self._budget.is_limited:
                begin = self._budget.spent
                self._error = largest_error(self._table.errors())
                self._budget.keep(2 * (self._budget.spent - begin))  # once more at the end, with more rows
        self.shortage = rounds.shortage
        return rounds.ended or Ended.COMPLETE

    def errors(self) -> Errors | None:
        """Return the errors on rows left out."""
        return self._table.errors()

    def table(self) -> pd.DataFrame | None:
        """Return the table of the stage counts that have enough rows to fit; None where none has."""
        lacking = () if self.shortage is None else self.shortage.num_stages
        if set(self._grid.num_stages) <= set(lacking):
            return None
        table = self._table.finished(settings_digest(self._settings))
        return table[~table["pp_size"].isin(lacking)].reset_index(drop=True)

    def _run_round(self, round_: Round) -> None:
        stages = round_.num_stages
        if stages not in self._measured.layers:
            self._measured.layers[stages] = self._split(stages, round_.over)
        layers = self._measured.layers[stages]
        self._run(list(round_.points), self._grid, layers, round_.over, self._measured)

    def _split(self, stages: int, over: Callable[[], bool]) -> tuple[int, ...]:
        """Return layers by stage that make stages take about as long."""
        shape, rows = self._shape, self._table.rows()
        layers = _split(shape, stages, rows)
        head_weighs = shape.vocab * shape.hidden / shape.layer.parameters  # in layers
        if stages > 1 and not rows and shape.num_layers > stages and head_weighs > 1:
            # nothing has told yet what the head takes, and it matters
            one = spanning_points(self._grid.points())[:2][-1]
            brief = replace(self._grid, grad_acc_steps=2, repeats=1)
            first = Measured(self._grid, {})
            first.layers[stages] = layers
            self._run([one], brief, layers, over, first)
            layers = _split(shape, stages, first.rows({}, {}))
        return layers

    def _run(
        self,
        points: list[Point],
        grid: ProfileGrid,
        layers: tuple[int, ...],
        over: Callable[[], bool],
        measured: Measured,
    ) -> None:
        """Run points, and keep each as soon as it is done; those that do not fit, and larger ones, are told so."""
        stages, begin = len(layers), self._budget.spent
        with tempfile.TemporaryDirectory(prefix="cappuccino-profile-") as folder:
            data, journal = Path(folder), Path(folder) / "journal"
            profile = profile_plan(
                points, grid, layers, name=self._name, gpu=self._gpu, vocab=self._shape.vocab, data=data
            )
            run = ProfileRun(profile, journal, self._shape, grid, points, layers, self._dtype)
            of_run, started = 0.0, None

            def progress(done: int, total: int) -> None:
                nonlocal of_run
                of_run = done / total

            def take() -> None:
                nonlocal started
                new = run.new_points()
                if started is None and run.has_begun:
                    started = self._budget.spent
                for point, samples in new:
                    measured.points[stages, point] = samples
                if new and measured is self._measured:
                    self.new_points += len(new)
                    measured.save(self._partial)

            def poll() -> None:
                take()
                self._show(stages, of_run)
                if over():
                    raise _OverError

            try:
                run_plan(
                    profile.plan,
                    profile.instance,
                    self._backbone,
                    data,
                    data / "out",
                    device=self._device,
                    dtype=self._dtype,
                    measure_parts=True,
                    watch=Watch(journal, profile.pauses, poll),
                    on_progress=progress,
                )
            except _OverError:
                pass
            except RunError as error:
                take()
                if not is_out_of_memory(error.reason) or error.reason.startswith("the process "):
                    # a process that was killed does not say why; its log goes with the folder
                    raise RunError(error.replica, error.stage, error.reason, error.operation) from None
                if error.operation is None:  # while the weights are read, or for the adapters of all points
                    least = max(point.tokens for point in points)
                    failed = None
                else:
                    failed = points[profile.point_of(error.stage, error.operation)]
                    least = failed.tokens + 1
                self._note_failure(measured, stages, failed, least)
            finally:
                take()
            if measured is self._measured:
                seconds, mixed = self._budget.spent - begin, run.mixed()
                # where a run was ended, what was under way is no overhead
                overhead = (started or self._budget.spent) - begin if mixed is None else seconds - run.seconds
                measured.rounds.append(
                    RoundRecord(num_stages=stages, overhead_s=max(0.0, overhead), seconds=seconds, mixed=mixed)
                )
                measured.save(self._partial)

    def _note_failure(self, measured: Measured, stages: int, failed: Point | None, least: int) -> None:
        """Note that a point, and all that have at least so many tokens, do not fit."""
        known = measured.known(stages)
        for point in self._grid.points():
            if point not in known and (point == failed or point.tokens >= least):
                measured.points[stages, point] = None
                self.new_points += measured is self._measured

    def _show(self, stages: int, of_run: float) -> None:
        if self._on_progress is None:
            return
        counts = self._grid.num_stages
        if self._budget.seconds:
            fraction = min(1.0, self._budget.spent / self._budget.seconds)
        else:
            fraction = (counts.index(stages) + of_run) / len(counts)
        self._fraction = max(self._fraction, fraction)
        error = "" if self._error is None else f", error on rows left out {100 * self._error:.1f}%"
        text = f"{self._measured.num_points()} of {len(self._grid.points()) * len(counts)} points{error}"
        self._on_progress(self._fraction, text)


def _split(shape: BackboneShape, stages: int, rows: list[dict[str, Any]]) -> tuple[int, ...]:
    """Return layers by stage that make stages take about as long, by what was measured so far or else by weights."""
    layer, head = float(shape.layer.parameters), float(shape.vocab * shape.hidden)
    measured = [row for row in rows if row["status"] == "OK"]
    if measured:
        largest = max(measured, key=lambda row: row["micro_bsz"] * row["seqlen"])
        layer, head = (
            sum(largest[f"{part}_{kind}_time_s"] for part in parts for kind in ("forward", "backward"))
            for parts in (("layer",), ("head", "loss"))
        )
    return balanced_layers(shape.num_layers, layer, [0.0] * (stages - 1) + [head])
