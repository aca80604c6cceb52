import numpy as np
import torch

from cappuccino.plan import MicroBatch
from cappuccino.runtime.data.micro_batch import collate, num_tokens
from cappuccino.runtime.data.samples import AdapterSamples, TokenizedDataset
from cappuccino.runtime.lora.segment import Segment

# Samples: [10 11 12] predicting both, [20], [30 31] predicting nothing, [40 41 42] predicting the last.
DATA = TokenizedDataset(
    np.array([10, 11, 12, 20, 30, 31, 40, 41, 42]),
    np.array([10, 11, 12, 20, 30, -100, -100, -100, 42]),
    np.array([0, 3, 4, 6, 9]),
)
SAMPLES = [AdapterSamples(DATA, num_lengths=4, global_batch_size=2), AdapterSamples(DATA, 4, 4)]
BATCH = MicroBatch(samples=((1, 3), (1, 1), (0, 4)))  # the last is sample 0 again, in step 2


def test_samples_lie_one_after_another() -> None:
    packed = collate(BATCH, SAMPLES, torch.device("cpu"))
    assert packed.input_ids.tolist() == [[40, 41, 42, 20, 10, 11, 12]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    assert packed.packing.lengths == (3, 1, 3)
    assert packed.packing.boundaries.tolist() == [0, 3, 4, 7]
    assert packed.packing.boundaries.dtype == torch.int32
    assert num_tokens(BATCH, SAMPLES) == 7


def test_segments_tell_adapter_step_and_samples() -> None:
    packed = collate(BATCH, SAMPLES, torch.device("cpu"))
    assert packed.segments == (Segment(1, 0, 0, 4, ((3, 3), (1, 1))), Segment(0, 2, 4, 7, ((4, 3),)))
    assert packed.loss_segments == (Segment(1, 0, 0, 1, ((3, 1), (1, 0))), Segment(0, 2, 1, 3, ((4, 2),)))


def test_losses_are_weighted_by_the_whole_global_batch() -> None:
    packed = collate(BATCH, SAMPLES, torch.device("cpu"))
    assert packed.loss_positions.tolist() == [1, 4, 5]  # the token before the one to be predicted
    assert packed.targets.tolist() == [42, 11, 12]
    # Adapter 1 has 3 loss tokens in its batch of four samples, adapter 0 has 2 in samples 4 and 5 (0 and 1 again).
    np.testing.assert_allclose(packed.weights, [1 / 3, 1 / 2, 1 / 2])


def test_micro_batch_without_any_loss_token() -> None:
    packed = collate(MicroBatch(samples=((1, 1),)), SAMPLES, torch.device("cpu"))
    assert packed.loss_positions.shape == packed.targets.shape == packed.weights.shape == (0,)
    assert packed.targets.dtype == torch.int64
