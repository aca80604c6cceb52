"""What costs depend on of adapters, and what a micro-batch holds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cappuccino.costs.memory import Floats, MemoryModel


@dataclass(frozen=True)
class AdapterCosts:
    """All that times, memory and bounds depend on of adapters, beside their samples; arrays by adapter.

    Whatever else comes to depend on an adapter's settings gets a field here: adapters are told apart by all of them.
    """

    forward_floor: Floats
    """Added to the first curve of stages for every micro-batch that the adapter is in, seconds."""
    forward_work: Floats
    """Added there for every token of the adapter, likewise."""
    backward_floor: Floats
    backward_work: Floats
    clipped: NDArray[np.bool_]
    """Whether the adapter's optimizer step waits for the gradient norm of all stages."""
    memory_gib: Floats
    """Weights, gradients and moments on the stage with the most layers, GiB, as long as the replica runs."""
    masks_gib: Floats
    """Dropout masks there of a token in flight, GiB."""

    def beside(self, memory: MemoryModel) -> MemoryModel:
        """Return the memory of a stage with all these adapters; every token counts as one of the most dropout."""
        return memory.beside(float(self.memory_gib.sum()), float(self.masks_gib.max(initial=0.0)))

    @property
    def differ(self) -> bool:
        """Whether adapters add any time that the curves do not have in them."""
        return any(x.any() for x in (self.forward_floor, self.forward_work, self.backward_floor, self.backward_work))

    def by_adapter(self) -> Floats:
        """Return every number there is of an adapter, shape (adapters, fields): those with equal rows cost alike."""
        return np.stack([np.asarray(getattr(self, f.name), dtype=float) for f in fields(self)], axis=1)

    def of_micro_batch(self, adapters: Sequence[int], lengths: Sequence[int], *, padded: bool) -> Floats:
        """Return what the adapters of a micro-batch add: forward floor and work, backward floor and work, seconds.

        Parameters
        ----------
        adapters, lengths
            Of its samples. In the padded layout the padding of an adapter's samples counts as its own.
        """
        members, tokens = np.array(adapters), np.array(lengths, dtype=float)
        if padded:
            tokens[:] = tokens.max()
        present = np.unique(members)
        return np.array(
            [
                self.forward_floor[present].sum(),
                self.forward_work[members] @ tokens,
                self.backward_floor[present].sum(),
                self.backward_work[members] @ tokens,
            ]
        )


def micro_batch_shape(lengths: Sequence[int], layout: str) -> tuple[int, int]:
    """Return tokens and sum of squared lengths of a micro-batch of samples with these lengths.

    In the padded layout every sample counts as long as the longest.
    """
    if layout == "padded":
        longest = max(lengths)
        return len(lengths) * longest, len(lengths) * longest * longest
    return sum(lengths), sum(n * n for n in lengths)
