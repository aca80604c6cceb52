"""Dropout whose mask belongs to the token, not to the place where the token happens to run.

Whether a value is dropped is a hash of seed, adapter, module, step, sample, position and feature. So masks change
neither with the packing, nor with the order of the program, the number of stages or the device, and those of all rows
of a segment are worked out at once. Rows get a seed of 64 bits (the finalizer of splitmix64: Steele, Lea and Flood
2014), which sets the start and the step of a sequence of 32-bit numbers; each is mixed (the constants of lowbias32:
Wellons 2018) and decides of two features.
"""

import hashlib
from functools import lru_cache

import torch
from torch import nn
from torch.nn.functional import linear

from cappuccino.runtime.lora.segment import Segment

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MULTIPLIERS = 0x7FEB352D, 0x846CA68B
_LEVELS = 2**16
"""How finely the probability of dropping is set: by half a number of 32 bits."""
_CACHED_VALUES = 2**16
"""Numbers that are mixed at a time on the CPU, so that they stay in its cache."""


class SampleDropout(nn.Module):
    """Drop the inputs of one adapter in one module.

    Parameters
    ----------
    probability
        Of dropping a value, at least 0 and less than 1; it is rounded to a multiple of 2^-16.
    seed
        The adapter's seed.
    adapter
        Name of the adapter.
    module
        Name of the module inside the backbone.
    """

    def __init__(self, probability: float, seed: int, adapter: str, module: str) -> None:
        super().__init__()
        self.threshold = 0 if probability == 0 else min(max(round(probability * _LEVELS), 1), _LEVELS - 1)
        self._scale = _LEVELS / (_LEVELS - self.threshold)
        self.key = _signed(int.from_bytes(_digest(seed, adapter, module), "little"), 64)

    @property
    def scale(self) -> float:
        """What makes up for the values dropped: whoever drops applies it later, where there is less to multiply."""
        return self._scale if self.training else 1.0

    def forward(self, inputs: torch.Tensor, weight: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Return the product of what is kept of the inputs and a weight, not scaled up yet.

        Parameters
        ----------
        inputs
            Shape (..., rows of the segment, features).
        weight
            Shape (rank, features).
        """
        if not self.training or not self.threshold:
            return linear(inputs, weight)
        rows = _row_seeds(segment.step, segment.samples, inputs.device)
        kept = _kept(_mixed64(rows ^ self.key), inputs.shape[-1], self.threshold)
        product: torch.Tensor = _MaskedLinear.apply(inputs, weight, kept)
        return product


class _MaskedLinear(torch.autograd.Function):
    """Product of masked inputs and a weight.

    The backward keeps the inputs, which the modules that read them share, and a byte of mask a value; what is left of
    the inputs would be a tensor for every module.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, inputs: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight, kept)
        return linear(inputs * kept, weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[no-untyped-def,override]
        inputs, weight, kept = ctx.saved_tensors
        of_weight = gradient.flatten(0, -2).T @ (inputs * kept).flatten(0, -2)
        return (gradient @ weight) * kept, of_weight, None


def _kept(seeds: torch.Tensor, features: int, threshold: int) -> torch.Tensor:
    """Return which values are kept, bool, shape (rows, features).

    Parameters
    ----------
    seeds
        By row, 64 bits.
    threshold
        Of `_LEVELS` equally likely levels, those that are dropped.
    """
    halves = seeds.view(torch.int32).view(-1, 2)
    start, step = halves[:, :1], halves[:, 1:] | 1
    counters = torch.arange(-(-features // 2), dtype=torch.int32, device=seeds.device)
    kept = torch.empty(len(seeds), 2 * len(counters), dtype=torch.bool, device=seeds.device)
    size = len(seeds) if seeds.device.type != "cpu" else max(1, _CACHED_VALUES // max(1, len(counters)))
    for begin in range(0, len(seeds), size):
        part = slice(begin, begin + size)
        levels = _mixed32((step[part] * counters).add_(start[part])).view(torch.int16)
        torch.ge(levels, threshold - _LEVELS // 2, out=kept[part])
    return kept[:, :features]


@lru_cache(maxsize=16)
def _row_seeds(step: int, samples: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    """Return a hash of step, sample and position by row, shape (rows,): the modules of a micro-batch share it."""
    numbers, lengths = (torch.tensor(x, device=device) for x in zip(*samples, strict=True))
    first = torch.cumsum(lengths, 0) - lengths
    position = torch.arange(int(lengths.sum()), device=device) - torch.repeat_interleave(first, lengths)
    of_step = _mixed64(torch.tensor([step + 1], device=device) * _signed(_GOLDEN, 64))
    of_sample = _mixed64((numbers + 1) * _signed(_GOLDEN, 64) + of_step)
    return _mixed64(torch.repeat_interleave(of_sample, lengths) + (position + 1) * _signed(_GOLDEN, 64))


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()


def _mixed64(values: torch.Tensor) -> torch.Tensor:
    """Return well mixed integers of 64 bits; the values are used up."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        values.bitwise_xor_(_shifted(values, shift, 64)).mul_(_signed(factor, 64))
    return values.bitwise_xor_(_shifted(values, 31, 64))


def _mixed32(values: torch.Tensor) -> torch.Tensor:
    """Return well mixed integers of 32 bits; the values are used up."""
    for shift, factor in zip((16, 15), _MULTIPLIERS, strict=True):
        values.bitwise_xor_(_shifted(values, shift, 32)).mul_(_signed(factor, 32))
    return values.bitwise_xor_(_shifted(values, 16, 32))


def _shifted(values: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    """Return the values shifted to the right with zeros coming in; torch's own shift repeats the sign."""
    return (values >> count).bitwise_and_((1 << (bits - count)) - 1)


def _signed(value: int, bits: int) -> int:
    """Return an unsigned integer as torch holds it."""
    return value - 2**bits if value >= 2 ** (bits - 1) else value
