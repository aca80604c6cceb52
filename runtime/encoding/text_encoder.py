"""Texts as the tokens that training sees; transformers is imported when a tokenizer is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappuccino.errors import InputError

_PROBE = "a"


@dataclass(frozen=True)
class EncodedText:
    """The tokens of a text."""

    ids: list[int]
    end_added: bool
    """Whether the last one is an end-of-sequence token that neither the text nor the tokenizer has put there."""
    empty: bool
    """Whether the text has no token of its own."""
    first: int | None = 0
    """Tokens that the tokenizer put before those of the text; None where these cannot be found among the others."""


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Of which a folder with a tokenizer has one at least."""


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

        remedy = f"name a folder with one of {', '.join(TOKENIZER_FILES)}, such as that of the backbone"
        if not folder.is_dir():
            raise InputError(folder, "", "is no folder, and holds no tokenizer", remedy)
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise InputError(folder, "", "holds no tokenizer", remedy)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the libraries raise whatever their parsers raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = "copy the backbone's tokenizer files there, in a form that the installed tokenizers reads"
            raise InputError(folder, "", f"holds no tokenizer that can be read ({reason})", remedy) from error
        self._around = self._find_around()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers has it."""
        return self._tokenizer

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text, nothing put around them."""
        found = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [list(ids) for ids in found]

    @property
    def end(self) -> str | None:
        """The end-of-sequence token; None where the tokenizer has none."""
        token = self._tokenizer.eos_token
        return None if token is None else str(token)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Return the tokens of every text, an end-of-sequence token added where a text has none at its end."""
        last = self._tokenizer.eos_token_id
        result = []
        for text, found in zip(texts, self.bare(texts), strict=True):
            ended = self.end is not None and text.rstrip().endswith(self.end)
            ids = self._surrounded(found, text, ended)
            missing = bool(found) and last is not None and not ended and ids[-1] != last
            places = range(len(ids) - len(found) + 1)
            first = next((k for k in places if ids[k : k + len(found)] == found), None)
            result.append(EncodedText([*ids, last] if missing else ids, missing, not found, first))
        return result

    def _surrounded(self, ids: list[int], text: str, ended: bool) -> list[int]:
        """Return tokens with what the tokenizer puts around them, where that is not there already."""
        if self._around is None:
            return list(self._tokenizer(text)["input_ids"])
        before, behind = self._around
        if ids[: len(before)] != before:
            ids = before + ids
        there = ended or (bool(behind) and ids[-len(behind) :] == behind)
        return ids if there else ids + behind

    def _find_around(self) -> tuple[list[int], list[int]] | None:
        """Return the special tokens that the tokenizer puts before and behind a text; None where that is not all."""
        bare = list(self._tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        whole = list(self._tokenizer(_PROBE)["input_ids"])
        for begin in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[begin : begin + len(bare)] == bare:
                return whole[:begin], whole[begin + len(bare) :]
        return None
