"""Measures a backbone on this machine: every grid point is an adapter of a plan that the runtime runs.

So what is measured is what a plan will later do, communication between stages included.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cappuccino.costs.validation import Errors
from cappuccino.errors import InputError, counted
from cappuccino.files import write_atomically
from cappuccino.plan import Recompute
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.profiling.budget import Budget, Clock
from cappuccino.runtime.profiling.grid import ProfileGrid
from cappuccino.runtime.profiling.growing_table import left_out_errors
from cappuccino.runtime.profiling.measuring import Measuring, Progress
from cappuccino.runtime.profiling.rounds import Ended, Shortage
from cappuccino.runtime.profiling.settings import finished_rows, profile_settings

PARTIAL = ".partial.json"
"""Suffix of the file beside the table that keeps what was measured until all is."""
TARGET_ERROR = 0.05
"""On rows left out, at which a profile with a budget ends."""


@dataclass(frozen=True)
class ProfileResult:
    """What a profile gave."""

    table: pd.DataFrame
    """The table: the seed's columns and those that docs/formats.md names as the project's own."""
    errors: Errors | None
    """On rows left out; None where the rows are too few to tell."""
    seconds: float
    """Spent by this call."""
    ended: Ended
    """What ended it."""
    new_points: int
    """Points that this call measured."""
    shortages: tuple[str, ...] = ()
    """What the time was too little for, and how to go on: these stage counts are not in the table, what was measured of
    them is kept beside it.
    """


def profile_backbone(
    backbone: Path,
    output: Path,
    *,
    name: str,
    gpu: str,
    grid: ProfileGrid,
    device: str = "cpu",
    dtype: str = "float32",
    again: bool = False,
    recompute: Sequence[Recompute] = (Recompute.NONE,),
    time_budget_s: float | None = None,
    target_error: float = TARGET_ERROR,
    on_progress: Progress | None = None,
    clock: Clock = time.monotonic,
) -> ProfileResult:
    """Measure a backbone and write its cost table, whole or not at all.

    Every point is kept when it is measured, in the file `PARTIAL` beside the table. What a call before has measured
    with the same settings is taken over, from that file or from the table, and gone on with unless it is enough. Points
    that run out of memory become rows that say so.

    Parameters
    ----------
    backbone
        Folder of a Hugging Face checkpoint, or a `config.json` alone: weights are random then.
    name
        Of the backbone in the table; instances refer to it.
    gpu
        Of this machine's devices in the table.
    again
        Measure a finished table anew.
    recompute
        Kinds of activation recomputation to measure; rows of another kind that the table has stay.
    time_budget_s
        Ends the profile; points that the fit needs most are measured first. None measures the whole grid.
    target_error
        Ends a profile with a budget too, as soon as the error on rows left out is no larger.
    on_progress
        Called with the fraction done and what is being done.
    clock
        Tells the time that counts for the budget, seconds.

    Raises
    ------
    InputError
        When the backbone cannot be run, has fewer layers than the grid has stages, or the budget is too small for the
        fewest rows that a fit needs at any stage count; what was measured is kept then, and no table written.
    RunError
        When a measurement failed for another reason than memory; the points before are kept.
    """
    budget = Budget(time_budget_s, clock)
    shape = read_trainable_shape(backbone)
    grid.points()
    if max(grid.num_stages) > shape.num_layers:
        problem = f"{counted(max(grid.num_stages), 'stage')} for {counted(shape.num_layers, 'layer')}"
        raise InputError("--num-stages", "", problem, "profile fewer stages")
    options: dict[str, Any] = {"name": name, "gpu": gpu, "device": device, "dtype": dtype}
    kinds = {mode: replace(grid, recompute=mode) for mode in Recompute}
    settings = {mode: profile_settings(backbone, grid=kind, **options) for mode, kind in kinds.items()}
    known = {mode: finished_rows(output, settings[mode]) for mode in Recompute if not (again and mode in recompute)}
    tables = {mode: rows for mode, rows in known.items() if rows is not None}
    ends: list[Ended] = []
    shortages: dict[Recompute, Shortage] = {}
    new_points, changed = 0, False
    for number, mode in enumerate(recompute):
        finished = tables.get(mode)
        work = Measuring(
            backbone,
            partial_file(output, mode),
            grid=kinds[mode],
            shape=shape,
            settings=settings[mode],
            budget=budget.part(len(recompute) - number),
            on_progress=_share(on_progress, number, len(recompute)),
            **options,
        )
        resumed = not again and work.take_over(finished)
        ends.append(work.measure(target_error))
        if work.shortage is not None:
            shortages[mode] = work.shortage
        if finished is None or resumed or work.new_points:
            made = work.table()
            if made is not None:
                tables[mode], changed = made, True
        new_points += work.new_points
        errors = work.errors()
    if not any(mode in tables for mode in recompute):
        raise _nothing_to_fit(output, shortages, [partial_file(output, mode) for mode in recompute])
    ended = next(end for end in (Ended.BUDGET, Ended.TARGET, Ended.COMPLETE) if end in ends)
    table = pd.concat([tables[mode] for mode in Recompute if mode in tables], ignore_index=True)
    table["tasknum"] = range(1, len(table) + 1)
    if changed:
        write_atomically(output, table.to_csv(index=False, float_format="%.6g"))
    for mode in recompute:
        if mode not in shortages:
            partial_file(output, mode).unlink(missing_ok=True)
    if on_progress:
        rows = counted(len(table), "row")
        on_progress(1.0, f"{rows}, {ended}" if new_points else f"{rows} measured before; --again measures them anew")
    if len(tables) > 1 or shortages:
        errors = left_out_errors(table, name, gpu)
    said = dict.fromkeys(f"{x.problem}: the table is without these; {x.remedy}" for x in shortages.values())
    return ProfileResult(table, errors, budget.spent, ended, new_points, tuple(said))


def _nothing_to_fit(output: Path, shortages: Mapping[Recompute, Shortage], partials: Sequence[Path]) -> InputError:
    """Return the error of a profile that no stage count has enough rows of."""
    found = next(iter(shortages.values()))
    kept = " and ".join(str(partial) for partial in partials if partial.exists())
    some = any(shortage.num_rows for shortage in shortages.values())
    place = f" (kept in {kept}; {output} is not written)" if some else ""
    return InputError("--time-budget", "", f"{found.problem}{place}", found.remedy)


def partial_file(output: Path, mode: Recompute) -> Path:
    """Return the file beside a table that keeps what was measured of one kind of recomputation until all is."""
    return output.with_name(output.name + ("" if mode is Recompute.NONE else f".{mode.value}") + PARTIAL)


def _share(on_progress: Progress | None, number: int, count: int) -> Progress | None:
    """Return what to call for one of several parts, as long as each other."""
    if on_progress is None or count == 1:
        return on_progress
    return lambda fraction, text: on_progress((number + fraction) / count, text)
