"""Which rows of a packed tensor belong to which adapter: what routes tokens to LoRA weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one adapter."""

    adapter: int
    """Position in the replica's adapters."""
    step: int
    """Optimizer step that the rows train."""
    start: int
    """First row."""
    end: int
    """Row after the last."""
    samples: tuple[tuple[int, int], ...]
    """Number of the sample in the adapter's training order and its rows, in the order of the rows."""
