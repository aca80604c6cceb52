"""What rows of samples hold besides tokens and labels: refused where leaving it out would change what is learnt."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

NO_LOSS = -100
"""Label of a token that carries no loss."""

_ATTENTION = "attention_mask"
_POSITIONS = "position_ids"
_BOUNDARIES = ("seq_lengths", "sequence_lengths", "cu_seqlens", "cu_seq_lens")
_WEIGHTS = ("loss_weight", "loss_weights", "sample_weight", "sample_weights", "token_weights")
_HARMLESS = ("special_tokens_mask",)


def is_checked(column: str) -> bool:
    """Return whether `column_problem` says something about a column."""
    mask = column.endswith(("_mask", "_masks")) and column not in _HARMLESS
    return mask or column in (_POSITIONS, *_BOUNDARIES, *_WEIGHTS)


def column_problem(column: str, row: Mapping[str, Any], labels: Sequence[int]) -> tuple[str, str] | None:
    """Return what a column says that training would not honour, and what to do about it; None for nothing.

    Parameters
    ----------
    labels
        Of the row, where it has none its tokens.
    """
    value, count = row[column], len(row["input_ids"])
    if value is None:
        return None
    if column in _BOUNDARIES:
        whole = [0, count] if column.startswith("cu_") else [count]
        if list(value) == whole:
            return None
        return f"{column} says that several samples are in one row, where each would see those before it", _APART
    if column in _WEIGHTS:
        weights = value if isinstance(value, list) else [value]
        if all(w == 1 for w in weights):
            return None
        return f"{column} is not honoured", "remove it; leave tokens out of the loss by labels of -100"
    if not isinstance(value, list) or len(value) != count:
        return f"{column} is not one number for each of the {count} input_ids", "correct it, or remove the column"
    if column == _POSITIONS:
        if value == list(range(count)):
            return None
        return f"{column} does not count from 0, as in a row of several samples", _APART
    hidden = [i for i, kept in enumerate(value) if not kept]
    if column == _ATTENTION:
        # what stands behind a token does not change it
        padding = hidden == list(range(count - len(hidden), count)) and all(labels[i] == NO_LOSS for i in hidden)
        if not hidden or padding:
            return None
        return f"{column} is 0 at token {hidden[0]}, where padding would be trained on", _UNPADDED
    learnt = [i for i in hidden if labels[i] != NO_LOSS]
    if not learnt:
        return None
    return f"{column} is 0 at token {learnt[0]}, which would be learnt", "give labels, -100 where the mask is 0"


_APART = "give every sample a row of its own: micro-batches are packed by the plan"
_UNPADDED = "give rows without padding: micro-batches are packed, so there is none"


def refused_beside_text(columns: Collection[str]) -> str | None:
    """Return a column that is of tokens and cannot be honoured where rows hold text; None for none."""
    return next((c for c in columns if c == "labels" or is_checked(c)), None)
