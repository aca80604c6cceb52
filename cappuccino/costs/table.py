"""Cost tables: profiled step times and peak memory, in the seed's CSV columns and the project's finer ones."""

import csv
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from cappuccino.backbone import ALL_LINEAR, BACKBONES, LayerShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.errors import InputError
from cappuccino.files import read_text
from cappuccino.plan import Recompute

COUNTS = ("pp_size", "micro_bsz", "grad_acc_steps", "seqlen", "rank")
MEASURED = ("peak_memory_mb", "time_per_step_s")
REQUIRED = ("param_name", *COUNTS, *MEASURED, "status")
PARTS = (
    "input_forward_time_s",
    *(f"{part}_{kind}_time_s" for part in ("layer", "head", "loss") for kind in ("forward", "backward")),
)
"""Per micro-batch: laying it out, with the embedding; one decoder layer; what the last stage does besides."""
HELD = ("layer_held_bytes_per_token", "head_held_bytes_per_token")
"""What the forward of one decoder layer, and of head and loss, keeps for the backward."""
DROPOUT = "dropout"
"""Column with the dropout of the adapters in a row's micro-batches; without it they had none."""
OPTIONAL_TIMES = ("forward_time_s", "backward_time_s", "optimizer_time_s", "transfer_time_s", *PARTS)
"""Per micro-batch on the slowest stage; per adapter and step; per micro-batch and link; then the parts."""
REFERENCE = "reference_time_s"
"""What a small fixed piece of work took around a row's micro-batches: how fast the machine was."""
MIXED = ("forward_mixed_factor", "backward_mixed_factor")
"""Time of micro-batches among others over that of the same ones alike; one value for all rows of a stage count."""
LAYER_SHAPE = ("hidden_size", "intermediate_size", "query_size", "key_value_size")
"""Widths of a decoder layer's modules, as `LayerShape` has them."""
OPTIONAL_COUNTS = ("num_layers", "held_micro_batches", "num_adapters", *LAYER_SHAPE)
ADAPTERS = {"target_modules", "num_adapters"}
"""Columns that say, with the rank, which adapters a row is of."""
LAYERS = "layers_per_stage"
"""Decoder layers by stage, joined by +."""
ENGINE = "cappuccino"
"""What `profile` writes as the engine that a table is of: the runtime of this project."""
RECOMPUTE = "recompute"
"""Column that says what the row's stages kept for the backward: `none` recomputed, or `full`."""
OPTIONAL_WORDS = ("gpu", "source", "target_modules", "device", "dtype", "engine", RECOMPUTE)
_NEARLY = 0.93
"""Likeness of two names from which on one is taken for a slip of the other."""
OK = "OK"
STATUSES = (OK, "OOM", "OOM_OR_INVALID")
"""The row ran, or it did not fit the memory, under one of two names."""


@dataclass(frozen=True)
class CostTable:
    """A validated cost table.

    `ok` has the rows that ran, `failed` those that did not fit; both carry `tokens` (of one micro-batch) and
    `squares` (sum of squared sequence lengths) besides the columns of the file, numbers as numbers.
    """

    source: Path
    ok: pd.DataFrame
    failed: pd.DataFrame

    def select(self, backbone: str, gpu: str) -> "CostTable":
        """Return the rows of one backbone on one GPU type; a table without a `gpu` column serves every type.

        Raises
        ------
        InputError
            When no row is left that ran.
        """
        ok, failed = (f[f["param_name"] == backbone] for f in (self.ok, self.failed))
        if ok.empty:
            known = ", ".join(sorted(set(self.ok["param_name"]))) or "none"
            problem = f'no OK rows of backbone "{backbone}"'
            raise InputError(self.source, "param_name", problem, f"profile it, or use a backbone of the table: {known}")
        if "gpu" in ok.columns:
            ok, failed = (f[f["gpu"] == gpu] for f in (ok, failed))
            if ok.empty:
                known = ", ".join(sorted(set(self.ok["gpu"])))
                problem = f'no OK rows of backbone "{backbone}" on "{gpu}"'
                raise InputError(self.source, "gpu", problem, f"profile it there, or use a GPU of the table: {known}")
        return CostTable(self.source, ok, failed)

    @property
    def recomputations(self) -> tuple[Recompute | None, ...]:
        """Kinds of recomputation that the rows which ran are of; None where nobody says.

        Without the column, computed rows assume full recomputation, and this project's runtime did not recompute.
        """
        if RECOMPUTE in self.ok.columns:
            found = set(self.ok[RECOMPUTE])
            return tuple(mode for mode in Recompute if mode in found)
        if self.is_analytic:
            return (Recompute.FULL,)
        own = "engine" in self.ok.columns and bool((self.ok["engine"] == ENGINE).all())
        return (Recompute.NONE if own else None,)

    def of_recomputation(self, mode: Recompute | None) -> "CostTable":
        """Return the rows of one kind of recomputation."""
        if RECOMPUTE not in self.ok.columns:
            return self
        ok, failed = (f[f[RECOMPUTE] == mode].reset_index(drop=True) for f in (self.ok, self.failed))
        return CostTable(self.source, ok, failed)

    @property
    def backbones(self) -> tuple[tuple[str, str], ...]:
        """(Backbone, GPU type) of the rows that ran, in their order; the type is "" without a `gpu` column."""
        gpus = self.ok["gpu"] if "gpu" in self.ok.columns else [""] * len(self.ok)
        return tuple(dict.fromkeys(zip(self.ok["param_name"], gpus, strict=True)))

    @property
    def is_analytic(self) -> bool:
        """Whether any row was computed from specifications instead of measured."""
        return "source" in self.ok.columns and bool((self.ok["source"] == "analytic").any())


