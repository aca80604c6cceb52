"""Tokenized lengths of real datasets, from local files or the Hugging Face hub."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.errors import InputError
from cappuccino.files import require_writable, write_atomically
from cappuccino.instance import name_problem
from cappuccino.lengths import length_statistics
from cappuccino.runtime.data.columns import OtherColumns
from cappuccino.runtime.data.sample_files import SUFFIXES, Row, read_rows
from cappuccino.runtime.data.text_encoder import TextEncoder


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
    end: bool = True,
    data: Path | None = None,
    on_progress: Callable[[float, str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
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
    end
        Whether samples that were not cut end with the end-of-sequence token.
    data
        Folder for `<name>.jsonl` with the tokens of the drawn samples in order, which `run` trains on.
    on_note
        Told how samples end, and what a source holds that is not used.

    Returns
    -------
    dict
        The statistics of every dataset, as written.

    Raises
    ------
    InputError
        When a source or the tokenizer cannot be read, or a field is missing.
    """
    places = _places(sources)
    targets = {} if data is None else {name: data / f"{name}.jsonl" for name in places}
    read = {Path(place).resolve() for place in places.values()}
    for target in (output, *targets.values()):
        require_writable(target)
        if target.resolve() in read or (target is not output and target.resolve() == output.resolve()):
            raise InputError(target, "", "would replace another file of this command", "name another")
        if any(target in other.parents for other in targets.values()):
            raise InputError(target, "", "would be both a file and a folder", "name the datasets otherwise")
    encoder, note = TextEncoder(tokenizer), on_note or (lambda text: None)
    document: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[list[int]]] = {}
    for done, (name, place) in enumerate(places.items()):
        if on_progress:
            on_progress(done / len(places), name)
        texts, unused = _texts(name, place, text_fields, split, num_samples, seed)
        encoded = encoder.encode(texts)
        for text, sample in zip(texts, encoded, strict=True):
            if sample.empty and not text.strip():
                raise InputError(place, text_fields[0], "an empty text is not allowed", "remove it from the data")
            if sample.empty:
                problem = f'the tokenizer {tokenizer} makes no tokens of "{text[:40]}"'
                raise InputError(place, text_fields[0], problem, "give the tokenizer that the backbone is used with")
        samples[name] = [(sample.ids if end else sample.bare)[:max_length] for sample in encoded]
        lengths = np.array([len(ids) for ids in samples[name]])
        note(f"{name}: {_ending(encoder, samples[name])}")
        if unused:
            note(f"{name}: not used: {', '.join(sorted(unused))}")
        records[name] = length_statistics(lengths)
        document[name] = {"seeds": [seed], f"seed_{seed}": records[name]}
    for name, target in targets.items():
        write_atomically(target, "".join(json.dumps({"input_ids": ids}) + "\n" for ids in samples[name]))
    write_atomically(output, json.dumps(document) + "\n")
    return records


def _places(sources: Sequence[str]) -> dict[str, str]:
    """Return what every name stands for."""
    places: dict[str, str] = {}
    for source in sources:
        name, _, place = source.partition("=")
        if not name or not place:
            raise InputError("lengths", "", f'"{source}" is not NAME=SOURCE', "give e.g. chat=data/chat.jsonl")
        if name in places:
            raise InputError("lengths", "", f'"{name}" is given twice', "use unique names")
        problem = name_problem(name)
        if problem is not None:
            raise InputError("lengths", "", f'"{name}" names no data file: {problem}', "use another name")
        places[name] = place
    return places


def _ending(encoder: TextEncoder, samples: Sequence[Sequence[int]]) -> str:
    """Return a sentence on how many samples teach an adapter where to stop."""
    if encoder.end is None:
        return "the tokenizer has no end-of-sequence token: adapters do not learn where to stop"
    return f"{sum(map(encoder.ends_itself, samples))} of {len(samples)} samples end with {encoder.end}"


def _texts(
    name: str, place: str, fields: Sequence[str], split: str, count: int, seed: int
) -> tuple[list[str], list[str]]:
    """Return the texts of samples drawn from a file or from the hub, and the columns that are not used."""
    path = Path(place)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise InputError(path, "", "file not found", "check the path")
        return _drawn(lambda: read_rows(path), place, fields, count, seed)
    from datasets import load_dataset  # noqa: PLC0415

    try:
        with _quiet_datasets():
            rows = load_dataset(place, split=split)
    except Exception as error:  # the client of the hub raises whatever its own clients raise
        problem = f'cannot be loaded as dataset "{name}" ({_innermost_message(error)})'
        remedy = "check hub name and --split, or name a .jsonl or .parquet file"
        raise InputError(place, "", problem, remedy) from error
    return _drawn(lambda: iter(rows), place, fields, count, seed)


def _drawn(
    rows: Callable[[], Iterator[Row]], place: str, fields: Sequence[str], count: int, seed: int
) -> tuple[list[str], list[str]]:
    """Draw rows at random; they are read twice, so that never more of them are held than are drawn."""
    number = sum(1 for _ in rows())
    if not number:
        raise InputError(place, "", "holds no rows", "add samples")
    drawn = np.random.default_rng(seed).permutation(number)[:count].tolist()
    rank = {row: k for k, row in enumerate(drawn)}
    others, texts = OtherColumns(fields, 0), [""] * len(drawn)
    for k, row in ((rank[i], row) for i, row in enumerate(rows()) if i in rank):
        for field in fields:
            if field not in row:
                known = ", ".join(row) or "none"
                raise InputError(place, field, "is no field of the data", f"set --text-field to one of: {known}")
            if not isinstance(row[field], str):
                raise InputError(place, field, f"{str(row[field])[:60]} is no text", "name a field of strings")
        found = others.problem_beside_text(row)
        if found is not None:
            raise InputError(place, "", *found)
        texts[k] = "\n".join(row[field] for field in fields)
    return texts, list(others.unused)


def _innermost_message(error: BaseException) -> str:
    """Return the first line of the error at the bottom of a chain: it says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep the progress bars of `datasets` off the terminal."""
    import datasets  # noqa: PLC0415

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
