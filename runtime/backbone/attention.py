"""Causal attention over samples that lie one after another in a single row of tokens.

Decoder layers of transformers find `packed_attention` under the name `NAME` and hand it the keyword argument `packing`.

Shapes: T tokens of the micro-batch, H query heads, K key/value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "cappuccino_packed"


@dataclass(frozen=True)
class Packing:
    """Where the samples of a micro-batch begin and end."""

    lengths: tuple[int, ...]
    """Tokens of every sample."""
    boundaries: torch.Tensor
    """First token of every sample and the end, int32, shape (samples + 1,), on the device of the stage."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within every sample, causally; tokens of different samples do not see each other.

    Parameters
    ----------
    module
        The attention layer that calls.
    query, key, value
        Shapes (1, H, T, D), (1, K, T, D) and (1, K, T, D).
    attention_mask
        Must be None: `packing` says everything.
    packing
        Borders of the samples.
    scaling
        Factor of the scores; by default one over the square root of D.
    dropout
        Must be 0: a mask over packed tokens would depend on the packing.
    sliding_window
        Every token sees this many tokens, itself included; None: all before it.

    Returns
    -------
    tuple
        The result, shape (1, T, H, D), and None for the attention weights.
    """
    if attention_mask is not None or dropout:
        raise RuntimeError("packed attention takes neither a mask nor dropout")
    fused = _fused_kernel() if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) else None
    if fused is not None:
        rows = (x[0].transpose(0, 1) for x in (query, key, value))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        return fused(*rows, packing=packing, scale=scaling, window=window).unsqueeze(0), None
    grouped = query.shape[1] != key.shape[1]
    results = []
    for q, k, v in zip(*(x.split(packing.lengths, dim=2) for x in (query, key, value)), strict=True):
        mask = _band(q.shape[2], sliding_window, q.device)
        results.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(results, dim=2).transpose(1, 2), None


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which (query, key) pairs a sliding window leaves, shape (length, length), None where it cuts nothing."""
    if window is None or length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def _fused_kernel() -> Callable[..., torch.Tensor] | None:
    """Return the variable-length kernel that this installation has: flash-attn's, else torch's."""
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: PLC0415
    except ImportError:
        return _torch_kernel()

    def flash(
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        *,
        packing: Packing,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        edges, longest = packing.boundaries, packing.longest
        return flash_attn_varlen_func(
            q_THD, k_TKD, v_TKD, edges, edges, longest, longest, softmax_scale=scale, causal=True, window_size=window
        )

    return flash


def _torch_kernel() -> Callable[..., torch.Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415
    except ImportError:
        return None

    def varlen(
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        *,
        packing: Packing,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        edges, longest = packing.boundaries, packing.longest
        grouped = q_THD.shape[1] != k_TKD.shape[1]
        result = varlen_attn(
            q_THD, k_TKD, v_TKD, edges, edges, longest, longest, scale=scale, window_size=window, enable_gqa=grouped
        )
        return result[0] if isinstance(result, tuple) else result

    return varlen


AttentionInterface.register(NAME, packed_attention)
