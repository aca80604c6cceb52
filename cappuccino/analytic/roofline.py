"""Cost tables from data sheets: a roofline estimate for backbones and GPUs that nobody has profiled yet.

How far the software falls short of the data sheet is an `Efficiency`, the same for every backbone and GPU: `CALIBRATED`
to measured runs unless said otherwise, `PUBLISHED` for the shipped instances. Predicted against measured, on 94 rows of
Llama-2-7b and 59 of Qwen2.5-32B on A100-40GB (mean absolute error, median ratio, worst factor):

    CALIBRATED              step time               peak memory
    all rows                18.8%  0.94  1.67       1.6%  1.00  1.17
    Llama-2-7b              17.0%  0.92  1.42       0.7%  1.00  1.08
    Qwen2.5-32B             21.6%  1.04  1.67       2.9%  1.00  1.17
    calibrated on the other backbone
    all rows                22.7%  0.91  1.81       1.6%  1.00  1.17
    Llama-2-7b              18.8%  0.89  1.49       0.7%  1.00  1.08
    Qwen2.5-32B             29.0%  1.12  1.81       2.9%  1.00  1.17
    PUBLISHED
    all rows                21.0%  0.84  1.79      11.7%  1.08  1.61

What to expect of a backbone never measured is the middle block: no better step times than `PUBLISHED`, since two
backbones cannot tell what a third reaches, and a peak memory within a few percent. Of a GPU other than the A100 nothing
was measured. Profile before money depends on it: every row says `analytic` in the column `source`.

Legend: T tokens of a micro-batch, S sequence length, h hidden width, V vocabulary, g pipeline stages.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cappuccino.analytic.catalogue import DTYPES, GpuSpec
from cappuccino.analytic.efficiency import CALIBRATED, Efficiency
from cappuccino.backbone import STATE_BYTES, BackboneShape
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
ANALYTIC = "analytic"
OOM_STATUS = "OOM_OR_INVALID"
OOM_VALUE = "OOM"

MICRO_BATCH_SIZES = (1, 2, 4, 8)
SEQUENCE_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 3072, 4096)
GLOBAL_BATCH_SIZES = (8, 16)

BACKWARD_OVER_FORWARD = 2.0
"""One forward again for the recomputation, one forward's worth for the gradient of the inputs."""
LOSS_PASSES = 6
"""Passes over the fp32 logits in head and loss, forward and backward: cast, maximum, exponent, sum, gradient, cast."""
RECOMPUTED_BYTES_PER_HIDDEN = 34
"""Activations of the one layer that is being recomputed, bytes per token and unit of hidden width, attention scores not
kept (Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, 2022, section 4.1)."""


_GIB = 2**30
_MIB_PER_GIB = 1024


def layer_forward_time(
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    tokens: int,
    seqlen: int,
    efficiency: Efficiency = CALIBRATED,
    dtype: str = "bfloat16",
) -> float:
    """Return the forward time of one decoder layer, seconds.

    Arithmetic is `(2 P T + 2 T S w) / (share x peak)`, where P is the layer's parameters and `2 T S w` the two products
    of causal attention over the width w of its heads (`4 T S w`, half of it masked); traffic is weights and
    element-wise kernels over the bandwidth. Overlapped, the longer of the two counts; otherwise the products take the
    longer of arithmetic and weights, and the element-wise kernels come on top. Never less than the host's floor.

    Parameters
    ----------
    spec, gpu_spec
        Backbone and GPU.
    tokens
        Tokens of the micro-batch.
    seqlen
        Tokens of each of its sequences.
    efficiency
        Of the software.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.
    """
    flops = 2.0 * spec.layer_parameters * tokens + 2.0 * tokens * seqlen * spec.query_width
    compute = _compute_time(flops, gpu_spec, efficiency, dtype)
    weights = _traffic_time(DTYPES[dtype] * spec.layer_parameters, gpu_spec)
    elementwise = _traffic_time(DTYPES[dtype] / 2 * efficiency.elementwise_bytes * spec.hidden * tokens, gpu_spec)
    work = max(compute, weights + elementwise) if efficiency.overlapped else max(compute, weights) + elementwise
    return max(work, efficiency.layer_floor_s)


