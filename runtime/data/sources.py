"""Where samples are read from: a file, a saved data set, or the Hugging Face hub."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cappuccino.errors import InputError
from cappuccino.runtime.data.sample_files import SUFFIXES, is_saved, read_rows
from cappuccino.runtime.encoding.forms import Row


class Source(Protocol):
    """Rows that can be read again and again."""

    name: str
    """What to call it in messages."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order."""

    def count(self) -> int:
        """Return how many rows there are."""

    def content(self) -> str | None:
        """Return a digest of everything that rows are made of; None where that cannot be known."""


class SampleFile:
    """A .jsonl, .json or .parquet file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order."""
        return read_rows(self.path)

    def count(self) -> int:
        """Return how many rows there are, which takes reading them."""
        return sum(1 for _ in self.rows())

    def content(self) -> str | None:
        """Return the SHA-256 of the file, with the ending that says how it is read."""
        return f"{self.path.suffix}:{digest_of_files([self.path])}"


class SavedDataset:
    """A data set of the library `datasets`, held in files that are mapped into memory."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self.name = dataset, name

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order."""
        return iter(self._dataset)

    def count(self) -> int:
        """Return how many rows there are."""
        return len(self._dataset)

    def content(self) -> str | None:
        """Return the SHA-256 of the files and of the choice of their rows; None where they are not in files."""
        files = [Path(file["filename"]) for file in self._dataset.cache_files]
        # rows chosen by number, as `select` and `shuffle` do, are no part of the files
        chosen = getattr(self._dataset, "_indices", None) is not None
        return None if not files or chosen else f"{digest_of_files(files)}:{len(self._dataset)}"


def open_source(place: str | Path, split: str = "train") -> Source:
    """Return the samples of a file, of a folder that `datasets` reads, or of a data set on the hub.

    Parameters
    ----------
    split
        Of a data set that has several.

    Raises
    ------
    InputError
        When there is nothing that can be read.
    """
    path = Path(place)
    if path.suffix in SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise InputError(path, "", "file not found", "check the path")
        return SampleFile(path)
    if path.is_file():
        problem = f"ends with none of {', '.join(SUFFIXES)}"
        raise InputError(path, "", problem, "name it by what it holds")
    if path.is_dir() and is_saved(path):
        return SavedDataset(_from_disk(path, split), str(path))
    from datasets import load_dataset  # noqa: PLC0415

    try:
        with _quiet_datasets():
            return SavedDataset(load_dataset(str(place), split=split), str(place))
    except Exception as error:  # the client of the hub raises whatever its own clients raise
        problem = f"cannot be loaded as a data set ({_innermost_message(error)})"
        remedy = f"check the path, or the hub name and the split ({split}), or name a file: {', '.join(SUFFIXES)}"
        raise InputError(place, "", problem, remedy) from error


def digest_of_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _from_disk(path: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk  # noqa: PLC0415

    try:
        with _quiet_datasets():
            found = load_from_disk(str(path))
    except Exception as error:  # whatever the readers of its files raise
        problem = f"cannot be loaded as a saved data set ({_innermost_message(error)})"
        raise InputError(path, "", problem, "save it again with save_to_disk") from error
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise InputError(path, "", f'has no split "{split}"', f"name one of {', '.join(found)}")
    return found[split]


def _innermost_message(error: BaseException) -> str:
    """Return the first line of the error at the bottom of a chain: it says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep the progress bars and hints of `datasets` off the terminal."""
    import datasets  # noqa: PLC0415

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
