"""Cost tables computed from specifications, in the columns of a profiled one.

Every row says `analytic` in the column `source`: profile before money depends on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from cappuccino.analytic.catalogue import GPUS, GpuSpec
from cappuccino.analytic.efficiency import FUSED, Efficiency
from cappuccino.analytic.memory import held_micro_batches, peak_memory_gib
from cappuccino.analytic.roofline import PartTimes, part_times, step_time, transfer_time
from cappuccino.backbone import ALL_LINEAR, ATTENTION_MODULES, BackboneShape, TargetModules
from cappuccino.costs.adapters import AdapterSize
from cappuccino.errors import InputError
from cappuccino.plan import Recompute, even_layers

SEED_COLUMNS = (
    "param_name",
    "tasknum",
    "model_path",
    "pp_size",
    "world_size",
    "global_bsz",
    "micro_bsz",
    "grad_acc_steps",
    "seqlen",
    "rank",
    "max_steps",
    "num_samples",
    "peak_memory_mb",
    "throughput_per_gpu_tok_s",
    "total_throughput_tok_s",
    "tokens_per_step",
    "time_per_step_s",
    "status",
)
"""Columns of the seed's profile table, in its order."""
FORM = (*SEED_COLUMNS, "gpu", "source", "num_layers")
STAGE_TIMES = ("forward_time_s", "backward_time_s", "transfer_time_s")
ANALYTIC = "analytic"
OOM_STATUS = "OOM_OR_INVALID"
OOM_VALUE = "OOM"

MICRO_BATCH_SIZES = (1, 2, 4, 8)
SEQUENCE_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 3072, 4096)
GLOBAL_BATCH_SIZES = (8, 16)
RANK = 16
OTHER_ADAPTERS: tuple[tuple[int, int, TargetModules], ...] = (
    (1, RANK, ("q_proj", "v_proj")),
    (1, 4 * RANK, ALL_LINEAR),
    (4, RANK, ATTENTION_MODULES),
)
"""Number in a micro-batch, rank and target modules of adapters that tell what others than the usual one add."""
OTHER_MICRO_BATCH_SIZE, OTHER_SEQUENCE_LENGTHS = 4, (32, 256, 1024)
"""Points of theirs, where launches count and where work does."""
STAGE_COUNTS = (1, 2, 4, 8)
"""Estimated where none are given, as far as the backbone has layers."""
_MIB_PER_GIB = 1024


def stage_counts(spec: BackboneShape) -> list[int]:
    """Return the numbers of stages that are estimated where none are given."""
    return [g for g in STAGE_COUNTS if g <= spec.num_layers]


def estimated_table(
    backbone: str,
    gpu: str,
    spec: BackboneShape,
    pp_sizes: Sequence[int],
    modes: Sequence[Recompute],
    efficiency: Efficiency,
    dtype: str,
) -> pd.DataFrame:
    """Return the tables of a backbone on a catalogued GPU for all kinds of recomputation, as one.

    Parameters
    ----------
    backbone, gpu, spec, pp_sizes, efficiency, dtype
        As for `analytic_table`.
    modes
        Kinds of activation recomputation.

    Raises
    ------
    InputError
        When nothing fits the GPU.
    """
    parts = [
        analytic_table(backbone, gpu, spec, GPUS[gpu], pp_sizes, efficiency=efficiency, recompute=mode, dtype=dtype)
        for mode in modes
    ]
    table = pd.concat(parts, ignore_index=True)
    table["tasknum"] = table.index + 1
    if not (table["status"] == "OK").any():
        stages = ",".join(map(str, pp_sizes))
        problem = f"{stages}: nothing of {backbone}, {spec.parameters / 1e9:.3g} billion parameters, fits a {gpu}"
        raise InputError("--num-stages", "", problem, "give more stages or a larger GPU")
    return table


def analytic_table(
    backbone: str,
    gpu: str,
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    pp_sizes: Sequence[int],
    *,
    efficiency: Efficiency = FUSED,
    recompute: Recompute = Recompute.NONE,
    dtype: str = "bfloat16",
) -> pd.DataFrame:
    """Return a cost table with all that a profile has and an estimate knows.

    Layers are split evenly, unless the head makes the slowest stage of another split faster at the largest micro-batch;
    step times have transfers in them. Rows above the usable memory of the GPU get the status of a failed profile. All
    points are of one adapter of rank 16 on the attention projections, a few of `OTHER_ADAPTERS`.

    Parameters
    ----------
    backbone, gpu
        Names that go into `param_name` and `gpu`.
    spec, gpu_spec
        Their specifications.
    pp_sizes
        Numbers of pipeline stages.
    efficiency
        Of the engine.
    recompute
        Of the activations, for the backward.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.

    Returns
    -------
    pd.DataFrame
        The columns `FORM`, then those that `profile` has besides; times of rows that do not fit are missing.
        `max_steps` and `num_samples` are 0: nothing was run.
    """

    def parts(adapters: AdapterSize, micro: int, seqlen: int) -> PartTimes:
        tokens = micro * seqlen
        return part_times(spec, gpu_spec, tokens, seqlen, adapters, efficiency, recompute=recompute, dtype=dtype)

    usual = AdapterSize.of(spec.layer, RANK, ATTENTION_MODULES)
    largest = parts(usual, max(MICRO_BATCH_SIZES), max(SEQUENCE_LENGTHS))
    rows = []
    for (number, rank, modules), (stages, micro, accumulated, seqlen) in _points(backbone, spec, pp_sizes):
        adapter = AdapterSize.of(spec.layer, rank, modules)
        together = replace(adapter, modules=number * adapter.modules)
        layers, tokens = largest.split(spec.num_layers, stages), micro * seqlen
        held = held_micro_batches(stages, accumulated, efficiency)
        stored = replace(adapter, parameters=number * adapter.parameters)
        memory = peak_memory_gib(spec, layers, tokens, held, stored, efficiency, recompute=recompute, dtype=dtype)
        transfer_s = transfer_time(spec, gpu_spec, stages, tokens, dtype)
        here = parts(together, micro, seqlen)
        row = _row(backbone, gpu, spec, stages, micro, accumulated, seqlen, rank)
        row |= _outcome(row, step_time(here, layers, accumulated, transfer_s), memory, efficiency, gpu_spec)
        forward_s, backward_s = here.stage(layers)
        row |= {"layers_per_stage": "+".join(map(str, layers)), "held_micro_batches": held, "num_adapters": number}
        row["target_modules"] = modules if isinstance(modules, str) else "+".join(modules)
        if row["status"] == "OK":
            row |= {"forward_time_s": forward_s, "backward_time_s": backward_s, "transfer_time_s": transfer_s}
            row |= here.columns()
        rows.append(row)
    said = ("layers_per_stage", "held_micro_batches", "num_adapters", "target_modules")
    columns = (*FORM, *said, *STAGE_TIMES, *largest.columns())
    return pd.DataFrame(rows, columns=list(columns)).assign(
        tasknum=range(1, len(rows) + 1),
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        query_size=spec.query_width,
        key_value_size=spec.kv_width,
        dtype=dtype,
        engine=efficiency.name,
        recompute=recompute,
    )


