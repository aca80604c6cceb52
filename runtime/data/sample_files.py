"""Files of samples, read row by row; needs no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cappuccino.errors import InputError
from cappuccino.runtime.encoding.forms import Row
from cappuccino.training_data import FILE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = FILE_SUFFIXES
_SAVED = ("state.json", "dataset_dict.json")
"""Files by which a folder that `save_to_disk` wrote is known."""


def find_samples(folder: Path, name: str) -> Path:
    """Return the file of a dataset in a folder, or its saved data set; InputError where there is none, or several."""
    there = [file for file in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if file.is_file()]
    if is_saved(folder / name):
        there.append(folder / name)
    if not there:
        *first, last = (f"{name}{suffix}" for suffix in SUFFIXES)
        problem = f"holds no {', '.join(first)} or {last}"
        raise InputError(folder, "", problem, f"put the samples of dataset {name} there")
    if len(there) > 1:
        raise InputError(folder, "", f"holds {there[0].name} and {there[1].name}", "remove one of the two")
    return there[0]


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the library `datasets`."""
    return any((folder / name).is_file() for name in _SAVED)


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a .jsonl, .json or .parquet file, every value as it stands there.

    Raises
    ------
    InputError
        When the file or a row cannot be read.
    """
    try:
        yield from (_parquet_rows if file.suffix == ".parquet" else _json_rows)(file)
    except OSError as error:
        raise InputError(file, "", f"cannot be read ({error.strerror or error})", "check the file") from error


def _json_rows(file: Path) -> Iterator[Row]:
    """Yield one object per line, or those of one array."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            number = 0
            for line, text in enumerate(stream, start=1):
                if text.isspace():
                    continue
                begins_array = number == 0 and text.lstrip().startswith("[")
                rows = _parsed(text + (stream.read() if begins_array else ""), file, line)
                for row in rows if begins_array else [rows]:
                    if not isinstance(row, dict):
                        raise InputError(file, f"row {number}", "is no object", "write one object per row")
                    yield row
                    number += 1
    except UnicodeDecodeError as error:
        raise InputError(file, "", f"is not UTF-8 text (byte {error.start})", "write it as UTF-8") from error


def _parsed(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _RepeatedColumnError as error:
        raise InputError(file, f"line {line}", f"{error} is given twice", "keep one of the two") from error
    except json.JSONDecodeError as error:
        problem = f"is no JSON at column {error.colno} ({error.msg})"
        raise InputError(file, f"line {line}", problem, "write one object per line") from error
    except (ValueError, RecursionError) as error:
        raise InputError(file, f"line {line}", f"is JSON that cannot be held ({error})", "correct it") from error


class _RepeatedColumnError(Exception):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedColumnError(next(name for name in row if names.count(name) > 1))
    return row


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        # not by its name, in which readers of data sets take some characters for patterns
        with file.open("rb") as stream:
            table = parquet.ParquetFile(stream)
            heavy = {f.name: None for f in table.schema_arrow if _holds_bytes(f.type)}
            light = [name for name in table.schema_arrow.names if name not in heavy]
            for batch in table.iter_batches(columns=light):
                for row in batch.to_pylist():
                    yield row | heavy
    except pyarrow.ArrowException as error:
        problem = f"cannot be read as parquet ({str(error).splitlines()[0]})"
        raise InputError(file, "", problem, "write it again") from error


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    """Return whether a column has images, sounds or the like, which nothing here reads."""
    return "binary" in str(kind)
