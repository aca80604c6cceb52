"""Files of samples, read by pyarrow; needs no torch."""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cappuccino.errors import InputError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

FORMATS = {".jsonl": "json", ".parquet": "parquet"}
"""Files of samples by suffix, and what they are called in messages."""

_FIRST_ROWS = 100
"""Rows that tell which fields are text."""
_LONGEST_ROW = 2**26
"""Bytes of a row that can be read."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_samples(folder: Path, name: str) -> Path:
    """Return the file of a dataset in a folder; InputError where there is none, or two."""
    files = [folder / f"{name}{suffix}" for suffix in FORMATS]
    there = [file for file in files if file.is_file()]
    if not there:
        names = " or ".join(f"{name}{suffix}" for suffix in FORMATS)
        raise InputError(folder, "", f"holds no {names}", f"put the samples of dataset {name} there")
    if len(there) > 1:
        raise InputError(folder, "", f"holds {there[0].name} and {there[1].name}", "remove one of the two")
    return there[0]


def read_samples(file: Path) -> "Dataset":
    """Return the rows of a .jsonl or .parquet file, texts as they stand there.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    import datasets  # noqa: PLC0415

    # not by its name, in which readers of data sets take some characters for patterns
    read = _read_json_lines if FORMATS[file.suffix] == "json" else _read_parquet
    try:
        return datasets.Dataset(read(file))
    except Exception as error:  # the readers raise whatever their parsers raise
        problem = f"cannot be read as {FORMATS[file.suffix]} ({innermost_message(error)})"
        raise InputError(file, "", problem, "write one object with the same fields per row") from error


def _read_json_lines(file: Path) -> "pyarrow.Table":
    """Read rows; fields that begin as text are text, also where they look like a date."""
    import pyarrow  # noqa: PLC0415
    from pyarrow import json as arrow_json  # noqa: PLC0415

    with file.open("rb") as stream:
        begin = len(_BYTE_ORDER_MARK) if stream.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK else 0
        stream.seek(begin)
        texts: dict[str, None] = {}
        for line in islice(stream, _FIRST_ROWS):
            row = json.loads(line) if line.strip() else {}
            texts |= {name: None for name, value in row.items() if isinstance(value, str)}
        stream.seek(begin)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in texts])
        options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer")
        return arrow_json.read_json(stream, arrow_json.ReadOptions(block_size=_LONGEST_ROW), options)


def _read_parquet(file: Path) -> "pyarrow.Table":
    from pyarrow import parquet  # noqa: PLC0415

    with file.open("rb") as stream:
        return parquet.read_table(stream)


def innermost_message(error: BaseException) -> str:
    """Return the first line of the error at the bottom of a chain: it says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
