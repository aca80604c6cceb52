"""A linear layer that adds to every row what that row's own LoRA adapter says."""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear

from cappuccino.runtime.lora.sample_dropout import SampleDropout
from cappuccino.runtime.lora.segment import Segment


def slot(adapter: int) -> str:
    """Return PEFT's name for the adapter at a position of the replica.

    Users' names may equal the name of a module ("q_proj") or of a method ("train"), which PEFT would confuse.
    """
    return f"slot{adapter}"


class RoutedLinear(LoraLinear):
    """PEFT's LoRA layer with one set of parameters per adapter and rows routed by segments.

    `segments` says which rows of the next input belong to whom; whoever runs the layer sets it first.
    """

    segments: tuple[Segment, ...] | None = None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output with every row's adapter applied.

        Parameters
        ----------
        x
            Shape (..., rows, in_features).
        *args, **kwargs
            Handed to the layer underneath.
        """
        if self.segments is None:
            raise RuntimeError("a routed layer runs only after its segments were set")
        result = self.base_layer(x, *args, **kwargs)
        if not any(slot(s.adapter) in self.lora_A for s in self.segments):
            return result
        rows = [s.end - s.start for s in self.segments]
        pieces = zip(self.segments, x.split(rows, dim=-2), result.split(rows, dim=-2), strict=True)
        return torch.cat([self._adapted(*piece) for piece in pieces], dim=-2)

    def _adapted(self, segment: Segment, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        name = slot(segment.adapter)
        if name not in self.lora_A:
            return outputs
        down, up, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        inputs = self._cast_input_dtype(inputs, down.weight.dtype)
        scaling = self.scaling[name]
        if isinstance(dropout, SampleDropout):
            low = dropout(inputs, down.weight, segment)
            scaling = scaling * dropout.scale
        else:
            low = down(inputs)
        return (outputs + up(low) * scaling).to(outputs.dtype)
