"""Dropout whose mask belongs to the sample, not to the place where the sample happens to run."""

import hashlib

import torch
from torch import nn

from cappuccino.runtime.lora.segment import Segment


class SampleDropout(nn.Module):
    """Drop the inputs of one adapter in one module.

    The mask is a function of seed, adapter, module, step and sample only, so that it does not change with the packing,
    the order of the program or the number of stages.

    Parameters
    ----------
    probability
        Of dropping a value, at least 0 and less than 1.
    seed
        The adapter's seed.
    adapter
        Name of the adapter.
    module
        Name of the module inside the backbone.
    """

    def __init__(self, probability: float, seed: int, adapter: str, module: str) -> None:
        super().__init__()
        self.probability = probability
        self.key = (seed, adapter, module)

    def forward(self, inputs: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Return `inputs` of shape (..., rows of the segment, features) with values dropped and the rest scaled up."""
        if not self.training or self.probability == 0:
            return inputs
        features = inputs.shape[-1]
        masks = [self._mask(segment.step, n, rows, features, inputs.device) for n, rows in segment.samples]
        return inputs * torch.cat(masks).to(inputs.dtype)

    def _mask(self, step: int, sample: int, rows: int, features: int, device: torch.device) -> torch.Tensor:
        digest = hashlib.blake2b(repr((*self.key, step, sample)).encode(), digest_size=7).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
        kept = torch.rand(rows, features, generator=generator, device=device) >= self.probability
        return kept / (1 - self.probability)
