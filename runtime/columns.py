"""What rows of samples hold besides their tokens: refused where leaving it out would change what is learnt."""

from collections.abc import Mapping, Sequence
from typing import Any

NO_LOSS = -100
"""Label of a token that carries no loss."""

_ATTENTION = "attention_mask"
_LEARNT_MASKS = (
    "completion_mask",
    "assistant_masks",
    "assistant_mask",
    "response_mask",
    "loss_mask",
    "loss_masks",
    "target_mask",
)
"""1 where a token is learnt."""
_HARMLESS_MASKS = ("special_tokens_mask",)
_LENGTHS = ("seq_lengths", "sequence_lengths", "sample_lengths")
_EDGES = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q")
_SEGMENTS = ("segment_ids", "document_ids", "doc_ids", "seq_idx", "sequence_ids", "sample_ids")
"""One number per token, another one for every sample of the row."""
_POSITIONS = "position_ids"
_WEIGHTS = tuple(f"{of}weight{s}" for of in ("", "loss_", "sample_", "example_", "token_") for s in ("", "s"))
_OTHER_LABELS = ("labels", "label", "label_ids", "target", "targets", "target_ids")
"""The first is none of the others where rows hold tokens."""

_APART = "give every sample a row of its own: micro-batches are packed by the plan"
_UNPADDED = "give rows without padding: micro-batches are packed, so there is none"


def is_mask(column: str) -> bool:
    """Return whether a column says of every token whether it counts."""
    named = column.endswith(("_mask", "_masks")) or column in ("mask", "masks")
    return named and column not in _HARMLESS_MASKS


def is_checked(column: str) -> bool:
    """Return whether `token_problem` or `text_problem` may say something about a column."""
    known = (_POSITIONS, *_LENGTHS, *_EDGES, *_SEGMENTS, *_WEIGHTS, *_OTHER_LABELS)
    return column.lower() in known or is_mask(column.lower())


def is_honoured(column: str) -> bool:
    """Return whether a column that `token_problem` finds nothing in says what training does anyway."""
    return is_checked(column) and column.lower() not in _OTHER_LABELS


def token_problem(
    column: str, row: Mapping[str, Any], labels: Sequence[int] | None, longest: int
) -> tuple[str, str] | None:
    """Return what a column of a row of tokens says that training would not honour, and what to do; None for nothing.

    Parameters
    ----------
    row
        Its `input_ids` are a list.
    labels
        As many as tokens; None where the row has none, and every token is learnt.
    longest
        Tokens behind it are cut, and what is said of them does not count.
    """
    value, count = row[column], len(row["input_ids"])
    kept = min(count, longest)
    kind = column.lower()
    if value is None:
        return None
    if kind in _WEIGHTS:
        return _weight_problem(column, value)
    if kind in _LENGTHS:
        first = value[0] if isinstance(value, list) and value else value
        return None if first == count or (isinstance(first, int) and first >= kept) else _several(column)
    if kind in _EDGES:
        inside = isinstance(value, list) and all(e == 0 or e >= kept for e in value)
        return None if inside else _several(column)
    if not isinstance(value, list):
        return None if kind in _SEGMENTS or kind in _OTHER_LABELS else _shapeless(column, count)
    if len(value) != count:
        return None if kind in _OTHER_LABELS else _shapeless(column, count)
    value = value[:kept]
    if is_mask(kind):
        strange = [v for v in value if isinstance(v, str | list) or v not in (0, 1)]
        if strange:
            return (
                f"{column} holds {strange[0]!r}, and only 0 and 1 are understood",
                "give labels instead, or remove it",
            )
    learnt = [labels is None or label != NO_LOSS for label in (labels or value)[:kept]]
    if kind in _OTHER_LABELS:
        return f"{column} is not used, and has a number for every token", "call it labels, or remove it"
    if kind in _SEGMENTS:
        return None if len(set(value)) <= 1 else _several(column)
    if kind == _POSITIONS:
        return None if value == list(range(kept)) else _several(column)
    hidden = [i for i, visible in enumerate(value) if not visible]
    if kind == _ATTENTION:
        # what stands behind a token does not change it
        behind = hidden == list(range(kept - len(hidden), kept))
        if not hidden or (behind and not any(learnt[i] for i in hidden)):
            return None
        return f"{column} is 0 at token {hidden[0]}, where padding would be trained on", _UNPADDED
    if kind in _LEARNT_MASKS:
        wrong = [i for i in hidden if learnt[i]]
        if not wrong:
            return None
        return f"{column} is 0 at token {wrong[0]}, which would be learnt", f"give labels, {NO_LOSS} where it is 0"
    if labels is not None or len(set(value)) <= 1:
        return None
    return f"{column} is not understood, and not the same for all tokens", "give labels instead, or remove it"


def text_problem(column: str, value: Any) -> tuple[str, str] | None:
    """Return what a column beside a text says that training would not honour, and what to do; None for nothing."""
    if value is None:
        return None
    if column.lower() in _WEIGHTS:
        return _weight_problem(column, value)
    if not isinstance(value, list) or not value:
        return None
    return (
        f"{column} belongs to tokens, and these are made of the text",
        "give rows of input_ids with labels, or remove it",
    )


def _weight_problem(column: str, value: Any) -> tuple[str, str] | None:
    if all(weight == 1 for weight in (value if isinstance(value, list) else [value])):
        return None
    return f"{column} is not honoured: all samples and tokens count alike", "remove it"


def _several(column: str) -> tuple[str, str]:
    return f"{column} says that several samples are in one row, where each would see those before it", _APART


def _shapeless(column: str, count: int) -> tuple[str, str]:
    return f"{column} is not one number for each of the {count} input_ids", "correct it, or remove the column"
