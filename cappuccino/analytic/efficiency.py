"""How close an engine comes to its GPU's data sheet, and what it launches; predicted against measured.

What belongs to a GPU, arithmetic, bandwidth and link, is in its data sheet; an `Efficiency` says which share an engine
reaches, what its kernels move, and how many it launches. `FUSED` is a fast engine, `EAGER` a slow one, whose host takes
fifty microseconds a kernel: up to a thousand tokens and more its micro-batches take what the launches take, on any GPU.

Predicted against measured (mean absolute error, median ratio, worst factor). Of `EAGER` there are 94 rows of Llama-2-7b
and 59 of Qwen2.5-32B on A100-40GB, every layer recomputed:

    EAGER                   step time               peak memory
    all rows                17.8%  1.01  1.48       1.6%  1.00  1.17
    Llama-2-7b              18.6%  0.99  1.46       0.7%  1.00  1.08
    Qwen2.5-32B             16.6%  1.09  1.48       2.9%  1.00  1.17
    calibrated on the other backbone
    all rows                21.0%  0.99  1.54       1.6%  1.00  1.17
    Llama-2-7b              20.6%  0.97  1.53       0.8%  1.00  1.08
    Qwen2.5-32B             21.7%  1.12  1.54       2.9%  1.00  1.17
    not calibrated on any A100
    all rows                18.0%  1.03  1.50       1.7%  1.01  1.17
    PUBLISHED
    all rows                21.0%  0.84  1.79      11.7%  1.07  1.61

Of `FUSED` there are, for Llama-3.1-8B and for Qwen2.5-32B, the times of a layer forward, backward and of embedding and
head at 512 to 8,192 tokens on an H100, nothing recomputed. They give the times of stages that pipelines of 1, 2 and 4
stages have, without and with the head:

    FUSED                   layer and head          stages
    both                    3.7%  1.01  1.19        3.0%  1.01  1.07
    Llama-3.1-8B            3.6%  0.99  1.19        1.6%  1.01  1.05
    Qwen2.5-32B             3.9%  1.03  1.10        4.4%  1.03  1.07
    calibrated on the other backbone
    both                    4.6%  1.01  1.20        3.7%  1.00  1.08
    Llama-3.1-8B            3.8%  0.98  1.20        1.4%  1.00  1.06
    Qwen2.5-32B             5.4%  1.05  1.12        6.0%  1.06  1.08
    not calibrated on any H100
    both                    4.6%  1.03  1.16        4.3%  1.03  1.08

Each engine was measured on one GPU alone. Without that GPU, its shares are those that the other engine shows on the
other GPU, and the rest is counted. Left out are values, not the form of the model, which was chosen with both tables in
view; and two backbones cannot show what a third reaches. Not measured at all: the memory of `FUSED`, memory and times
of `EAGER` without recomputation, launches of `FUSED` (below 512 tokens its times are counted), adapters of other ranks,
and other GPUs. The file of the H100 says neither the length of its sequences nor the adapters: taken are sequences of
512 tokens, since a token takes no longer in micro-batches of 8,192, and rank 16 on all linear modules. Calibrated with
one sequence a micro-batch, or with adapters on attention alone, stages of the backbone left out are off by 6.0% or 5.6%
in the mean and by a factor of 1.16 or 1.13 at worst.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BackwardOverForward:
    """What a layer's backward has for one of its forward; frozen weights need no gradient, so products are as many."""

    attention: float
    """Arithmetic of attention: five products for two, the scores again and four gradients."""
    traffic: float
    """Bytes of kernels that are bound by bandwidth: they read what the forward read and a gradient, and write one."""
    launches: float
    """Kernels: adapters have four products for two, frozen modules one for one."""


@dataclass(frozen=True)
class Efficiency:
    """An engine: which shares of a data sheet it reaches and what it launches, the same for every backbone and GPU."""

    name: str
    compute_share: float
    """Share of the peak that matrix products reach."""
    bandwidth_share: float
    """Share of the bandwidth that all other kernels reach."""
    kernel_s: float
    """What a kernel takes of the GPU besides its work, seconds: to start, and until its last block is done."""
    launch_s: float
    """What the host takes for a launch, seconds; launches run ahead of the GPU, and the longer of the two counts."""
    layer_launches: int
    """Kernels of a decoder layer's forward."""
    module_launches: int
    """Further ones for every module with an adapter."""
    elementwise_bytes: float
    """Memory traffic of a layer's forward besides its weights, gate and adapters (norms, rotary embedding, attention,
    residuals), bytes per token and unit of hidden width, in 16 bit, as all traffic here."""
    gate_bytes: float
    """Traffic of the gate, bytes per token and unit of intermediate width."""
    adapter_bytes: float
    """Traffic of an adapter (dropout, products, addition), bytes per token and unit of its modules' in- and output
    widths. Its arithmetic hides behind it: at rank r there are less than r operations a byte, and a GPU does some
    hundred and fifty in the time."""
    embedding_bytes: float
    """Traffic of the embedding, bytes per token and unit of hidden width."""
    backward: BackwardOverForward
    overlapped: bool
    """Whether traffic hides behind arithmetic; else element-wise kernels run after the products."""
    logit_bytes: float
    """Memory per token and vocabulary entry alive at once."""
    context_gib: float
    """Memory of a GPU that no tensor accounts for: context, kernels, communication buffers."""
    one_f_one_b: bool
    """Whether a stage holds activations for no more micro-batches than there are stages from it on; else for all of a
    step."""
    boundary_tensors: float
    """Activations at a stage's boundary (h a token) that every micro-batch leaves until the step ends, where g > 1."""
    usable_memory: float
    """Share of the memory as sold that the peak reaches before fragmentation and the driver's share stop it."""


