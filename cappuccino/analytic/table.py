"""Cost tables computed from specifications, in the columns of a profiled one.

Every row says `analytic` in the column `source`: profile before money depends on it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from cappuccino.analytic.catalogue import GpuSpec
from cappuccino.analytic.efficiency import FUSED, Efficiency
from cappuccino.analytic.memory import held_micro_batches, peak_memory_gib
from cappuccino.analytic.roofline import FULL, NONE, PartTimes, part_times, step_time, transfer_time
from cappuccino.backbone import ATTENTION_MODULES, BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.plan import even_layers

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
_MIB_PER_GIB = 1024


def analytic_table(
    backbone: str,
    gpu: str,
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    pp_sizes: Sequence[int],
    *,
    efficiency: Efficiency = FUSED,
    recompute: str = NONE,
    dtype: str = "bfloat16",
    rank: int = RANK,
    target_modules: Sequence[str] = ATTENTION_MODULES,
) -> pd.DataFrame:
    """Return a cost table with all that a profile has and an estimate knows.

    Layers are split evenly, unless the head makes the slowest stage of another split faster at the largest micro-batch;
    step times have transfers in them. Rows above the usable memory of the GPU get the status of a failed profile.

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
        One of `cappuccino.analytic.roofline.RECOMPUTE`.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.
    rank, target_modules
        Of the one adapter of every row.

    Returns
    -------
    pd.DataFrame
        The columns `FORM`, then those that `profile` has besides; times of rows that do not fit are missing.
        `max_steps` and `num_samples` are 0: nothing was run.
    """
    adapter = AdapterSize.of(spec.layer, rank, target_modules)

    def parts(micro: int, seqlen: int) -> PartTimes:
        return part_times(spec, gpu_spec, micro * seqlen, seqlen, adapter, efficiency, recompute=recompute, dtype=dtype)

    largest = parts(max(MICRO_BATCH_SIZES), max(SEQUENCE_LENGTHS))
    rows = []
    for stages, micro, accumulated, seqlen in _grid(backbone, spec, pp_sizes):
        layers, tokens = largest.split(spec.num_layers, stages), micro * seqlen
        held = held_micro_batches(stages, accumulated, efficiency)
        memory = peak_memory_gib(spec, layers, tokens, held, adapter, efficiency, recompute=recompute, dtype=dtype)
        transfer_s = transfer_time(spec, gpu_spec, stages, tokens, dtype)
        here = parts(micro, seqlen)
        row = _row(backbone, gpu, spec, stages, micro, accumulated, seqlen, rank)
        row |= _outcome(row, step_time(here, layers, accumulated, transfer_s), memory, efficiency, gpu_spec)
        forward_s, backward_s = here.stage(layers)
        row |= {"layers_per_stage": "+".join(map(str, layers)), "held_micro_batches": held}
        if row["status"] == "OK":
            row |= {"forward_time_s": forward_s, "backward_time_s": backward_s, "transfer_time_s": transfer_s}
            row |= here.columns()
        rows.append(row)
    columns = (*FORM, "layers_per_stage", "held_micro_batches", *STAGE_TIMES, *largest.columns())
    return pd.DataFrame(rows, columns=list(columns)).assign(
        tasknum=range(1, len(rows) + 1),
        num_adapters=1,
        target_modules="+".join(target_modules),
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
        parts = part_times(spec, gpu_spec, tokens, seqlen, adapter, efficiency, recompute=FULL)
        held = accumulated if stages > 1 else 1
        memory = peak_memory_gib(spec, layers, tokens, held, adapter, efficiency, recompute=FULL)
        row = _row(backbone, gpu, spec, stages, micro, accumulated, seqlen, RANK)
        rows.append(row | _outcome(row, step_time(parts, layers, accumulated), memory, efficiency, gpu_spec))
    return pd.DataFrame(rows, columns=list(FORM)).assign(tasknum=range(1, len(rows) + 1))


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
