"""Masks of dropout: as likely as asked for, independent of each other, and of where a token runs."""

import itertools

import numpy as np
import pytest
import torch

from cappuccino.runtime.lora import sample_dropout
from cappuccino.runtime.lora.sample_dropout import SampleDropout
from cappuccino.runtime.lora.segment import Segment

FEATURES = 256


def segment(*samples: tuple[int, int], step: int = 3) -> Segment:
    return Segment(0, step, 0, sum(rows for _, rows in samples), samples)


def kept(dropout: SampleDropout, where: Segment, features: int = FEATURES, dtype=torch.float64) -> torch.Tensor:
    rows = sum(n for _, n in where.samples)
    return dropout(torch.ones(rows, features, dtype=dtype), torch.eye(features, dtype=dtype), where) != 0


def masks(probability: float = 0.5) -> dict[str, torch.Tensor]:
    """Return masks that differ in one thing each, of 512 tokens."""
    usual = segment((7, 512))
    changed = {
        "usual": (SampleDropout(probability, 1, "a", "m"), usual),
        "seed": (SampleDropout(probability, 2, "a", "m"), usual),
        "adapter": (SampleDropout(probability, 1, "b", "m"), usual),
        "module": (SampleDropout(probability, 1, "a", "n"), usual),
        "step": (SampleDropout(probability, 1, "a", "m"), segment((7, 512), step=4)),
        "sample": (SampleDropout(probability, 1, "a", "m"), segment((8, 512))),
    }
    return {name: kept(*made) for name, made in changed.items()}


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(probability):
    for name, mask in masks(probability).items():
        count, expected = mask.numel(), (1 - probability) * mask.numel()
        spread = np.sqrt(count * probability * (1 - probability))
        assert abs(int(mask.sum()) - expected) < 4.5 * spread + count * 2**-17, name
        # row by row and feature by feature as well
        for dim in (0, 1):
            sums, n = mask.sum(dim).double(), mask.shape[dim]
            assert (
                float((sums - (1 - probability) * n).abs().max()) < 6 * np.sqrt(n * probability * (1 - probability)) + 2
            )


def test_masks_are_independent_of_each_other():
    # of 512 x 256 fair coins two in five thousand correlations are beyond 4.5 deviations
    signs = {name: mask.double() * 2 - 1 for name, mask in masks().items()}
    for (name, one), (other, two) in itertools.combinations(signs.items(), 2):
        assert abs(float((one * two).mean())) < 4.5 / np.sqrt(one.numel()), (name, other)
    usual = signs["usual"]
    for shift in (1, 2, 3, 4, 8, 64, 128):
        for dim in (0, 1):
            moved = torch.roll(usual, shift, dim)
            assert abs(float((usual * moved).mean())) < 4.5 / np.sqrt(usual.numel()), (shift, dim)
    # no two rows are alike, nor shifted by an even number, which one sequence for all would make them
    overlap = (usual @ usual.T).fill_diagonal_(0).abs().max()
    assert float(overlap) < 7 * np.sqrt(FEATURES)


def test_a_token_has_its_mask_wherever_it_runs():
    dropout = SampleDropout(0.3, 1, "a", "m")
    alone = kept(dropout, segment((7, 5)))
    assert torch.equal(kept(dropout, segment((9, 3), (7, 5), (2, 1)))[3:8], alone)
    assert torch.equal(kept(dropout, segment((7, 9)))[:5], alone)  # a longer sample begins alike
    assert torch.equal(kept(dropout, segment((7, 5)), features=7), alone[:, :7])
    assert torch.equal(kept(dropout, segment((7, 5)), dtype=torch.float32), alone)


def test_many_rows_are_as_few(monkeypatch):
    dropout, where = SampleDropout(0.3, 1, "a", "m"), segment((1, 40), (2, 30))
    whole = kept(dropout, where)
    monkeypatch.setattr(sample_dropout, "_CACHED_VALUES", 1000)
    assert torch.equal(kept(dropout, where), whole)


def test_known_masks():
    # of this hash: another one would train other adapters from the same seeds
    found = kept(SampleDropout(0.5, 42, "job", "model.layers.0.self_attn.q_proj"), segment((0, 2), (5, 1), step=0), 16)
    assert ["".join("01"[int(x)] for x in row) for row in found] == KNOWN


KNOWN = ["0100011111111000", "0000100001011101", "0011100101010000"]


def test_gradients_are_those_of_masked_inputs():
    dropout, where = SampleDropout(0.3, 1, "a", "m"), segment((7, 5))
    inputs = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    mask = kept(dropout, where, features=8)
    product = dropout(inputs, weight, where)
    expected = (inputs * mask) @ weight.T
    torch.testing.assert_close(product, expected)
    gradient = torch.randn(1, 5, 3, dtype=torch.float64)
    found = torch.autograd.grad(product, (inputs, weight), gradient)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (inputs, weight), gradient))
    assert dropout.scale == pytest.approx(1 / 0.7, rel=1e-4)
    dropout.eval()
    torch.testing.assert_close(dropout(inputs, weight, where), inputs @ weight.T)
    assert dropout.scale == 1.0


def test_modules_keep_their_inputs_together_and_a_byte_a_value_of_mask():
    inputs = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    sizes = {w.untyped_storage().data_ptr(): 0 for w in weights}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for name, weight in zip("qkv", weights, strict=True):
            SampleDropout(0.3, 1, "a", name)(inputs, weight, segment((7, 5)))
    assert sum(sizes.values()) == 5 * 8 * 8 + 3 * 5 * 8


def test_nothing_is_dropped_at_none():
    dropout, inputs, weight = SampleDropout(0.0, 1, "a", "m"), torch.ones(5, 8), torch.randn(3, 8)
    assert torch.equal(dropout(inputs, weight, segment((7, 5))), inputs @ weight.T)
    assert dropout.scale == 1.0
