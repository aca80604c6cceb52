"""Measures a backbone on this machine: every grid point is an adapter of a plan that the runtime runs.

So what is measured is what a plan will later do, communication between stages included.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cappuccino.backbone import BackboneShape
from cappuccino.costs import fit_costs, read_cost_table
from cappuccino.costs.fit import FEWEST_ROWS
from cappuccino.costs.stages import balanced_layers
from cappuccino.costs.table import ENGINE, MEASURED
from cappuccino.errors import InputError
from cappuccino.files import read_json, write_atomically
from cappuccino.runtime.backbone.config import is_configuration, read_trainable_shape
from cappuccino.runtime.launch.errors import RunError, is_out_of_memory
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.plan import profile_plan
from cappuccino.runtime.profiling.rows import ProfileRun, point_columns

Progress = Callable[[float, str], None]
OUT_OF_MEMORY = "OOM"
"""Status of points that do not fit."""
PARTIAL = ".partial.json"
"""Suffix of the file beside the table that keeps what was measured until all is."""

SETTINGS = "profile_settings"
"""Column with a hash of all that a measurement depends on: by it a finished table is known."""
_START_S = 15.0
"""Starting the processes of a run: mostly imports."""
_FLOPS_PER_WEIGHT_TOKEN = 5.0
"""Forward 2, gradient of the inputs 2, and the adapters."""
_SHARE_OF_PRODUCT = 0.4
"""Speed of a step relative to that of one large matrix product, about."""


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
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure a backbone and write its cost table, whole or not at all.

    What was measured before an interruption, with the same settings, is taken over from the file `PARTIAL` beside the
    table; a table that is finished with the same settings is returned as it is. Points that run out of memory become
    rows that say so.

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
    on_progress
        Called with the fraction done and what is being done.

    Returns
    -------
    pandas.DataFrame
        The table: the seed's columns and those that docs/formats.md names as the project's own.

    Raises
    ------
    InputError
        When the backbone cannot be run, or has fewer layers than the grid has stages; nothing was measured.
    RunError
        When a measurement failed for another reason than memory.
    """
    shape = read_trainable_shape(backbone)
    points = grid.points()
    if max(grid.num_stages) > shape.num_layers:
        problem = f"{max(grid.num_stages)} stages for {shape.num_layers} layers"
        raise InputError("--num-stages", "", problem, "profile fewer stages")
    settings = _settings(backbone, name=name, gpu=gpu, grid=grid, device=device, dtype=dtype)
    finished = None if again else _finished(output, settings)
    if finished is not None:
        if on_progress:
            on_progress(1.0, f"{len(finished)} rows measured before; --again measures them anew")
        return finished
    partial = output.with_name(output.name + PARTIAL)
    rows = _resumed(partial, settings)
    common = {"param_name": name, "model_path": name}
    extra = {
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
    for done, stages in enumerate(grid.num_stages):
        if any(row["pp_size"] == stages for row in rows):
            continue

        def show(operations: int, total: int, done: int = done, stages: int = stages) -> None:
            if on_progress:
                fraction = (done + operations / total) / len(grid.num_stages)
                on_progress(fraction, f"{stages} stages, {operations} of {total} operations")

        layers = _split(shape, stages, rows)
        head_weighs = shape.vocab * shape.hidden / shape.layer.parameters  # in layers
        if stages > 1 and not rows and shape.num_layers > stages and head_weighs > 1:
            # nothing has told yet what the head takes, and it matters
            one = points[len(points) // 2]
            brief = replace(grid, grad_acc_steps=2, repeats=1)
            first = _measure(backbone, [one], brief, layers, shape, name, gpu, device, dtype, lambda done, total: None)
            layers = _split(shape, stages, [point_columns(one, layers, brief) | first[0][0]])
        found, run = _measure(backbone, points, grid, layers, shape, name, gpu, device, dtype, show)
        new = [
            {**common, "tasknum": len(rows) + n, **point_columns(point, layers, grid), **measured, **extra}
            for n, (point, measured) in enumerate(zip(points, found, strict=True), start=1)
        ]
        factors = _mixed_factors(new, run, output, name, gpu)
        rows += [row | (factors if row["status"] == "OK" else {}) for row in new]
        write_atomically(partial, json.dumps({"settings": settings, "rows": rows}) + "\n")
    if on_progress:
        on_progress(1.0, f"{len(rows)} rows")
    table = pd.DataFrame(rows).assign(**{SETTINGS: _settings_digest(settings)})
    for column in (c for c in MEASURED if c not in table):
        table[column] = np.nan  # not even one point fitted
    write_atomically(output, table.to_csv(index=False, float_format="%.6g"))
    partial.unlink(missing_ok=True)
    return table


def _measure(
    backbone: Path,
    points: list[Point],
    grid: ProfileGrid,
    layers: tuple[int, ...],
    shape: BackboneShape,
    name: str,
    gpu: str,
    device: str,
    dtype: str,
    on_progress: Callable[[int, int], None],
) -> tuple[list[dict[str, object]], ProfileRun | None]:
    """Return the measured columns of every point, those that do not fit included, and the run that gave them."""
    fit = list(points)
    while fit:
        with tempfile.TemporaryDirectory(prefix="cappuccino-profile-") as folder:
            data = Path(folder)
            profile = profile_plan(fit, grid, layers, name=name, gpu=gpu, vocab=shape.vocab, data=data)
            try:
                result = run_plan(
                    profile.plan,
                    profile.instance,
                    backbone,
                    data,
                    data / "out",
                    device=device,
                    dtype=dtype,
                    measure_parts=True,
                    on_progress=on_progress,
                )
            except RunError as error:
                if not is_out_of_memory(error.reason) or error.reason.startswith("the process "):
                    raise  # a process that was killed does not say why
                if error.operation is None:  # while warming up, with the largest micro-batches
                    most = max(point.tokens for point in fit)
                    fit = [point for point in fit if point.tokens < most]
                    continue
                failed = fit[profile.point_of(error.stage, error.operation)]
                # what has more tokens would fail too; the rest is measured again
                fit = [point for point in fit if point != failed and point.tokens <= failed.tokens]
                continue
        run = ProfileRun(profile, result, shape, grid, tuple(fit), layers, dtype)
        measured = {point: run.row(p) for p, point in enumerate(fit)}
        return [measured.get(point, {"status": OUT_OF_MEMORY}) for point in points], run
    return [{"status": OUT_OF_MEMORY} for _ in points], None


def _mixed_factors(
    rows: list[dict[str, Any]], run: ProfileRun | None, output: Path, name: str, gpu: str
) -> dict[str, object]:
    """Return the columns of `ProfileRun.mixed_factors`; nothing where the rows are too few to fit."""
    if run is None or sum(row["status"] == "OK" for row in rows) < FEWEST_ROWS:
        return {}
    with tempfile.TemporaryDirectory(prefix="cappuccino-profile-") as folder:
        table = Path(folder) / output.name
        pd.DataFrame(rows).to_csv(table, index=False)
        return run.mixed_factors(fit_costs(read_cost_table(table), name, gpu, unmeasured=False))


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


def _settings(backbone: Path, **options: Any) -> dict[str, Any]:
    """Return all that a measurement depends on, as JSON knows it."""
    file = backbone if is_configuration(backbone) else backbone / "config.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    options["grid"] = asdict(options["grid"])
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "megatron-core")}
    settings = {"backbone": str(backbone.resolve()), "config": digest, "cores": os.cpu_count(), **versions, **options}
    return dict(json.loads(json.dumps(settings)))


