"""Rows of any form become samples: recognised, encoded, cut or dropped, and counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.errors import InputError
from cappuccino.runtime.data.cache import Block, SampleCache, today, tokenizer_digest
from cappuccino.runtime.data.columns import OtherColumns
from cappuccino.runtime.data.sources import Source
from cappuccino.runtime.data.token_rows import TokenRows
from cappuccino.runtime.encoding.encoder import NO_LOSS, EncodedSample
from cappuccino.runtime.encoding.forms import BESIDE, COLUMNS, LOSS_RULES, Form, LossOn, Row, RowError, matching_forms
from cappuccino.runtime.encoding.workers import Encoding
from cappuccino.training_data import TooLong

_BLOCK = 2048
"""Rows that are held, encoded and kept at a time."""
_MORE = 256
"""The same of rows beyond those expected, which replace what is left out."""


@dataclass(frozen=True)
class ReadingRules:
    """What is made of rows."""

    longest: int
    """Tokens that a sample may have."""
    form: Form | None = None
    """None: recognised by the columns."""
    loss_on: LossOn | None = None
    """None: the first of the form's rules; of rows of tokens, what they say."""
    too_long: TooLong = "cut"
    """What becomes of longer samples."""
    end: bool = True
    """Whether an end-of-sequence token that was added stays."""
    leave_out: bool | None = None
    """Whether rows without a token to learn from are left out; None: but for rows of tokens and of text."""
    text_fields: tuple[str, ...] | None = None
    """Columns whose texts, joined by line breaks, are a sample; None: by the form."""


@dataclass
class ReadingReport:
    """What was found so far."""

    form: Form
    loss_on: LossOn | None
    """None: what the rows of tokens say."""
    rows: int = 0
    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    """Tokens that are to be predicted: not the first of a sample, which has nothing before it."""
    cut: int = 0
    dropped: int = 0
    empty: int = 0
    """Rows left out that have no token, or no completion."""
    unlearnt: int = 0
    """Rows left out that have tokens, but none to learn from."""
    first: Counter[int] = field(default_factory=Counter)
    """First tokens of samples."""
    last: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """The last two tokens of samples."""


@dataclass(frozen=True)
class Sample:
    """A sample as it is trained."""

    row: int
    ids: np.ndarray
    """Shape (length,), int64."""
    labels: np.ndarray
    """Likewise; `NO_LOSS` where a token is not learnt."""