def head_time(
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    tokens: int,
    efficiency: Efficiency = CALIBRATED,
    dtype: str = "bfloat16",
) -> float:
    """Return the forward and backward time of head and loss, seconds.

    Arithmetic `4 V h T` (forward and the gradient of the inputs: the head is frozen and not recomputed) or reading the
    head's weights twice, whichever is longer, then the loss's passes over the logits, which are bound by bandwidth.
    """
    product = _compute_time(4.0 * spec.embedding_parameters * tokens, gpu_spec, efficiency, dtype)
    weights = _traffic_time(2.0 * DTYPES[dtype] * spec.embedding_parameters, gpu_spec)
    return max(product, weights) + _traffic_time(LOSS_PASSES * 4.0 * spec.vocab * tokens, gpu_spec)


def slot_time(
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    num_stages: int,
    tokens: int,
    seqlen: int,
    efficiency: Efficiency = CALIBRATED,
    dtype: str = "bfloat16",
) -> float:
    """Return forward and backward of one micro-batch on the slowest stage, seconds.

    Layers take 3 forwards' worth: the forward, its recomputation and the gradient of the inputs. Frozen weights need no
    gradient, and the adapters' own is below 1%. The first stage may have one layer more, the last one has the head.
    """
    layer = (1 + BACKWARD_OVER_FORWARD) * layer_forward_time(spec, gpu_spec, tokens, seqlen, efficiency, dtype)
    layers = even_layers(spec.num_layers, num_stages)
    return max(layers[0] * layer, layers[-1] * layer + head_time(spec, gpu_spec, tokens, efficiency, dtype))


def peak_memory_gib(
    spec: BackboneShape,
    num_stages: int,
    tokens: int,
    held_micro_batches: int,
    rank: int,
    efficiency: Efficiency = CALIBRATED,
    dtype: str = "bfloat16",
) -> float:
    """Return the memory of the fullest stage, GiB.

    Weights of the stage's layers, embedding on the first stage and head on the last (one table if tied), one adapter on
    the attention projections with its optimizer state; per token of the running micro-batch the logits on the last
    stage or the recomputed layer, whichever is more; per token held the input of every layer, and what the stage's
    boundary keeps.

    Parameters
    ----------
    spec
        Backbone.
    num_stages
        Pipeline stages, one GPU each.
    tokens
        Tokens of one micro-batch.
    held_micro_batches
        Micro-batches forwarded and not yet backwarded, the running one included; under `one_f_one_b`, those of a step.
    rank
        LoRA rank.
    efficiency
        Of the software.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.
    """
    width, table = DTYPES[dtype], spec.embedding_parameters
    recomputed = width / 2 * RECOMPUTED_BYTES_PER_HIDDEN * spec.hidden
    boundary = efficiency.boundary_tensors * held_micro_batches if num_stages > 1 else 0.0

    def stage(position: int, count: int, tables: int) -> float:
        weights = width * (count * spec.layer_parameters + tables * table)
        adapter = STATE_BYTES * count * _adapter_parameters(spec, rank)
        last = position == num_stages - 1
        working = max(efficiency.logit_bytes * spec.vocab, recomputed) if last else recomputed
        deep = min(held_micro_batches, num_stages - position) if efficiency.one_f_one_b else held_micro_batches
        held = width * spec.hidden * (count * deep + boundary)
        return efficiency.context_gib + (weights + adapter + (working + held) * tokens) / _GIB

    layers = even_layers(spec.num_layers, num_stages)
    if num_stages == 1:
        return stage(0, layers[0], 1 if spec.tied_embeddings else 2)
    return max(stage(0, layers[0], 1), stage(num_stages - 1, layers[-1], 1))


