"""Memory of a pipeline stage: what stands there, what micro-batches take, and what adapters take.

Legend: T tokens of a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cappuccino.backbone import STATE_BYTES
from cappuccino.costs.adapters import AdapterSize
from cappuccino.plan import Recompute

Floats = NDArray[np.float64]
MOST_TOKENS = 2**40
"""Of a micro-batch, where memory sets no limit."""


@dataclass(frozen=True)
class MemoryModel:
    """Memory of the fullest stage: `static + working x T running + held x tokens forwarded, not yet backwarded`."""

    static_gib: float
    working_gib: float
    """Per token of the running micro-batch."""
    held_gib: float
    """Per token in flight, the running micro-batch included."""
    most: int = MOST_TOKENS
    """Largest micro-batch to plan, tokens, whatever memory would hold."""

    def beside(self, adapters_gib: float, masks_gib: float = 0.0) -> "MemoryModel":
        """Return the memory of a stage that holds adapters of this size besides, and masks of every token, GiB."""
        return replace(self, static_gib=self.static_gib + adapters_gib, held_gib=self.held_gib + masks_gib)

    def peak(self, running_tokens: ArrayLike, held_tokens: ArrayLike) -> Floats:
        """Return the memory at a moment, GiB."""
        running, held = np.asarray(running_tokens, dtype=float), np.asarray(held_tokens, dtype=float)
        return self.static_gib + self.working_gib * running + self.held_gib * held

    def max_tokens(self, limit_gib: float) -> int:
        """Return the largest micro-batch that fits on its own, tokens; 0 when none does."""
        return int(self.most_tokens(limit_gib, 0.0))

    def most_tokens(self, limit_gib: float, adapters_gib: ArrayLike, masks_gib: ArrayLike = 0.0) -> NDArray[np.int64]:
        """Return the largest micro-batches that fit beside adapters and with masks that take this much, tokens."""
        slope = self.working_gib + self.held_gib + np.asarray(masks_gib, dtype=float)
        room, slope = np.broadcast_arrays(limit_gib - (self.static_gib + np.asarray(adapters_gib, dtype=float)), slope)
        tokens = np.divide(room, slope, out=np.full(room.shape, np.inf), where=slope > 0)
        # a hair more, or 0.3 GiB at 0.1 a token would be 2 tokens
        return np.where(room > 0, np.minimum(tokens * (1 + 1e-9), self.most), 0).astype(np.int64)


@dataclass(frozen=True)
class KeptMemory:
    """What parts of stages take of the memory."""

    layer_gib: float
    """Weights of a decoder layer."""
    layer_token_gib: float
    """What the forward of a decoder layer keeps of a token."""
    head_token_gib: float
    """What head and loss keep of it, on the last stage."""

    def held_gib(self, layers: Sequence[int]) -> float:
        """Return what the fullest stage keeps of a token between its forward and its backward."""
        return max(max(layers) * self.layer_token_gib, layers[-1] * self.layer_token_gib + self.head_token_gib)

    def moved(self, memory: MemoryModel, profiled: Sequence[int], layers: Sequence[int]) -> MemoryModel:
        """Return the memory with other layers by stage than it was profiled with; never less of it stands there."""
        more = max(0, max(layers) - max(profiled)) * self.layer_gib
        held = max(0.0, memory.held_gib + self.held_gib(layers) - self.held_gib(profiled))
        return replace(memory, static_gib=memory.static_gib + more, held_gib=held)


def adapter_memory_gib(size: AdapterSize, layers: int, dtype: str | None) -> float:
    """Return what an adapter takes on so many layers while it is trained, GiB.

    Parameters
    ----------
    dtype
        Of the backbone's weights; only 64 bit makes a difference.
    """
    return (2 if dtype == "float64" else 1) * STATE_BYTES * size.parameters * layers / 2**30


def mask_memory_gib(size: AdapterSize, layers: int, recompute: Recompute | None) -> float:
    """Return what the dropout masks of a token in flight take on so many layers, GiB: a byte a value.

    With recomputation there are those of one layer at a time.
    """
    return size.dropped * (min(layers, 1) if recompute is Recompute.FULL else layers) / 2**30
