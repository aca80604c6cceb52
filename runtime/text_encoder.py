"""Texts as the tokens that training sees; transformers is imported when a tokenizer is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappuccino.errors import InputError


@dataclass(frozen=True)
class EncodedText:
    """The tokens of a text."""

    ids: list[int]
    end_added: bool
    """Whether the last one is an end-of-sequence token that the text does not have."""

    @property
    def bare(self) -> list[int]:
        """The tokens without an end that was added."""
        return self.ids[:-1] if self.end_added else self.ids


class TextEncoder:
    """A backbone's tokenizer, with each special token at the ends of a sample once.

    Texts that a chat template rendered begin and end with the special tokens that a tokenizer adds too. And where it
    adds no end-of-sequence token, an adapter would not learn where to stop.

    Parameters
    ----------
    folder
        With the tokenizer's files.

    Raises
    ------
    InputError
        When there is no tokenizer, or none that this version of `tokenizers` can read.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415

        if not folder.is_dir():
            raise InputError(folder, "", "holds no tokenizer", "name the folder of the backbone")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the libraries raise whatever their parsers raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = "copy the backbone's tokenizer files there, in a form that the installed tokenizers reads"
            raise InputError(folder, "", f"holds no tokenizer that can be read ({reason})", remedy) from error

    @property
    def end(self) -> str | None:
        """The end-of-sequence token; None where the tokenizer has none."""
        token = self._tokenizer.eos_token
        return None if token is None else str(token)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Return the tokens of every text, an end-of-sequence token added where a text has none at its end."""
        tokenizer = self._tokenizer
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        result = []
        for text, found in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
            ids = list(found)
            if first is not None and ids[:2] == [first, first] and _marks(text, tokenizer.bos_token)[0] == 1:
                del ids[0]
            ends = 0 if last is None else _marks(text, tokenizer.eos_token)[1]
            if ends == 1 and ids[-2:] == [last, last]:
                del ids[-1]
            missing = bool(ids) and last is not None and not ends and ids[-1] != last
            result.append(EncodedText([*ids, last] if missing else ids, missing))
        return result

    def ends_itself(self, ids: Sequence[int]) -> bool:
        """Return whether tokens end with the end-of-sequence token."""
        return bool(ids) and ids[-1] == self._tokenizer.eos_token_id


def _marks(text: str, token: str) -> tuple[int, int]:
    """Return how often a text begins and ends with a token, line breaks and blanks at its end aside."""
    begins = ends = 0
    rest = text
    while token and rest.startswith(token):
        begins, rest = begins + 1, rest[len(token) :]
    rest = text.rstrip()
    while token and rest.endswith(token):
        ends, rest = ends + 1, rest[: -len(token)].rstrip()
    return begins, ends
