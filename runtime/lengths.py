"""Tokenized lengths of real datasets, from local files or the Hugging Face hub."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.errors import InputError
from cappuccino.files import write_atomically
from cappuccino.seed_formats import length_statistics

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def measure_lengths(
    sources: Sequence[str],
    tokenizer: Path,
    output: Path,
    *,
    num_samples: int,
    max_length: int,
    text_fields: Sequence[str],
    split: str,
    seed: int,
    on_progress: Callable[[float, str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Tokenize samples drawn from every dataset and write the distribution file.

    Parameters
    ----------
    sources
        `NAME=SOURCE`, where the source is a .jsonl or .parquet file, or a dataset name on the hub.
    text_fields
        Fields whose texts, joined by line breaks, are a sample.
    seed
        Of the draw; it names the entry in the file.

    Returns
    -------
    dict
        The statistics of every dataset, as written.

    Raises
    ------
    InputError
        When a source or the tokenizer cannot be read, or a field is missing.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        encode = AutoTokenizer.from_pretrained(str(tokenizer))
    except (OSError, ValueError) as error:
        raise InputError(tokenizer, "", f"holds no tokenizer ({error})", "name the backbone's folder") from error
    document: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    for done, source in enumerate(sources):
        name, separator, place = source.partition("=")
        if not separator or not name or not place:
            raise InputError("lengths", "", f'"{source}" is not NAME=SOURCE', "give e.g. chat=data/chat.jsonl")
        if on_progress:
            on_progress(done / len(sources), name)
        texts = _texts(name, place, text_fields, split, num_samples, seed)
        lengths = np.array([min(len(ids), max_length) for ids in encode(texts)["input_ids"]])
        if lengths.min() < 1:
            raise InputError(place, text_fields[0], "an empty text is not allowed", "remove it from the data")
        records[name] = length_statistics(lengths)
        document[name] = {"seeds": [seed], f"seed_{seed}": records[name]}
    write_atomically(output, json.dumps(document) + "\n")
    return records


def _texts(name: str, place: str, fields: Sequence[str], split: str, count: int, seed: int) -> list[str]:
    from datasets import load_dataset  # noqa: PLC0415

    path = Path(place)
    try:
        if path.suffix in _BUILDERS:
            if not path.exists():
                raise InputError(path, "", "file not found", "check the path")
            rows = load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
        else:
            rows = load_dataset(place, split=split)
    except (OSError, ValueError) as error:
        problem = f'cannot be loaded as dataset "{name}" ({error})'
        raise InputError(place, "", problem, "check file or hub name") from error
    missing = [field for field in fields if field not in rows.column_names]
    if missing:
        known = ", ".join(rows.column_names)
        raise InputError(place, missing[0], "is no field of the data", f"set --text-field to one of: {known}")
    rows = rows.shuffle(seed=seed).select(range(min(count, len(rows))))
    return ["\n".join(str(row[field]) for field in fields) for row in rows]
