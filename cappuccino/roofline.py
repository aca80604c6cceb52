"""Cost tables from data sheets: a roofline estimate for backbones and GPUs that nobody has profiled yet.

The constants below hold for every backbone and GPU alike: published figures and counts, none fitted; only the size of
the layer floor comes from measured runs. Expect step times within a factor of two of a measurement, and profile before
money depends on them: every row says `analytic` in the column `source`.

Legend: T tokens of a micro-batch, S sequence length, h hidden width, V vocabulary, g pipeline stages.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from cappuccino.catalogue import BackboneSpec, GpuSpec

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

COMPUTE_EFFICIENCY = 0.45
"""Share of the bf16 peak that a step reaches, recomputation counted as work. Published training runs report 40% to 59%
(MosaicML llm-foundry's benchmarks, 7B to 70B on H100 with recomputation at 1k to 8k tokens); LoRA branches and small
micro-batches pull below the middle of that."""
LAYER_FLOOR_S = 4e-3
"""Least forward time of one layer, seconds, however few the tokens: the host dispatches a layer's modules, hooks and
some hundred kernels one by one. Eager LoRA runs on A100 hosts lie between 3.3 and 5.2 ms; a faster GPU hardly helps."""
BACKWARD_OVER_FORWARD = 2.0
"""One forward again for the recomputation, one forward's worth for the gradient of the inputs."""
ACTIVATION_BYTES_PER_HIDDEN = 60
"""Memory traffic of a layer's forward besides its weights, bytes per token and unit of hidden width: about 30 bf16
reads and writes (norms, rotary embedding, residuals, gate, the adapters' dropout, products and additions)."""
LOSS_PASSES = 6
"""Passes over the fp32 logits in head and loss, forward and backward: cast, maximum, exponent, sum, gradient, cast."""

WEIGHT_BYTES = 2
"""bf16."""
LOGIT_BYTES = 12
"""Bytes per token and vocabulary entry alive at once: logits, softmax and gradient in fp32."""
RECOMPUTED_BYTES_PER_HIDDEN = 34
"""Activations of the one layer that is being recomputed, bytes per token and unit of hidden width, attention scores not
kept (Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, 2022, section 4.1)."""
ADAPTER_BYTES = 16
"""Per adapter parameter: fp32 weight, gradient and two AdamW moments."""
CONTEXT_GIB = 0.75
"""CUDA context, kernels and communication buffers."""
USABLE_MEMORY = 0.9
"""Share of the memory as sold that allocations reach before fragmentation and the driver's share stop them."""

_GIB = 2**30
_MIB_PER_GIB = 1024


def stage_layers(num_layers: int, num_stages: int) -> list[int]:
    """Return the layers of every stage: as even as can be, the larger stages first, since the last one has the head."""
    base, extra = divmod(num_layers, num_stages)
    return [base + (s < extra) for s in range(num_stages)]


def layer_forward_time(spec: BackboneSpec, gpu_spec: GpuSpec, tokens: int, seqlen: int) -> float:
    """Return the forward time of one decoder layer, seconds.

    The largest of three: arithmetic, `(2 P T + 2 T S h) / (efficiency x peak)`, where P is the layer's parameters and
    `2 T S h` the two products of causal attention (`4 T S h`, half of it masked); memory traffic, weights and
    activations over the bandwidth; and the host's floor.

    Parameters
    ----------
    spec, gpu_spec
        Backbone and GPU.
    tokens
        Tokens of the micro-batch.
    seqlen
        Tokens of each of its sequences.
    """
    width = spec.num_heads * spec.head_dim
    flops = 2.0 * spec.layer_parameters * tokens + 2.0 * tokens * seqlen * width
    traffic = WEIGHT_BYTES * spec.layer_parameters + ACTIVATION_BYTES_PER_HIDDEN * spec.hidden * tokens
    return max(_compute_time(flops, gpu_spec), _traffic_time(traffic, gpu_spec), LAYER_FLOOR_S)


def head_time(spec: BackboneSpec, gpu_spec: GpuSpec, tokens: int) -> float:
    """Return the forward and backward time of head and loss, seconds.

    Arithmetic `4 V h T` (forward and the gradient of the inputs: the head is frozen and not recomputed) or reading the
    head's weights twice, whichever is longer, then the loss's passes over the logits, which are bound by bandwidth.
    """
    product = _compute_time(4.0 * spec.embedding_parameters * tokens, gpu_spec)
    weights = _traffic_time(2.0 * WEIGHT_BYTES * spec.embedding_parameters, gpu_spec)
    return max(product, weights) + _traffic_time(LOSS_PASSES * 4.0 * spec.vocab * tokens, gpu_spec)


def slot_time(spec: BackboneSpec, gpu_spec: GpuSpec, num_stages: int, tokens: int, seqlen: int) -> float:
    """Return forward and backward of one micro-batch on the slowest stage, seconds.

    Layers take 3 forwards' worth: the forward, its recomputation and the gradient of the inputs. Frozen weights need no
    gradient, and the adapters' own is below 1%. The first stage may have one layer more, the last one has the head.
    """
    layer = (1 + BACKWARD_OVER_FORWARD) * layer_forward_time(spec, gpu_spec, tokens, seqlen)
    layers = stage_layers(spec.num_layers, num_stages)
    return max(layers[0] * layer, layers[-1] * layer + head_time(spec, gpu_spec, tokens))


def peak_memory_gib(spec: BackboneSpec, num_stages: int, tokens: int, held_micro_batches: int, rank: int) -> float:
    """Return the memory of the fullest stage, GiB.

    Weights of the stage's layers, embedding on the first stage and head on the last (one table if tied), one adapter on
    the attention projections with its optimizer state; per token of the running micro-batch the logits on the last
    stage or the recomputed layer, whichever is more; per token held the input of every layer in bf16.

    Parameters
    ----------
    spec
        Backbone.
    num_stages
        Pipeline stages, one GPU each.
    tokens
        Tokens of one micro-batch.
    held_micro_batches
        Micro-batches forwarded and not yet backwarded, the running one included.
    rank
        LoRA rank.
    """
    layers = stage_layers(spec.num_layers, num_stages)
    table = spec.embedding_parameters
    recomputed = RECOMPUTED_BYTES_PER_HIDDEN * spec.hidden
    last_working = max(LOGIT_BYTES * spec.vocab, recomputed)

    def stage(count: int, tables: int, working: float) -> float:
        weights = WEIGHT_BYTES * (count * spec.layer_parameters + tables * table)
        adapter = ADAPTER_BYTES * count * _adapter_parameters(spec, rank)
        held = WEIGHT_BYTES * spec.hidden * count * held_micro_batches
        return CONTEXT_GIB + (weights + adapter + (working + held) * tokens) / _GIB

    if num_stages == 1:
        return stage(layers[0], 1 if spec.tied_embeddings else 2, last_working)
    return max(stage(layers[0], 1, recomputed), stage(layers[-1], 1, last_working))


def analytic_table(
    backbone: str,
    gpu: str,
    spec: BackboneSpec,
    gpu_spec: GpuSpec,
    pp_sizes: Sequence[int],
    *,
    micro_batch_sizes: Sequence[int] = MICRO_BATCH_SIZES,
    sequence_lengths: Sequence[int] = SEQUENCE_LENGTHS,
    global_batch_sizes: Sequence[int] = GLOBAL_BATCH_SIZES,
    rank: int = 16,
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

    Returns
    -------
    pd.DataFrame
        `SEED_COLUMNS`, then `gpu`, `source` and `num_layers`. `max_steps` and `num_samples` are 0: nothing was run.
    """
    rows: list[dict[str, Any]] = []
    limit_gib = USABLE_MEMORY * gpu_spec.memory_gib
    for pp_size in pp_sizes:
        if not 1 <= pp_size <= spec.num_layers:
            raise ValueError(f"pp_size {pp_size} of {backbone}: give 1 to its {spec.num_layers} layers")
        for micro in micro_batch_sizes:
            for global_batch in (b for b in global_batch_sizes if b % micro == 0):
                for seqlen in sequence_lengths:
                    steps, tokens = global_batch // micro, micro * seqlen
                    memory = peak_memory_gib(spec, pp_size, tokens, steps if pp_size > 1 else 1, rank)
                    seconds = (steps + pp_size - 1) * slot_time(spec, gpu_spec, pp_size, tokens, seqlen)
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


def _adapter_parameters(spec: BackboneSpec, rank: int) -> int:
    kv = spec.num_kv_heads * spec.head_dim
    return rank * (2 * (spec.hidden + spec.hidden) + 2 * (spec.hidden + kv))


def _compute_time(flops: float, gpu_spec: GpuSpec) -> float:
    return flops / (COMPUTE_EFFICIENCY * gpu_spec.bf16_tflops * 1e12)


def _traffic_time(count_bytes: float, gpu_spec: GpuSpec) -> float:
    return count_bytes / (gpu_spec.bandwidth_gb_s * 1e9)
