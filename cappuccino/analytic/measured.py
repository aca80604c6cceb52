"""What was measured of an engine, and what an estimate makes of it: rows of cost tables, or parts by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from cappuccino.analytic.catalogue import DTYPES, GPUS, GpuSpec
from cappuccino.analytic.efficiency import Efficiency
from cappuccino.analytic.memory import peak_memory_gib
from cappuccino.analytic.roofline import PartTimes, part_times, step_time
from cappuccino.backbone import ALL_LINEAR, ATTENTION_MODULES, BACKBONES, BackboneShape, TargetModules
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.table import LAYERS, CostTable
from cappuccino.errors import InputError
from cappuccino.plan import Recompute, even_layers

STEP_SPREAD, PART_SPREAD, MEMORY_SPREAD = 0.2, 0.05, 0.05
"""Relative error that is expected of the estimate itself, whatever the values: of the time of a step, of the time of
one layer, or of head and embedding, measured by itself, and of the memory."""
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class Pair:
    """A measured time and its estimate, seconds."""

    predicted: float
    measured: float
    spread: float
    """Relative error that is expected of the estimate."""


@dataclass(frozen=True)
class MeasuredParts:
    """Times of a decoder layer, and of embedding and head, for one micro-batch: nothing of a pipeline is in them."""

    backbone: str
    spec: BackboneShape
    gpu_spec: GpuSpec
    tokens: int
    seqlen: int
    adapter: AdapterSize
    dtype: str
    layer_forward_s: float
    layer_backward_s: float
    head_s: float
    """Forward and backward of embedding, head and loss."""

    def parts(self, efficiency: Efficiency) -> PartTimes:
        """Return the estimate; nothing is recomputed."""
        return part_times(
            self.spec, self.gpu_spec, self.tokens, self.seqlen, self.adapter, efficiency, dtype=self.dtype
        )

    def times(self, efficiency: Efficiency) -> list[Pair]:
        """Return estimated and measured times."""
        found = self.parts(efficiency)
        predicted = (found.layer_forward, found.layer_backward, found.input_forward + found.head)
        measured = (self.layer_forward_s, self.layer_backward_s, self.head_s)
        return [Pair(p, m, PART_SPREAD) for p, m in zip(predicted, measured, strict=True)]

    def memories(self, efficiency: Efficiency) -> list[Pair]:
        """Return nothing: no memory was measured."""
        return []


@dataclass(frozen=True)
class MeasuredRow:
    """One row of a measured table, with the specifications that an estimate of it needs."""

    backbone: str
    spec: BackboneShape
    gpu_spec: GpuSpec
    layers: tuple[int, ...]
    """By stage."""
    accumulated: int
    """Micro-batches of a step."""
    held: int
    """Micro-batches that count as held."""
    tokens: int
    seqlen: int
    adapter: AdapterSize
    dtype: str
    recompute: Recompute
    seconds: float | None
    """Time of a step; None where the row failed."""
    memory_gib: float | None
    """Peak memory; None where the row failed."""

    def predicted_seconds(self, efficiency: Efficiency) -> float:
        """Return the estimate of the step's time, seconds, flush included; transfers, below 1%, are left out."""
        parts = part_times(
            self.spec,
            self.gpu_spec,
            self.tokens,
            self.seqlen,
            self.adapter,
            efficiency,
            recompute=self.recompute,
            dtype=self.dtype,
        )
        return step_time(parts, self.layers, self.accumulated)

    def predicted_memory_gib(self, efficiency: Efficiency) -> float:
        """Return the estimate of the peak memory, GiB."""
        return peak_memory_gib(
            self.spec,
            self.layers,
            self.tokens,
            self.held,
            self.adapter,
            efficiency,
            recompute=self.recompute,
            dtype=self.dtype,
        )

    def times(self, efficiency: Efficiency) -> list[Pair]:
        """Return estimated and measured time of a row that ran."""
        return [] if self.seconds is None else [Pair(self.predicted_seconds(efficiency), self.seconds, STEP_SPREAD)]

    def memories(self, efficiency: Efficiency) -> list[Pair]:
        """Return estimated and measured memory of a row that ran, GiB."""
        if self.memory_gib is None:
            return []
        return [Pair(self.predicted_memory_gib(efficiency), self.memory_gib, MEMORY_SPREAD)]


Measured = MeasuredRow | MeasuredParts


def measured_rows(
    table: CostTable, gpu: str | None = None, specs: Mapping[str, BackboneShape] = BACKBONES
) -> list[MeasuredRow]:
    """Return the rows of a measured table, those that failed included.

    Parameters
    ----------
    table
        Measured; its `gpu`, `dtype`, `recompute`, `target_modules`, `layers_per_stage` and `held_micro_batches` are
        used where it has them. Without `recompute`, nothing was recomputed where it has the backward's time (tables of
        `profile`), and every layer otherwise (the seed's).
    gpu
        Catalogued GPU of a table without a column `gpu`.
    specs
        Backbones by name.

    Raises
    ------
    InputError
        When the table is analytic, does not say its GPU, names a backbone, GPU, type or mode of recomputation that is
        not known, or has no row of one adapter.
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


def _rows(
    table: CostTable, frame: pd.DataFrame, gpu: str | None, specs: Mapping[str, BackboneShape], ran: bool
) -> list[MeasuredRow]:
    found = []
    for row in frame.to_dict("records"):
        if int(row.get("num_adapters") or 1) > 1:
            continue  # the estimate is of one adapter
        backbone, dtype = str(row["param_name"]), str(row.get("dtype") or "bfloat16")
        name = str(row["gpu"]) if "gpu" in row else gpu
        recompute = str(row.get("recompute") or (Recompute.NONE if "backward_time_s" in row else Recompute.FULL))
        for field, value, known in (
            ("param_name", backbone, specs),
            ("gpu", name, GPUS),
            ("dtype", dtype, DTYPES),
            ("recompute", recompute, [mode.value for mode in Recompute]),
        ):
            if value not in known:
                problem = f'"{value}" has no known specification'
                remedy = f"leave its rows out; known are {', '.join(map(str, known))}"
                raise InputError(table.source, field, problem, remedy)
        stages, accumulated = int(row["pp_size"]), int(row["grad_acc_steps"])
        spec = specs[backbone]
        if stages > spec.num_layers:
            problem = f'{stages} stages for the {spec.num_layers} layers of "{backbone}"'
            raise InputError(table.source, "pp_size", problem, "correct the row")
        targets: TargetModules = row.get("target_modules") or ATTENTION_MODULES
        found.append(
            MeasuredRow(
                backbone=backbone,
                spec=spec,
                gpu_spec=GPUS[str(name)],
                layers=row.get(LAYERS) or even_layers(spec.num_layers, stages),
                accumulated=accumulated,
                held=int(row.get("held_micro_batches") or (accumulated if stages > 1 else 1)),
                tokens=int(row["tokens"]),
                seqlen=int(row["seqlen"]),
                adapter=AdapterSize.of(spec.layer, int(row["rank"]), ALL_LINEAR if ALL_LINEAR in targets else targets),
                dtype=dtype,
                recompute=Recompute(recompute),
                seconds=float(row["time_per_step_s"]) if ran else None,
                memory_gib=float(row["peak_memory_mb"]) / _MIB_PER_GIB if ran else None,
            )
        )
    return found
