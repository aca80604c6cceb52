"""How close an engine comes to its GPU's data sheet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """How software falls short of a data sheet: the same for every backbone and GPU."""

    compute_share: float
    """Share of the peak that matrix products reach."""
    elementwise_bytes: float
    """Memory traffic of a layer's forward besides its weights (norms, rotary embedding, residuals, gate, the adapters'
    dropout, products and additions), bytes per token and unit of hidden width, in 16 bit."""
    overlapped: bool
    """Whether traffic hides behind arithmetic; else element-wise kernels run after the products."""
    layer_floor_s: float
    """Least forward time of one layer, seconds, however few the tokens: the host dispatches a layer's modules, hooks
    and some hundred kernels one by one; a faster GPU hardly helps."""
    logit_bytes: float
    """Per token and vocabulary entry alive at once."""
    context_gib: float
    """Memory of a GPU that no tensor accounts for: context, kernels, communication buffers."""
    one_f_one_b: bool
    """Whether a stage holds the inputs of its layers for no more micro-batches than there are stages from it on;
    else for all of a step."""
    boundary_tensors: float
    """Activations at a stage's boundary (h a token) that every micro-batch leaves until the step ends, where g > 1."""
    usable_memory: float
    """Share of the memory as sold that the peak reaches before fragmentation and the driver's share stop it."""


PUBLISHED = Efficiency(
    compute_share=0.45,
    elementwise_bytes=60,
    overlapped=True,
    layer_floor_s=4e-3,
    logit_bytes=12,
    context_gib=0.75,
    one_f_one_b=False,
    boundary_tensors=0,
    usable_memory=0.9,
)
"""Published figures and counts, none fitted. Published training runs report 40% to 59% of the bf16 peak (MosaicML
llm-foundry's benchmarks, 7B to 70B on H100 with recomputation at 1k to 8k tokens); eager LoRA runs on A100 hosts take
3.3 to 5.2 ms a layer; logits, softmax and gradient in fp32 are 12 bytes. The tables of the shipped instances are made
with these, since the best known of an instance belongs to its table: see `CALIBRATED` for anything else."""

CALIBRATED = Efficiency(
    compute_share=0.470,
    elementwise_bytes=301,
    overlapped=False,
    layer_floor_s=4.30e-3,
    logit_bytes=11.7,
    context_gib=0.0,
    one_f_one_b=True,
    boundary_tensors=3.97,
    usable_memory=0.812,
)
"""Fitted to the measured A100 table by `cappuccino.analytic.calibration`."""

MEASURED_GPU = "a100-40gb"
"""GPU type of the table behind `CALIBRATED` and its errors."""
STATED_TIME_ERROR = 0.188
"""Mean absolute relative error of the step times of `CALIBRATED` on the measured rows."""
STATED_TIME_ERROR_LEFT_OUT = 0.227
"""Likewise, each backbone predicted by a calibration on the other: what to expect of a backbone never measured."""
STATED_MEMORY_ERROR = 0.016
"""Mean absolute relative error of the peak memory of `CALIBRATED` on the measured rows."""
STATED_MEMORY_ERROR_LEFT_OUT = 0.016
"""Likewise, each backbone predicted by a calibration on the other."""