def _settings_digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _finished(output: Path, settings: dict[str, Any]) -> pd.DataFrame | None:
    """Return the table if it is that of a profile with these settings."""
    try:
        table = pd.read_csv(output, dtype={SETTINGS: str})  # a hash of digits alone is no number
    except (OSError, UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
        return None
    mine = SETTINGS in table and (table[SETTINGS] == _settings_digest(settings)).all()
    return table if mine and len(table) else None


def _resumed(partial: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an interrupted profile with the same settings."""
    if not partial.exists():
        return []
    try:
        content = read_json(partial)
    except InputError:
        return []  # of another program: measured anew and replaced
    if not isinstance(content, dict) or content.get("settings") != settings:
        return []
    return list(content["rows"])


def expected_seconds(backbone: Path, grid: ProfileGrid, device: str, dtype: str) -> float:
    """Return about how long a profile takes, seconds, from the weights and the speed of a matrix product here.

    Raises
    ------
    InputError
        When the backbone or the grid cannot be measured.
    """
    shape = read_trainable_shape(backbone)
    weights = shape.num_layers * shape.layer.parameters + shape.vocab * shape.hidden
    rate = _product_rate(device, dtype)
    micro_batches = grid.grad_acc_steps * grid.num_steps
    work = sum(p.tokens for p in grid.points()) * micro_batches * weights * _FLOPS_PER_WEIGHT_TOKEN
    return len(grid.num_stages) * (_START_S + work / (rate * _SHARE_OF_PRODUCT))


def _product_rate(device: str, dtype: str) -> float:
    """Return the speed of a matrix product on one device, FLOP/s."""
    if device == "cuda":
        import torch  # noqa: PLC0415

        size = 4096
        if not torch.cuda.is_available():
            raise InputError("--device", "", "this machine has no GPU that torch can use", "use device cpu")
        factor = torch.ones((size, size), device="cuda", dtype=getattr(torch, dtype))
        torch.cuda.synchronize()

        def product() -> None:
            factor @ factor
            torch.cuda.synchronize()
    else:
        size = 768
        matrix = np.ones((size, size), np.float64 if dtype == "float64" else np.float32)

        def product() -> None:
            matrix @ matrix

    product()
    begin = time.perf_counter()
    product()
    return float(2 * size**3 / (time.perf_counter() - begin))