class SampleReader:
    """Reads the samples of one source.

    Parameters
    ----------
    source
        The rows.
    tokenizer
        Folder of the tokenizer; opened where rows are not tokens already.
    rules
        What is made of the rows.
    on_note
        Told what is to be known of the data.

    Raises
    ------
    InputError
        When there are no rows, their form is not known, or the rule of the loss makes no sense for it.
    """

    def __init__(self, source: Source, tokenizer: Path, rules: ReadingRules, on_note: Callable[[str], None]) -> None:
        self.source = source
        """The rows."""
        self._tokenizer, self._rules, self._on_note = tokenizer, rules, on_note
        first = next(source.rows(), None)
        form = self._form(first)
        self.report = ReadingReport(form, self._loss_on(form))
        """Filled while samples are read."""
        self._end_token: str | None = None
        fields = rules.text_fields if form is Form.TEXT and rules.text_fields else (*COLUMNS[form], *BESIDE[form])
        self._fields, self._others = fields, OtherColumns(fields, rules.longest)
        self._tokens = TokenRows(self._others, rules.loss_on) if form is Form.INPUT_IDS else None
        if first is not None:
            more = [f for f in matching_forms(first) if f is not form and not set(COLUMNS[f]) <= set(fields)]
            if more and rules.form is None and rules.text_fields is None:
                on_note(f"{source.name}: rows are read as {form}; they could be read as {', '.join(more)} too (form)")

    @property
    def unused(self) -> list[str]:
        """Columns of the rows read that are not used."""
        return sorted(self._others.unused)

    def samples(
        self, numbers: Iterable[int], expected: int, lengths: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[Sample]:
        """Yield the samples of rows.

        Parameters
        ----------
        numbers
            Of rows, rising; those beyond the last row are not there.
        expected
            How many rows will be read, about.
        lengths
            Tokens of the samples in the order they are yielded: the first that can tell says whether they count an
            end-of-sequence token that was added. None: by the rules.

        Raises
        ------
        InputError
            When a row is malformed, or says what would not be honoured.
        """
        encoded = self._encoded(numbers, expected) if self._tokens is None else self._token_samples(numbers)
        form, rules, report = self.report.form, self._rules, self.report
        leave_out = form not in (Form.INPUT_IDS, Form.TEXT) if rules.leave_out is None else rules.leave_out
        counted = None if lengths is not None else rules.end
        for row, found in encoded:
            report.rows += 1
            if leave_out and not len(found.ids):
                report.empty += 1
                continue
            if counted is None and found.end_added and len(found.ids) <= rules.longest and lengths is not None:
                counted = report.samples >= len(lengths) or int(lengths[report.samples]) != len(found.ids) - 1
                if not counted:
                    note = f"no {self._end_token} is added, as the lengths of the instance count none"
                    self._on_note(f"{self.source.name}: {note}: adapters do not learn where to stop")
            sample = found if counted in (None, True) else found.without_end()
            ids, labels = sample.ids[: rules.longest], sample.labels[: rules.longest]
            too_long = len(sample.ids) > rules.longest
            if too_long and rules.too_long == "drop":
                report.dropped += 1
                continue
            learnt = int((labels[1:] != NO_LOSS).sum())
            if leave_out and not learnt:
                report.unlearnt += 1
                continue
            report.cut += too_long
            report.samples += 1
            report.tokens += len(ids)
            report.loss_tokens += learnt
            if len(ids):
                report.first[int(ids[0])] += 1
                report.last[tuple(ids[-2:].tolist())] += 1
            yield Sample(row, ids, labels)

    def _form(self, first: Row | None) -> Form:
        """Return the form of the rows, by the first of them."""
        if self._rules.text_fields is not None:
            for name in self._rules.text_fields:
                if first is not None and name not in first:
                    known = ", ".join(first) or "none"
                    remedy = f"set --text-field to one of: {known}"
                    raise InputError(self.source.name, name, "is no field of the data", remedy)
            return Form.TEXT
        if self._rules.form is not None:
            missing = [c for c in COLUMNS[self._rules.form] if first is not None and c not in first]
            if missing:
                problem = f"is not there, which rows of the form {self._rules.form} have"
                remedy = f"name another form (columns: {', '.join(first or ()) or 'none'})"
                raise InputError(self.source.name, missing[0], problem, remedy)
            return self._rules.form
        forms = matching_forms(first or {})
        if first is not None and not forms:
            known = "; ".join(f"{form}: {', '.join(columns)}" for form, columns in COLUMNS.items())
            problem = f"has the columns of no form that is known (columns: {', '.join(first) or 'none'})"
            raise InputError(self.source.name, "", problem, f"rename them ({known}), or give `lengths` a --text-field")
        return forms[0] if forms else Form.INPUT_IDS

    def _loss_on(self, form: Form) -> LossOn | None:
        wanted, rules = self._rules.loss_on, LOSS_RULES[form]
        if wanted is None:
            return None if form is Form.INPUT_IDS else rules[0]
        if wanted not in rules:
            problem = f"{wanted} makes no sense for rows of {form}"
            raise InputError(self.source.name, "loss_on", problem, f"use {' or '.join(rules)}, or leave it out")
        return wanted

    def _token_samples(self, numbers: Iterable[int]) -> Iterator[tuple[int, EncodedSample]]:
        assert self._tokens is not None  # the caller has looked
        for number, row in _picked(self.source.rows(), numbers):
            try:
                yield number, self._tokens.encode(row)
            except RowError as error:
                raise self._at(number, error) from error

    def _encoded(self, numbers: Iterable[int], expected: int) -> Iterator[tuple[int, EncodedSample]]:
        """Yield encoded rows, block by block, from what is kept or else newly encoded."""
        form, loss_on = self.report.form, self.report.loss_on
        assert loss_on is not None  # only rows of tokens go without
        wanted, rows, left = iter(numbers), _Rows(self.source), expected
        with Encoding((self._tokenizer, form, loss_on, self._fields), expected) as encoding:
            self._end_token = encoding.encoder.texts.end
            kept = self._cache(encoding, loss_on)
            while block := list(islice(wanted, min(_BLOCK, left) if left > 0 else _MORE)):
                left -= len(block)
                found = None if kept is None else kept.get(block)
                if found is None:
                    found = self._new_block(rows.take(block), encoding)
                    if kept is not None and len(found.samples) == len(block):
                        kept.put(block, found)
                self._others.unused.update(dict.fromkeys(found.unused))
                yield from zip(block, found.samples, strict=False)
                if len(found.samples) < len(block):
                    return

    def _new_block(self, rows: Sequence[tuple[int, Row]], encoding: Encoding) -> Block:
        before, self._others.unused = self._others.unused, {}
        for number, row in rows:
            found = self._others.problem_beside_text(row)
            if found is not None:
                raise self._at(number, RowError(*found))
        unused, self._others.unused = list(self._others.unused), before
        slim = [{c: row[c] for c in self._fields if c in row} for _, row in rows]
        samples = []
        for (number, _), sample in zip(rows, encoding.encode(slim), strict=True):
            if isinstance(sample, RowError):
                raise self._at(number, sample) from sample
            samples.append(sample)
        return Block(samples, unused)

    def _cache(self, encoding: Encoding, loss_on: LossOn) -> SampleCache | None:
        try:
            content = self.source.content()
            tokenizer = tokenizer_digest(self._tokenizer)
        except OSError as error:
            self._on_note(f"{self.source.name}: encoded samples are not kept ({error.strerror or error})")
            return None
        if content is None:
            return None
        dated = encoding.encoder.chats is not None and encoding.encoder.chats.tells_the_date
        if dated:
            self._on_note(f"{self.source.name}: the chat template writes the date of the day into samples")
        made_of = [content, tokenizer, self.report.form, loss_on, self._fields, today() if dated else ""]
        return SampleCache(made_of, self._on_note)

    def _at(self, number: int, error: RowError) -> InputError:
        return InputError(self.source.name, f"row {number}", error.problem, error.remedy)


class _Rows:
    """Takes rows by rising numbers out of one passage through a source, begun when the first is taken."""

    def __init__(self, source: Source) -> None:
        self._source, self._next = source, 0
        self._rows: Iterator[Row] | None = None

    def take(self, numbers: Sequence[int]) -> list[tuple[int, Row]]:
        """Return the rows of these numbers, as far as they are there."""
        if self._rows is None:
            self._rows = self._source.rows()
        found: list[tuple[int, Row]] = []
        for number in numbers:
            row: Any = next(islice(self._rows, number - self._next, None), None)
            self._next = number + 1
            if row is None:
                break
            found.append((number, row))
        return found


def _picked(rows: Iterator[Row], numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of rising numbers, as far as they are there."""
    following = 0
    for number in numbers:
        row = next(islice(rows, number - following, None), None)
        if row is None:
            return
        following = number + 1
        yield number, row
