"""Memory of the fullest stage: weights, adapter, what the running micro-batch needs and what is kept of all others.

Legend: h hidden width, I intermediate width, q and k widths of all query and of all key heads, g stages.
"""

from collections.abc import Sequence

from cappuccino.analytic.catalogue import DTYPES
from cappuccino.analytic.efficiency import Efficiency
from cappuccino.backbone import STATE_BYTES, BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.plan import Recompute

RECOMPUTED_BYTES_PER_HIDDEN = 34
"""Activations of the one layer that is being recomputed, bytes per token and unit of hidden width in 16 bit, attention
scores not kept (Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models, 2022, section
4.1)."""
_GIB = 2**30


def kept_values(spec: BackboneShape, recompute: Recompute) -> int:
    """Return the values that a layer's forward keeps for its backward, per token.

    Recomputed, its input. Otherwise, with frozen weights and adapters on all linear modules: in- and output of both
    norms (4 h; the outputs are the inputs of adapters), queries, keys and values and the output of flash attention
    (2 q + 2 k), and the gate's two inputs and its product (3 I). Not among them are outputs of frozen modules that no
    kernel reads again, what grows with the rank (below 1%), and masks of dropout, which are charged by themselves.
    Adapters on attention alone need h + I fewer, an engine that stores dropped inputs more.
    """
    if recompute == Recompute.FULL:
        return spec.hidden
    return 4 * spec.hidden + 2 * spec.query_width + 2 * spec.kv_width + 3 * spec.intermediate


def working_values(spec: BackboneShape, recompute: Recompute) -> float:
    """Return the values that the backward of a layer needs besides, per token.

    Recomputed, all its activations; otherwise gradients of the gate's three tensors and of the layer's in- and output.
    """
    if recompute == Recompute.FULL:
        return RECOMPUTED_BYTES_PER_HIDDEN / 2 * spec.hidden
    return 2 * spec.hidden + 3 * spec.intermediate


def held_micro_batches(num_stages: int, micro_batches: int, efficiency: Efficiency) -> int:
    """Return the micro-batches of a step that keep memory at once on the first stage."""
    if num_stages == 1:
        return 1
    leaves = efficiency.boundary_tensors > 0 or not efficiency.one_f_one_b
    return micro_batches if leaves else min(micro_batches, num_stages)


def peak_memory_gib(
    spec: BackboneShape,
    layers: Sequence[int],
    tokens: int,
    held: int,
    adapter: AdapterSize,
    efficiency: Efficiency,
    *,
    recompute: Recompute = Recompute.NONE,
    dtype: str = "bfloat16",
) -> float:
    """Return the memory of the fullest stage, GiB.

    Weights of the stage's layers, embedding on the first stage and head on the last (one table if tied), one adapter
    with its optimizer state; per token of the running micro-batch the logits on the last stage or what a layer's
    backward needs, whichever is more; per token held what every layer keeps, and what the stage's boundary keeps.

    Parameters
    ----------
    spec
        Backbone.
    layers
        By stage, one GPU each.
    tokens
        Tokens of one micro-batch.
    held
        Micro-batches forwarded and not yet backwarded, the running one included; under `one_f_one_b`, those of a step.
    adapter
        Its size in a decoder layer.
    efficiency
        Of the engine.
    recompute
        Of the activations, for the backward.
    dtype
        Type of computation, one of `cappuccino.analytic.catalogue.DTYPES`.
    """
    width, num_stages = DTYPES[dtype], len(layers)
    kept, working = kept_values(spec, recompute), width * working_values(spec, recompute)
    boundary = efficiency.boundary_tensors * held * spec.hidden if num_stages > 1 else 0.0

    def stage(position: int, count: int) -> float:
        last = position == num_stages - 1
        tables = (position == 0) + last
        if num_stages == 1 and spec.tied_embeddings:
            tables = 1
        weights = width * (count * spec.layer_parameters + tables * spec.embedding_parameters)
        state = STATE_BYTES * count * adapter.parameters
        running = max(efficiency.logit_bytes * spec.vocab, working) if last else working
        deep = min(held, num_stages - position) if efficiency.one_f_one_b else held
        return (
            efficiency.context_gib
            + (weights + state + (running + width * (count * deep * kept + boundary)) * tokens) / _GIB
        )

    return max(stage(position, count) for position, count in enumerate(layers))