def read_cost_table(path: Path) -> CostTable:
    """Read and validate a cost table.

    Raises
    ------
    InputError
        Naming the column, and the line and value where there is one.
    """
    _check_header(path, read_text(path))
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(path, "", f"is not a CSV table ({error})".replace("\n", " "), "give a CSV file") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus values at the front for an index
        raise InputError(path, "line 2", "has more values than the header has columns", "correct the rows")
    frame.columns = frame.columns.str.strip()
    frame = frame[(frame != "").any(axis=1)]  # rows keep their numbers, so that errors name the line
    missing = [c for c in REQUIRED if c not in frame.columns]
    if missing:
        raise InputError(path, missing[0], "column is missing", f"a cost table needs the columns {', '.join(REQUIRED)}")
    frame["status"] = frame["status"].str.strip()
    unknown = frame.index[~frame["status"].isin(STATUSES)]
    if len(unknown):
        problem = f'"{frame["status"][unknown[0]]}" is no status'
        remedy = f"write {OK} where the row ran, {STATUSES[1]} where memory ran out, and remove other rows"
        raise InputError(path, f"line {unknown[0] + 2}, status", problem, remedy)
    ran = frame["status"] == OK
    for column in (*COUNTS, *(c for c in OPTIONAL_COUNTS if c in frame.columns)):
        frame[column] = _numbers(path, frame, column, pd.Series(True, frame.index), least=1, whole=True)
    for column in (*MEASURED, *(c for c in (*OPTIONAL_TIMES, REFERENCE, *MIXED, *HELD) if c in frame.columns)):
        frame[column] = _numbers(path, frame, column, ran, least=0.0, whole=False)
    for column in (*MEASURED, *(c for c in (REFERENCE, *MIXED) if c in frame.columns)):
        zero = frame.index[ran & (frame[column] == 0)]
        if len(zero):
            raise InputError(path, f"line {zero[0] + 2}, {column}", "0 is not allowed", "measure the row again")
    if LAYERS in frame.columns:
        _check_layers(path, frame)
    if RECOMPUTE in frame.columns:
        _check_recompute(path, frame)
    if DROPOUT in frame.columns:
        frame[DROPOUT] = _numbers(path, frame, DROPOUT, pd.Series(True, frame.index), least=0.0, whole=False)
    if "target_modules" in frame.columns:
        frame["target_modules"] = frame["target_modules"].str.split("+")
    frame["tokens"] = frame["micro_bsz"] * frame["seqlen"]
    frame["squares"] = frame["tokens"] * frame["seqlen"]
    if not ran.any():
        raise InputError(path, "status", "no row is OK", "profile at least a few points that fit")
    return CostTable(path, frame[ran].reset_index(drop=True), frame[~ran].reset_index(drop=True))


