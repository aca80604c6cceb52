"""Rows of texts, chats, prompts and completions as the tokens and labels that training sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cappuccino.errors import InputError
from cappuccino.runtime.encoding.chat import ChatTemplate
from cappuccino.runtime.encoding.forms import Chat, Form, LossOn, PlainText, Row, RowError, as_sample
from cappuccino.runtime.encoding.text_encoder import EncodedText, TextEncoder

NO_LOSS = -100
"""Label of a token that carries no loss."""


@dataclass(frozen=True)
class EncodedSample:
    """The tokens of a row, not yet cut."""

    ids: np.ndarray
    """Shape (length,), int64; empty where the row says nothing, or nothing is to be learnt but an end."""
    labels: np.ndarray
    """Likewise; `NO_LOSS` where a token is not learnt."""
    end_added: bool = False
    """Whether the last token is an end of sequence that neither the row nor the tokenizer has put there."""

    def without_end(self) -> "EncodedSample":
        """Return the sample without an end that was added."""
        return EncodedSample(self.ids[:-1], self.labels[:-1]) if self.end_added else self


class SampleEncoder:
    """Encodes rows of one form with a tokenizer.

    Parameters
    ----------
    folder
        With the tokenizer's files.
    form
        Any but `input_ids`.
    loss_on
        A rule that makes sense for the form.
    text_fields
        Columns whose texts, joined by line breaks, are a sample of the form `text`.

    Raises
    ------
    InputError
        When there is no tokenizer that can be read, or it has no chat template and the form needs one.
    """

    def __init__(self, folder: Path, form: Form, loss_on: LossOn, text_fields: Sequence[str] = ("text",)) -> None:
        self._folder, self._form, self._loss_on, self._fields = folder, form, loss_on, tuple(text_fields)
        self.texts = TextEncoder(folder)
        has_template = form is not Form.TEXT and bool(self.texts.tokenizer.chat_template)
        self.chats = ChatTemplate(self.texts.tokenizer) if has_template else None
        """How chats are rendered; None where none is, or none can be."""
        if self.chats is None and form in (Form.MESSAGES, Form.SHAREGPT):
            problem = f"the tokenizer has no chat template, which rows of {form} need"
            remedy = (
                "name the backbone's instruction-tuned variant, put a chat_template.jinja beside the tokenizer, or "
                "give rows of prompt and completion"
            )
            raise InputError(folder, "chat_template", problem, remedy)

    def encode(self, rows: Sequence[Row]) -> list[EncodedSample | RowError]:
        """Return every row's tokens and labels, or what is wrong with it."""
        if self._form is Form.TEXT:
            return self._texts(rows)
        found: list[EncodedSample | RowError | PlainText] = []
        for row in rows:
            try:
                sample = as_sample(row, self._form, self.chats is not None)
                found.append(self._chat(sample) if isinstance(sample, Chat) else sample)
            except RowError as error:
                found.append(error)
        plain = iter(self._plain([sample for sample in found if isinstance(sample, PlainText)]))
        return [next(plain) if isinstance(sample, PlainText) else sample for sample in found]

    def _texts(self, rows: Sequence[Row]) -> list[EncodedSample | RowError]:
        wrong = [next((f for f in self._fields if not isinstance(row.get(f), str)), None) for row in rows]
        texts = ["\n".join(row[f] for f in self._fields) for row, bad in zip(rows, wrong, strict=True) if bad is None]
        encoded = iter(zip(texts, self.texts.encode(texts), strict=True))
        result: list[EncodedSample | RowError] = []
        for row, bad in zip(rows, wrong, strict=True):
            if bad is not None:
                result.append(RowError(f"{bad} is {str(row.get(bad))[:60]}, no text", "give a string"))
                continue
            text, sample = next(encoded)
            result.append(self._without_tokens(text, sample) or _sample(sample.ids, 0, sample.end_added))
        return result

    def _plain(self, samples: Sequence[PlainText]) -> list[EncodedSample | RowError]:
        """Return prompts and completions, each tokenised as one text; a token must begin where the completion does."""
        if not samples:
            return []
        texts = [sample.prompt + sample.completion for sample in samples]
        bare, prompts = self.texts.bare(texts), self.texts.bare([sample.prompt for sample in samples])
        result: list[EncodedSample | RowError] = []
        for sample, text, whole, ids, prompt in zip(
            samples, texts, self.texts.encode(texts), bare, prompts, strict=True
        ):
            missing = self._without_tokens(text, whole)
            if missing is not None:
                result.append(missing)
            elif self._loss_on is LossOn.ALL:
                result.append(_sample(whole.ids, 0, whole.end_added))
            elif not sample.completion:
                result.append(_EMPTY)
            elif ids[: len(prompt)] != prompt or whole.first is None:
                shown = (sample.prompt[-10:], sample.completion[:10])
                problem = (
                    f"a token joins the end of the prompt and the begin of the completion ({shown[0]!r} {shown[1]!r})"
                )
                remedy = "move the white space at the end of the prompt to the begin of the completion"
                result.append(RowError(problem, remedy))
            else:
                result.append(_sample(whole.ids, whole.first + len(prompt), whole.end_added))
        return result

    def _without_tokens(self, text: str, sample: EncodedText) -> EncodedSample | RowError | None:
        """Return what becomes of a text without tokens: an error where it is not empty; None where it has some."""
        if not sample.empty:
            return None
        if not text.strip():
            return _EMPTY
        problem = f'the tokenizer {self._folder} makes no tokens of "{text[:40]}"'
        return RowError(problem, "give the tokenizer that the backbone is used with")

    def _chat(self, chat: Chat) -> EncodedSample:
        if self.chats is None:
            problem = "holds messages, and the tokenizer has no chat template"
            raise RowError(problem, "give a tokenizer with a chat template, or prompt and completion as strings")
        found, end = self.chats.encode(chat, self._loss_on), self.texts.tokenizer.eos_token_id
        ids = np.asarray(found.ids, dtype=np.int64)
        labels = np.where(found.learnt, ids, NO_LOSS)
        if found.ended or end is None:
            return EncodedSample(ids, labels)
        learnt = end if bool(found.learnt[-1]) else NO_LOSS
        return EncodedSample(np.append(ids, end), np.append(labels, learnt), True)


_EMPTY = EncodedSample(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def _sample(ids: Sequence[int], first: int, end_added: bool) -> EncodedSample:
    """Return a sample that is learnt from its token `first` on."""
    tokens = np.asarray(ids, dtype=np.int64)
    return EncodedSample(tokens, np.where(np.arange(len(tokens)) < first, NO_LOSS, tokens), end_added)
