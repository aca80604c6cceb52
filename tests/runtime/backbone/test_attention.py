import pytest
import torch

from cappuccino.runtime.backbone.attention import Packing, packed_attention

LENGTHS = (5, 1, 9)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_equals_one_masked_softmax(window: int | None) -> None:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    query = torch.randn(1, 4, tokens, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, tokens, 8, dtype=torch.float64)
    edges = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    result, _ = packed_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        packing=Packing(LENGTHS, edges),
        scaling=0.3,
        sliding_window=window,
    )
    sample = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    visible = (sample[:, None] == sample[None, :]) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    scores = 0.3 * query @ key.repeat_interleave(2, dim=1).transpose(2, 3)
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(result, expected.transpose(1, 2))


def test_masks_and_dropout_are_refused() -> None:
    x, packing = torch.zeros(1, 1, 2, 4), Packing((2,), torch.tensor([0, 2], dtype=torch.int32))
    with pytest.raises(RuntimeError):
        packed_attention(torch.nn.Identity(), x, x, x, None, packing=packing, dropout=0.1)
    with pytest.raises(RuntimeError):
        packed_attention(torch.nn.Identity(), x, x, x, torch.zeros(2, 2), packing=packing)