PUBLISHED = Efficiency(
    name="published",
    compute_share=0.45,
    bandwidth_share=1.0,
    kernel_s=0.0,
    launch_s=4e-3,
    layer_launches=1,
    module_launches=0,
    elementwise_bytes=60,
    gate_bytes=0,
    adapter_bytes=0,
    embedding_bytes=0,
    backward=BackwardOverForward(attention=1, traffic=1, launches=1),
    overlapped=True,
    logit_bytes=12,
    context_gib=0.75,
    one_f_one_b=False,
    boundary_tensors=0,
    usable_memory=0.9,
)
"""Published figures and counts, none fitted. Published training runs report 40% to 59% of the bf16 peak (MosaicML
llm-foundry's benchmarks, 7B to 70B on H100 with recomputation at 1k to 8k tokens); eager LoRA runs on A100 hosts take
3.3 to 5.2 ms a layer, taken as one launch; logits, softmax and gradient in fp32 are 12 bytes. The tables of the shipped
instances are made with these, since the best known of an instance belongs to its table: see `ENGINES` for the rest."""

COUNTED_EAGER = Efficiency(
    name="eager",
    compute_share=0.5,
    bandwidth_share=0.85,
    kernel_s=4e-6,
    launch_s=50e-6,
    layer_launches=45,
    module_launches=10,
    elementwise_bytes=120,
    gate_bytes=10,
    adapter_bytes=19,
    embedding_bytes=4,
    backward=BackwardOverForward(attention=2.5, traffic=2, launches=1.5),
    overlapped=False,
    logit_bytes=12,
    context_gib=0.0,
    one_f_one_b=True,
    boundary_tensors=4,
    usable_memory=0.9,
)
"""Where a calibration of `EAGER` starts and what it stays near. Half of the peak is the middle of what is published;
85% of the bandwidth and 4 microseconds are usual for element-wise kernels; 4.25 ms, the middle of what is published
for a layer, are 50 microseconds for each of its 45 kernels (seven products, twelve of two norms, ten of the rotary
embedding, six of attention, two of the gate, two residuals, six casts and copies) and the 10 of each of four adapters
(casts, dropout, two products, scaling, addition). Bytes: two norms in fp32 70, rotary embedding 40, residuals 10; the
gate 10; an adapter's dropout, casts, scaling and addition in fp32 19. The peak that PyTorch reports leaves the context
out. A boundary has an input and an output, and a gradient of each."""

COUNTED_FUSED = replace(
    COUNTED_EAGER,
    name="fused",
    launch_s=10e-6,
    layer_launches=20,
    module_launches=3,
    elementwise_bytes=30,
    gate_bytes=6,
    adapter_bytes=3,
    boundary_tensors=0,
)
"""Likewise for `FUSED`. PyTorch takes about 10 microseconds to launch a kernel from Python. A layer has seven products,
two norms with the residual in them, rotary embedding 2, attention 1, the gate 1, and some seven copies and views; an
adapter adds dropout with its first product, its second, and the addition. Bytes: norms and residuals 16, rotary
embedding 5, attention 5, copies 4; the gate reads two values and writes one; an adapter reads its input and writes it
dropped, with a mask, in the kernel of its first product, 5 of an input value, and is added where the module's output is
written, some 1 of an output value: 3 in the mean. Nothing stays at a boundary."""

EAGER = replace(
    COUNTED_EAGER,
    compute_share=0.537,
    bandwidth_share=0.859,
    kernel_s=3.99e-6,
    launch_s=48.7e-6,
    logit_bytes=11.7,
    boundary_tensors=3.97,
    usable_memory=0.812,
)
"""Fitted to step times and peaks of an A100-40GB table by `cappuccino.analytic.calibration`: adapters on q, k, v and o,
every layer recomputed."""

FUSED = replace(
    COUNTED_FUSED,
    compute_share=0.551,
    bandwidth_share=0.875,
    kernel_s=4.09e-6,
    usable_memory=EAGER.usable_memory,
)
"""Fitted likewise to times of a decoder layer, and of embedding with head, on an H100: nothing recomputed. They lie
above what the host takes for its launches, which stays as counted. No memory was measured: it is counted, and its
usable share is that of `EAGER`."""

ENGINES: Mapping[str, Efficiency] = {engine.name: engine for engine in (FUSED, EAGER)}
COUNTED: Mapping[str, Efficiency] = {engine.name: engine for engine in (COUNTED_FUSED, COUNTED_EAGER)}


@dataclass(frozen=True)
class StatedErrors:
    """Mean absolute relative errors of an engine's estimates, fractions; None where nobody knows."""

    measured: str
    """Which times were measured."""
    gpus: tuple[str, ...]
    """On which GPUs."""
    time: float
    """On all that the engine was fitted to."""
    time_left_out: float | None
    """Each backbone predicted by a calibration on the other: what to expect of a backbone never measured."""
    time_gpu_left_out: float | None
    """The GPU predicted without any measurement on it: `cappuccino.analytic.calibration.carried_over`."""
    memory: float | None = None
    memory_left_out: float | None = None


STATED: Mapping[str, StatedErrors] = {
    "fused": StatedErrors("times of layers and head", ("h100-80gb",), 0.037, 0.046, 0.046),
    "eager": StatedErrors("step times", ("a100-40gb",), 0.178, 0.210, 0.180, 0.016, 0.016),
}
"""By engine; all figures are in the module's docstring."""