def analytic_table(
    backbone: str,
    gpu: str,
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    pp_sizes: Sequence[int],
    *,
    micro_batch_sizes: Sequence[int] = MICRO_BATCH_SIZES,
    sequence_lengths: Sequence[int] = SEQUENCE_LENGTHS,
    global_batch_sizes: Sequence[int] = GLOBAL_BATCH_SIZES,
    rank: int = 16,
    efficiency: Efficiency = CALIBRATED,
    dtype: str = "bfloat16",
) -> pd.DataFrame:
    """Return a cost table computed from specifications, in the columns of a profiled one.

    A step of `grad_acc_steps` micro-batches through g stages takes `(grad_acc_steps + g - 1)` slots (see `slot_time`),
    flush included; transfers are taken to overlap with computation. Peak memory counts all micro-batches of a step as
    held where g > 1, which is how cost tables are read (`fit_memory`). Rows above the usable memory of the GPU get the
    status of a failed profile.

    Parameters
    ----------
    backbone, gpu
        Names that go into `param_name` and `gpu`.
    spec, gpu_spec
        Their specifications.
    pp_sizes
        Numbers of pipeline stages.
    micro_batch_sizes, sequence_lengths, global_batch_sizes
        The grid; `grad_acc_steps` is the quotient of global and micro-batch size, pairs without one are left out.
    rank
        LoRA rank.
    efficiency
        Of the software.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.

    Returns
    -------
    pd.DataFrame
        `SEED_COLUMNS`, then `gpu`, `source` and `num_layers`. `max_steps` and `num_samples` are 0: nothing was run.
    """
    rows: list[dict[str, Any]] = []
    limit_gib = efficiency.usable_memory * gpu_spec.memory_gib
    for pp_size in pp_sizes:
        if not 1 <= pp_size <= spec.num_layers:
            raise ValueError(f"pp_size {pp_size} of {backbone}: give 1 to its {spec.num_layers} layers")
        for micro in micro_batch_sizes:
            for global_batch in (b for b in global_batch_sizes if b % micro == 0):
                for seqlen in sequence_lengths:
                    steps, tokens = global_batch // micro, micro * seqlen
                    held = steps if pp_size > 1 else 1
                    memory = peak_memory_gib(spec, pp_size, tokens, held, rank, efficiency, dtype)
                    slot = slot_time(spec, gpu_spec, pp_size, tokens, seqlen, efficiency, dtype)
                    seconds = (steps + pp_size - 1) * slot
                    row = {
                        "param_name": backbone,
                        "tasknum": len(rows) + 1,
                        "model_path": backbone,
                        "pp_size": pp_size,
                        "world_size": pp_size,
                        "global_bsz": global_batch,
                        "micro_bsz": micro,
                        "grad_acc_steps": steps,
                        "seqlen": seqlen,
                        "rank": rank,
                        "max_steps": 0,
                        "num_samples": 0,
                        "tokens_per_step": global_batch * seqlen,
                    }
                    row |= _outcome(seconds, memory, limit_gib, global_batch * seqlen, pp_size)
                    rows.append(row)
    table = pd.DataFrame(rows, columns=list(SEED_COLUMNS))
    return table.assign(gpu=gpu, source=ANALYTIC, num_layers=spec.num_layers)


def _outcome(seconds: float, memory_gib: float, limit_gib: float, tokens: int, gpus: int) -> dict[str, Any]:
    measured = ("peak_memory_mb", "throughput_per_gpu_tok_s", "total_throughput_tok_s", "time_per_step_s")
    if memory_gib > limit_gib:
        return {**dict.fromkeys(measured, OOM_VALUE), "status": OOM_STATUS}
    throughput = tokens / seconds
    values = (
        round(memory_gib * _MIB_PER_GIB, 2),
        round(throughput / gpus, 2),
        round(throughput, 2),
        round(seconds, 6),
    )
    return {**dict(zip(measured, values, strict=True)), "status": "OK"}


def _adapter_parameters(spec: BackboneShape, rank: int) -> int:
    return 2 * rank * (2 * spec.hidden + spec.query_width + spec.kv_width)


def _compute_time(flops: float, gpu_spec: GpuSpec, efficiency: Efficiency, dtype: str) -> float:
    return flops / (efficiency.compute_share * gpu_spec.tflops(dtype) * 1e12)


def _traffic_time(count_bytes: float, gpu_spec: GpuSpec) -> float:
    return count_bytes / (gpu_spec.bandwidth_gb_s * 1e9)
