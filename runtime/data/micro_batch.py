"""A micro-batch of the plan as tensors: samples of several adapters one after another.

Shapes: T tokens of the micro-batch, L of them with loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from cappuccino.plan import MicroBatch
from cappuccino.runtime.backbone.attention import Packing
from cappuccino.runtime.data.samples import AdapterSamples
from cappuccino.runtime.encoding.encoder import NO_LOSS
from cappuccino.runtime.lora.segment import Segment


@dataclass(frozen=True)
class PackedMicroBatch:
    """What a stage needs to run one micro-batch."""

    input_ids: torch.Tensor
    """Shape (1, T)."""
    position_ids: torch.Tensor
    """Position of every token in its sample, shape (1, T)."""
    packing: Packing
    """Borders of the samples."""
    segments: tuple[Segment, ...]
    """Tokens by adapter."""
    loss_positions: torch.Tensor
    """Tokens that predict one with a label, shape (L,)."""
    targets: torch.Tensor
    """What they are to predict, shape (L,)."""
    weights: torch.Tensor
    """One over the loss tokens of the adapter's whole global batch, float64, shape (L,)."""
    loss_segments: tuple[Segment, ...]
    """Rows of `loss_positions` by adapter."""


def num_tokens(batch: MicroBatch, samples: Sequence[AdapterSamples]) -> int:
    """Return T of a micro-batch without building it."""
    return sum(len(samples[adapter].tokens(number)[0]) for adapter, number in batch.samples)


def collate(batch: MicroBatch, samples: Sequence[AdapterSamples], device: torch.device) -> PackedMicroBatch:
    """Lay the samples of a micro-batch one after another.

    Parameters
    ----------
    batch
        From the plan.
    samples
        By position in the replica's adapters.
    device
        Where the tensors go.
    """
    ids, positions, targets, sources, weights = [], [], [], [], []
    segments, loss_segments = [], []
    tokens = losses = 0
    for adapter, group in groupby(batch.samples, key=lambda sample: sample[0]):
        numbers = [number for _, number in group]
        source = samples[adapter]
        step = source.step(numbers[0])
        weight = 1 / source.loss_tokens(step)
        first, first_loss = tokens, losses
        lengths, counts = [], []
        for number in numbers:
            input_ids, labels = source.tokens(number)
            predicting = np.flatnonzero(labels[1:] != NO_LOSS)
            ids.append(input_ids)
            positions.append(np.arange(len(input_ids)))
            sources.append(tokens + predicting)
            targets.append(labels[1:][predicting])
            weights.append(np.full(len(predicting), weight))
            lengths.append(len(input_ids))
            counts.append(len(predicting))
            tokens += len(input_ids)
            losses += len(predicting)
        segments.append(Segment(adapter, step, first, tokens, tuple(zip(numbers, lengths, strict=True))))
        loss_segments.append(Segment(adapter, step, first_loss, losses, tuple(zip(numbers, counts, strict=True))))

    def on_device(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    all_lengths = tuple(rows for segment in segments for _, rows in segment.samples)
    boundaries = np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int32)
    return PackedMicroBatch(
        input_ids=on_device(ids)[None],
        position_ids=on_device(positions)[None],
        packing=Packing(all_lengths, on_device([boundaries])),
        segments=tuple(segments),
        loss_positions=on_device(sources),
        targets=on_device(targets),
        weights=on_device(weights),
        loss_segments=tuple(loss_segments),
    )