def _check_header(path: Path, text: str) -> None:
    """Refuse a column that stands twice, and one that is nearly called like a column that is used."""
    header = [name.strip() for name in next(csv.reader(text.splitlines()[:1]), [])]
    twice = [name for name, times in Counter(name for name in header if name).items() if times > 1]
    if twice:
        raise InputError(path, twice[0], "is the name of two columns", "keep one of them")
    known = (*REQUIRED, *OPTIONAL_COUNTS, *OPTIONAL_TIMES, REFERENCE, *MIXED, *HELD, LAYERS, DROPOUT, *OPTIONAL_WORDS)
    plain = {_plain(name): name for name in known}
    for name in header:
        if not name or name in known:
            continue
        near = [k for k in get_close_matches(name, known, cutoff=_NEARLY) if k not in header]
        meant = plain.get(_plain(name)) or next(iter(near), None)
        if meant is not None:
            raise InputError(path, name, "is no column that is used", f"call it {meant}, or otherwise")


def _plain(name: str) -> str:
    """Return a name without what spreadsheets and people vary."""
    return name.casefold().replace("-", "_").replace(" ", "_").rstrip("s")


def _check_layers(path: Path, frame: pd.DataFrame) -> None:
    """Turn the layers by stage into tuples, which fit the numbers of stages and layers."""
    splits = []
    for line, text, stages in zip(frame.index, frame[LAYERS], frame["pp_size"], strict=True):
        parts = text.split("+")
        split = tuple(int(p) for p in parts if p.isdecimal() and int(p) > 0)
        total = frame["num_layers"][line] if "num_layers" in frame.columns else sum(split)
        if len(split) != len(parts) or len(split) != stages or sum(split) != total:
            problem = f'"{text}" is no split of the layers over {stages} stages'
            raise InputError(path, f"line {line + 2}, {LAYERS}", problem, "correct the row or profile it again")
        splits.append(split)
    frame[LAYERS] = splits


def _check_recompute(path: Path, frame: pd.DataFrame) -> None:
    known = [mode.value for mode in Recompute]
    unknown = frame.index[~frame[RECOMPUTE].isin(known)]
    if len(unknown):
        problem = f'"{frame[RECOMPUTE][unknown[0]]}" is no kind of recomputation'
        remedy = f"write {' or '.join(known)}, or leave the column out"
        raise InputError(path, f"line {unknown[0] + 2}, {RECOMPUTE}", problem, remedy)


def _numbers(path: Path, frame: pd.DataFrame, column: str, needed: pd.Series, least: float, whole: bool) -> pd.Series:
    values = pd.to_numeric(frame[column], errors="coerce")
    bad = needed & (values.isna() | ~np.isfinite(values) | (values < least))
    if whole:
        bad |= needed & ((values != values.round()) | (values >= 2**31))
    if bad.any():
        line = frame.index[bad][0]
        kind = "a positive integer" if whole else "a number that is not negative"
        problem = f'"{frame[column][line]}" is not {kind}'
        raise InputError(path, f"line {line + 2}, {column}", problem, "correct the row or profile it again")
    return values.astype("int64") if whole else values.astype("float64")


def layer_shape(rows: pd.DataFrame) -> LayerShape | None:
    """Return the widths of a decoder layer of the rows' backbone, from the catalogue where the table lacks them.

    None where nobody knows.
    """
    if set(LAYER_SHAPE) <= set(rows):
        return LayerShape(*(int(x) for x in rows[list(LAYER_SHAPE)].iloc[0]))
    known = BACKBONES.get(rows["param_name"].iloc[0])
    return None if known is None else known.layer


def layer_count(rows: pd.DataFrame) -> int | None:
    """Return the decoder layers of the rows' backbone, likewise."""
    if "num_layers" in rows:
        return int(rows["num_layers"].iloc[0])
    known = BACKBONES.get(rows["param_name"].iloc[0])
    return None if known is None else known.num_layers


def adapter_sizes(rows: pd.DataFrame, shape: LayerShape) -> list[AdapterSize]:
    """Return the size of the adapters in each row's micro-batches, for rows that have the columns `ADAPTERS`."""
    dropouts = rows[DROPOUT] if DROPOUT in rows else [0.0] * len(rows)
    return [
        AdapterSize.of(shape, int(rank), ALL_LINEAR if names == [ALL_LINEAR] else names, float(dropout))
        for rank, names, dropout in zip(rows["rank"], rows["target_modules"], dropouts, strict=True)
    ]
