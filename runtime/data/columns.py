"""What rows of samples hold besides their tokens: refused where leaving it out would change what is learnt."""

from collections.abc import Sequence
from typing import Any

from cappuccino.runtime.encoding.encoder import NO_LOSS

_ATTENTION = "attention_mask"
_LEARNT = ("completion", "assistant", "assistant_tokens", "response", "loss", "label", "labels", "target", "train")
_LEARNT_MASKS = frozenset(f"{what}_mask{s}" for what in _LEARNT for s in ("", "s"))
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
_LABELS_INSTEAD = "give labels instead, or remove it"

Problem = tuple[str, str]
"""What is wrong, and what to do."""


class OtherColumns:
    """Judges, row by row, the columns of a file that training does not read.

    Parameters
    ----------
    used
        Columns that it reads.
    longest
        Tokens behind it are cut, and what is said of them does not count.
    """

    def __init__(self, used: Sequence[str], longest: int) -> None:
        self._used, self._longest = used, longest
        self.unused: dict[str, None] = {}
        """Columns that say nothing that is done anyway."""
        self._uniform: dict[str, Any] = {}

    def problem_beside_tokens(self, row: dict[str, Any], labels: Sequence[int] | None) -> Problem | None:
        """Return what a row of tokens says that would not be honoured; None for nothing.

        Parameters
        ----------
        row
            Its `input_ids` are a list.
        labels
            As many as tokens; None where the row has none, and every token is learnt.
        """
        for column, value in row.items():
            if column in self._used:
                continue
            kind = column.lower()
            if not _says_what_is_done(kind):
                self.unused[column] = None
            found = None if value is None else self._problem(column, kind, value, len(row["input_ids"]), labels)
            if found is not None:
                return found
        return None

    def problem_beside_text(self, row: dict[str, Any]) -> Problem | None:
        """Return what a row of text says of tokens, or of their weight; None for nothing."""
        for column, value in row.items():
            if column in self._used:
                continue
            self.unused[column] = None
            kind = column.lower()
            if value is None:
                continue
            if kind in _WEIGHTS:
                found = _weight_problem(column, value)
                if found is not None:
                    return found
            elif isinstance(value, list) and value and _is_of_tokens(kind):
                problem = f"{column} belongs to tokens, and these are made of the text"
                return problem, "give rows of input_ids with labels, or remove it"
        return None

    def _problem(self, column: str, kind: str, value: Any, count: int, labels: Sequence[int] | None) -> Problem | None:
        kept = min(count, self._longest)
        if kind in _WEIGHTS:
            return _weight_problem(column, value)
        if kind in _LENGTHS:
            parts = value if isinstance(value, list) else [value]
            whole = not parts or parts == [count] or (isinstance(parts[0], int) and parts[0] >= kept < count)
            return None if whole else _several(column)
        if kind in _EDGES:
            inside = isinstance(value, list) and all(e == 0 or e >= kept for e in value)
            return None if inside else _several(column)
        return self._token_problem(column, kind, value, count, labels) if _is_of_tokens(kind) else None

    def _token_problem(
        self, column: str, kind: str, value: Any, count: int, labels: Sequence[int] | None
    ) -> Problem | None:
        """Return what is wrong with a column that may have a value for every token."""
        if kind in (*_SEGMENTS, *_OTHER_LABELS) and not isinstance(value, list):
            return None
        if not isinstance(value, list) or len(value) != count:
            return f"{column} is not one number for each of the {count} input_ids", "correct it, or remove the column"
        kept = min(count, self._longest)
        value = value[:kept]
        if kind in _OTHER_LABELS:
            return f"{column} is not used, and has a number for every token", "call it labels, or remove it"
        if kind in _SEGMENTS:
            return _several(column) if any(v != value[0] for v in value) else None
        if kind == _POSITIONS:
            return None if value == list(range(kept)) else _several(column)
        return self._mask_problem(column, kind, value, labels if labels is None else labels[:kept])

    def _mask_problem(self, column: str, kind: str, value: list[Any], labels: Sequence[int] | None) -> Problem | None:
        """Return what is wrong with a mask: which tokens are hidden, or not learnt."""
        strange = [v for v in value if isinstance(v, str | list) or v not in (0, 1)]
        if strange:
            return f"{column} holds {strange[0]!r}, and only 0 and 1 are understood", _LABELS_INSTEAD
        learnt = [True] * len(value) if labels is None else [label != NO_LOSS for label in labels]
        hidden = [i for i, visible in enumerate(value) if not visible]
        if kind == _ATTENTION:
            # what stands behind a token does not change it
            behind = hidden == list(range(len(value) - len(hidden), len(value)))
            if not hidden or (behind and not any(learnt[i] for i in hidden)):
                return None
            return f"{column} is 0 at token {hidden[0]}, where padding would be trained on", _UNPADDED
        if kind in _LEARNT_MASKS:
            wrong = [i for i in hidden if learnt[i]]
            if not wrong:
                return None
            return f"{column} is 0 at token {wrong[0]}, which would be learnt", f"give labels, {NO_LOSS} where it is 0"
        if labels is None and value and any(v != self._uniform.setdefault(kind, value[0]) for v in value):
            return f"{column} is not understood, and not the same for all tokens", _LABELS_INSTEAD
        return None


def _says_what_is_done(kind: str) -> bool:
    """Return whether a column in which no problem is found says what training does anyway."""
    known = (_ATTENTION, _POSITIONS, *_LENGTHS, *_EDGES, *_SEGMENTS, *_WEIGHTS)
    return kind in known or kind in _LEARNT_MASKS


def _is_of_tokens(kind: str) -> bool:
    """Return whether a column has a value for every token that may change what is learnt."""
    mask = kind.endswith(("_mask", "_masks")) or kind in ("mask", "masks")
    return (mask and kind not in _HARMLESS_MASKS) or kind in (_POSITIONS, *_SEGMENTS, *_OTHER_LABELS)


def _weight_problem(column: str, value: Any) -> Problem | None:
    if all(weight == 1 for weight in (value if isinstance(value, list) else [value])):
        return None
    return f"{column} is not honoured: all samples and tokens count alike", "remove it"


def _several(column: str) -> Problem:
    return f"{column} says that several samples are in one row, where each would see those before it", _APART
