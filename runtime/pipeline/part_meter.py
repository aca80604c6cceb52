"""What the parts of a stage's operations take: input, decoder layers, head and loss, by time and by bytes held."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from cappuccino.runtime.pipeline.clock import DeviceClock
from cappuccino.runtime.pipeline.part_costs import Part, PartCost


class PartMeter:
    """Measures the parts of operations as they run.

    Parameters
    ----------
    device
        Where the stage runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = DeviceClock.of(device)
        self._marks: list[tuple[str, int, Part | None, int | None]] = []
        self._held: int | None = None

    def begin(self, kind: Literal["F", "B"], micro_batch: int) -> None:
        """Note that an operation begins."""
        self._clock.mark()
        self._marks.append((kind, micro_batch, None, None))

    def mark(self, part: Part) -> None:
        """Note that a part of the operation that began last is done."""
        self._clock.mark()
        kind, micro_batch, *_ = self._marks[-1]
        self._marks.append((kind, micro_batch, part, self._held))
        if self._held is not None:
            self._held = 0

    def mark_gradient(self, tensor: torch.Tensor, part: Part) -> None:
        """Note, once the gradient of a tensor is there, that a part of the backward is done."""
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.mark(part))  # type: ignore[no-untyped-call]

    @contextmanager
    def weighed(self, model: nn.Module) -> Iterator[None]:
        """Count what the forward inside the context keeps for the backward; this slows it down."""
        seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._held = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                self._held = (self._held or 0) + storage.nbytes()
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                yield
        finally:
            self._held = None

    @property
    def num_marks(self) -> int:
        """Begins of operations and ends of parts so far."""
        return len(self._marks)

    def costs(self, first: int = 0) -> tuple[PartCost, ...]:
        """Return the parts measured so far, in their order.

        Parameters
        ----------
        first
            Marks that are left out: those before this one, which is the begin of an operation.
        """
        times = self._clock.times(first)
        return tuple(
            PartCost(kind=kind, micro_batch=m, part=part, seconds=times[i] - times[i - 1], held_bytes=held)  # type: ignore[arg-type]
            for i, (kind, m, part, held) in enumerate(self._marks[first:])
            if part is not None
        )
