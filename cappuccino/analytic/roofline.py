"""Times from data sheets: a roofline estimate of a decoder layer, head, loss and stages.

A GPU's data sheet gives arithmetic, bandwidth and link; an engine (`cappuccino.analytic.efficiency`) says which share
of them it reaches, what its kernels move and how many it launches. The docstring there states the errors.

Legend: P parameters of a layer, T tokens of a micro-batch, S sequence length, h hidden width, V vocabulary, g stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from cappuccino.analytic.catalogue import DTYPES, GpuSpec
from cappuccino.analytic.efficiency import Efficiency
from cappuccino.backbone import BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.stages import balanced_layers
from cappuccino.plan import Recompute, even_layers

LOSS_PASSES = (4, 2)
"""Passes over the fp32 logits: cast, maximum, exponent, sum in the forward of the loss; gradient, cast in its
backward."""
LINK_LATENCY_S = 20e-6
"""Of a transfer besides its bytes: NCCL starts a kernel on either side, and both have to have met; small messages
between two GPUs of a node take 10 to 30 microseconds."""


@dataclass(frozen=True)
class PartTimes:
    """Times of one micro-batch's parts, seconds; the fields are the columns of a cost table, less `_time_s`."""

    input_forward: float
    """Embedding; every stage is charged for it."""
    layer_forward: float
    """One decoder layer, adapter included."""
    layer_backward: float
    """Likewise, with what is computed again."""
    head_forward: float
    head_backward: float
    loss_forward: float
    loss_backward: float

    @property
    def layer(self) -> float:
        """Forward and backward of one layer."""
        return self.layer_forward + self.layer_backward

    @property
    def head(self) -> float:
        """Forward and backward of head and loss."""
        return self.head_forward + self.head_backward + self.loss_forward + self.loss_backward

    def columns(self) -> dict[str, float]:
        """Return the times by column of a cost table."""
        return {f"{field.name}_time_s": getattr(self, field.name) for field in fields(self)}

    def stage(self, layers: Sequence[int]) -> tuple[float, float]:
        """Return forward and backward of the stage that takes longest.

        Parameters
        ----------
        layers
            By stage; the last one has head and loss besides.
        """
        last = len(layers) - 1
        times = [
            (
                self.input_forward + n * self.layer_forward + (s == last) * (self.head_forward + self.loss_forward),
                n * self.layer_backward + (s == last) * (self.head_backward + self.loss_backward),
            )
            for s, n in enumerate(layers)
        ]
        return max(times, key=sum)

    def split(self, num_layers: int, num_stages: int) -> tuple[int, ...]:
        """Return the layers by stage: even, or balanced where the slowest stage is then faster."""
        even = even_layers(num_layers, num_stages)
        balanced = balanced_layers(num_layers, self.layer, [0.0] * (num_stages - 1) + [self.head])
        return balanced if sum(self.stage(balanced)) < sum(self.stage(even)) else even


def part_times(
    spec: BackboneShape,
    gpu_spec: GpuSpec,
    tokens: int,
    seqlen: int,
    adapter: AdapterSize,
    efficiency: Efficiency,
    *,
    recompute: Recompute = Recompute.NONE,
    dtype: str = "bfloat16",
) -> PartTimes:
    """Return the times of one micro-batch's parts.

    Arithmetic of a layer is `2 P T`, and `2 T S w` for the two products of causal attention over the width w of its
    heads (`4 T S w`, half of it masked); its backward has as many products with frozen weights, which need no gradient.
    Products take the longer of arithmetic and reading the weights; the kernels between them are bound by bandwidth and
    come on top (or hide behind, `Efficiency.overlapped`), and every kernel starts and ends (`kernel_s`). The GPU waits
    for the host where launches take longer than all that.

    The head has `4 V h T` (forward and the gradient of its inputs: it is frozen and not recomputed) or the reading of
    its weights, whichever is longer, then the loss's passes over the logits.

    Parameters
    ----------
    spec, gpu_spec
        Backbone and GPU.
    tokens
        Tokens of the micro-batch.
    seqlen
        Tokens of each of its sequences.
    adapter
        The one that all of them are of.
    efficiency
        Of the engine.
    recompute
        Of the activations, for the backward.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.
    """
    width, backward = DTYPES[dtype], efficiency.backward

    def products(flops: float, weights: float) -> tuple[float, float]:
        arithmetic = flops / (efficiency.compute_share * gpu_spec.tflops(dtype) * 1e12)
        return arithmetic, traffic(width * weights)

    def traffic(count_bytes: float) -> float:
        return count_bytes / (efficiency.bandwidth_share * gpu_spec.bandwidth_gb_s * 1e9)

    moved = efficiency.elementwise_bytes * spec.hidden + efficiency.gate_bytes * spec.intermediate
    moved += efficiency.adapter_bytes * adapter.widths
    launches = efficiency.layer_launches + efficiency.module_launches * adapter.modules

    def layer(more_attention: float, more_traffic: float, more_launches: float) -> float:
        attention = more_attention * 2.0 * tokens * seqlen * spec.query_width
        arithmetic, weights = products(2.0 * spec.layer_parameters * tokens + attention, spec.layer_parameters)
        kernels = traffic(more_traffic * width / 2 * moved * tokens)
        work = max(arithmetic, weights + kernels) if efficiency.overlapped else max(arithmetic, weights) + kernels
        count = more_launches * launches
        return max(work + count * efficiency.kernel_s, count * efficiency.launch_s)

    forward = layer(1, 1, 1)
    again = forward if recompute == Recompute.FULL else 0.0
    head = max(products(2.0 * spec.embedding_parameters * tokens, spec.embedding_parameters))
    loss = [traffic(passes * 4.0 * spec.vocab * tokens) for passes in LOSS_PASSES]
    embedding = traffic(width / 2 * efficiency.embedding_bytes * spec.hidden * tokens) + efficiency.kernel_s
    gradient = layer(backward.attention, backward.traffic, backward.launches)
    return PartTimes(embedding, forward, again + gradient, head, head, *loss)


def transfer_time(
    spec: BackboneShape, gpu_spec: GpuSpec, num_stages: int, tokens: int, dtype: str = "bfloat16"
) -> float:
    """Return what a micro-batch takes from a stage to its neighbour, seconds; 0 where there is none."""
    if num_stages == 1:
        return 0.0
    return LINK_LATENCY_S + DTYPES[dtype] * spec.hidden * tokens / (gpu_spec.link_gb_s * 1e9)


def step_time(parts: PartTimes, layers: Sequence[int], micro_batches: int, transfer_s: float = 0.0) -> float:
    """Return the time of an optimizer step until all stages are empty again, seconds.

    `micro_batches + g - 1` times the slowest stage, and the links on the way of the first forward and the last
    backward; in between micro-batches are under way while stages compute.
    """
    behind = len(layers) - 1
    return (micro_batches + behind) * sum(parts.stage(layers)) + 2 * behind * transfer_s
