"""Rows that hold tokens already, with labels or with masks of what is learnt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cappuccino.runtime.data.columns import OtherColumns
from cappuccino.runtime.encoding.encoder import NO_LOSS, EncodedSample
from cappuccino.runtime.encoding.forms import LossOn, Row, RowError

LEARNT_MASKS = ("completion_mask", "assistant_masks")
"""Columns that labels are made of where rows hold none, as TRL writes them: a token is learnt where all are 1."""


class TokenRows:
    """Reads rows of tokens one after another; what decides on the loss must be in all of them.

    Parameters
    ----------
    others
        Judges the columns that are not read.
    loss_on
        `all` where every token is to be learnt, which rows that say otherwise contradict; None: what they say.
    """

    def __init__(self, others: OtherColumns, loss_on: LossOn | None) -> None:
        self._others, self._loss_on = others, loss_on
        self._deciding: tuple[str, ...] | None = None

    def encode(self, row: Row) -> EncodedSample:
        """Return a row's tokens and labels.

        Raises
        ------
        RowError
            When it is malformed, or says what would not be honoured.
        """
        ids, labels = row.get("input_ids"), row.get("labels")
        if not isinstance(ids, list):
            raise RowError("input_ids is no list of integers", "give token ids")
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(ids)):
            many = f"{len(labels)} labels for {len(ids)} input_ids" if isinstance(labels, list) else "labels is no list"
            raise RowError(many, f"give a label for every token, {NO_LOSS} for no loss")
        masks = [c for c in LEARNT_MASKS if row.get(c) is not None]
        self._require_alike(("labels",) if labels is not None else tuple(masks))
        if labels is None and masks and all(_is_mask(row[c], len(ids)) for c in masks):
            learnt = [all(values) for values in zip(*(row[c] for c in masks), strict=True)]
            labels = [token if kept else NO_LOSS for token, kept in zip(ids, learnt, strict=True)]
        found = self._others.problem_beside_tokens(row, labels)
        if found is not None:
            raise RowError(*found)
        if self._loss_on is LossOn.ALL and labels is not None and NO_LOSS in labels:
            problem = f"loss_on is all, and {self._deciding[0] if self._deciding else 'labels'} leaves out tokens"
            raise RowError(problem, "leave loss_on out, or remove the column")
        tokens = _integers(ids, "input_ids")
        return EncodedSample(tokens, tokens if labels is None else _integers(labels, "labels"))

    def _require_alike(self, deciding: tuple[str, ...]) -> None:
        """Refuse a row whose loss is decided by other columns than that of the first row."""
        if self._deciding is None:
            self._deciding = deciding
        for column in self._deciding:
            if column not in deciding:
                raise RowError(f"{column} are missing, of row 0 they are not", _all_or_none(column))
        for column in deciding:
            if column not in self._deciding:
                raise RowError(f"{column} are given, of row 0 they are not", _all_or_none(column))


def _all_or_none(column: str) -> str:
    return f"give {column} in all rows or in none"


def _is_mask(value: Any, count: int) -> bool:
    """Return whether a value is 0 or 1 for every token; what else it may be is judged with the other columns."""
    return isinstance(value, list) and len(value) == count and all(isinstance(v, int) and v in (0, 1) for v in value)


def _integers(values: Sequence[Any], name: str) -> np.ndarray:
    """Return a row's list as int64, shape (length,)."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of lists of unlike lengths
        array = np.array(None)
    if array.size and array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    if not values:
        return np.zeros(0, dtype=np.int64)
    raise RowError(f"{name} is no list of integers", "give token ids")