def seed_table(
    backbone: str, gpu: str, spec: BackboneShape, gpu_spec: GpuSpec, pp_sizes: Sequence[int], efficiency: Efficiency
) -> pd.DataFrame:
    """Return a cost table in the seed's form: its columns alone, even layers, recomputed, no transfers.

    All micro-batches of a step count as held where there are several stages, which is how such tables are read.
    """
    adapter = AdapterSize.of(spec.layer, RANK, ATTENTION_MODULES)
    rows = []
    for stages, micro, accumulated, seqlen in _grid(backbone, spec, pp_sizes):
        layers, tokens = even_layers(spec.num_layers, stages), micro * seqlen
        parts = part_times(spec, gpu_spec, tokens, seqlen, adapter, efficiency, recompute=Recompute.FULL)
        held = accumulated if stages > 1 else 1
        memory = peak_memory_gib(spec, layers, tokens, held, adapter, efficiency, recompute=Recompute.FULL)
        row = _row(backbone, gpu, spec, stages, micro, accumulated, seqlen, RANK)
        rows.append(row | _outcome(row, step_time(parts, layers, accumulated), memory, efficiency, gpu_spec))
    table = pd.DataFrame(rows, columns=list(FORM)).assign(tasknum=range(1, len(rows) + 1))
    return table.assign(recompute=Recompute.FULL)


def _points(
    backbone: str, spec: BackboneShape, pp_sizes: Sequence[int]
) -> Iterator[tuple[tuple[int, int, TargetModules], tuple[int, int, int, int]]]:
    """Yield number, rank and modules of adapters, and a point of `_grid` at which they are."""
    for point in _grid(backbone, spec, pp_sizes):
        _, micro, _, seqlen = point
        yield (1, RANK, ATTENTION_MODULES), point
        if micro == OTHER_MICRO_BATCH_SIZE and seqlen in OTHER_SEQUENCE_LENGTHS:
            for adapters in OTHER_ADAPTERS:
                yield adapters, point


def _grid(backbone: str, spec: BackboneShape, pp_sizes: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield stages, samples of a micro-batch, micro-batches of a step and length of a sample."""
    for stages in pp_sizes:
        if not 1 <= stages <= spec.num_layers:
            raise ValueError(f"pp_size {stages} of {backbone}: give 1 to its {spec.num_layers} layers")
        for micro in MICRO_BATCH_SIZES:
            for batch in (b for b in GLOBAL_BATCH_SIZES if b % micro == 0):
                for seqlen in SEQUENCE_LENGTHS:
                    yield stages, micro, batch // micro, seqlen


def _row(
    backbone: str, gpu: str, spec: BackboneShape, stages: int, micro: int, accumulated: int, seqlen: int, rank: int
) -> dict[str, Any]:
    return {
        "param_name": backbone,
        "model_path": backbone,
        "pp_size": stages,
        "world_size": stages,
        "global_bsz": micro * accumulated,
        "micro_bsz": micro,
        "grad_acc_steps": accumulated,
        "seqlen": seqlen,
        "rank": rank,
        "max_steps": 0,
        "num_samples": 0,
        "tokens_per_step": micro * accumulated * seqlen,
        "gpu": gpu,
        "source": ANALYTIC,
        "num_layers": spec.num_layers,
    }


def _outcome(
    row: dict[str, Any], seconds: float, memory_gib: float, efficiency: Efficiency, gpu_spec: GpuSpec
) -> dict[str, Any]:
    measured = ("peak_memory_mb", "throughput_per_gpu_tok_s", "total_throughput_tok_s", "time_per_step_s")
    if memory_gib > efficiency.usable_memory * gpu_spec.memory_gib:
        return {**dict.fromkeys(measured, OOM_VALUE), "status": OOM_STATUS}
    throughput = row["tokens_per_step"] / seconds
    values = (
        round(memory_gib * _MIB_PER_GIB, 2),
        round(throughput / row["pp_size"], 2),
        round(throughput, 2),
        round(seconds, 6),
    )
    return {**dict(zip(measured, values, strict=True)), "status": "OK"}
