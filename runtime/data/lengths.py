"""Lengths of the samples of real data sets, from local files or the Hugging Face hub."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.errors import InputError
from cappuccino.files import require_writable, write_atomically
from cappuccino.instance import name_problem
from cappuccino.lengths import length_statistics
from cappuccino.runtime.data import summary
from cappuccino.runtime.data.reading import ReadingReport, ReadingRules, Sample, SampleReader
from cappuccino.runtime.data.sources import open_source
from cappuccino.runtime.encoding.forms import Form
from cappuccino.runtime.encoding.text_encoder import TextEncoder


@dataclass(frozen=True)
class MeasuredDataset:
    """What was found in a source."""

    statistics: dict[str, Any]
    """As written to the distribution file."""
    report: ReadingReport
    edges: dict[str, dict[str, int]]
    """Under `begin` and `end`, how many samples have which special token there."""


def measure_lengths(
    sources: Sequence[str],
    tokenizer: Path,
    output: Path,
    *,
    num_samples: int,
    rules: ReadingRules,
    forms: Mapping[str, Form] | None = None,
    split: str = "train",
    seed: int = 42,
    in_order: bool = False,
    data: Path | None = None,
    on_progress: Callable[[float, str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, MeasuredDataset]:
    """Tokenize samples drawn from every dataset and write the distribution file.

    Parameters
    ----------
    sources
        `NAME=SOURCE`, where the source is a .jsonl, .json or .parquet file, a saved data set, or a name on the hub.
    rules
        What is made of the rows of all sources.
    forms
        By name, the forms of sources whose columns fit several.
    split
        Of data sets that have several.
    seed
        Of the draw; it names the entry in the file.
    in_order
        Whether the first samples are taken in their order, so that an instance may name the source itself.
    data
        Folder for `<name>.jsonl` with tokens and labels of the samples in order, which `run` trains on.
    on_note
        Told of every source its form, what is learnt, what was cut, dropped or left out, how samples begin and end,
        and what it holds that is not used.

    Returns
    -------
    dict
        By name, what was found.

    Raises
    ------
    InputError
        When a source or the tokenizer cannot be read, a row is malformed, or nothing is left to learn from.
    """
    places, forms = _places(sources), forms or {}
    for name in forms:
        if name not in places:
            raise InputError("lengths", "--form", f'"{name}" is no dataset of this command', f"use {', '.join(places)}")
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
    found: dict[str, MeasuredDataset] = {}
    samples: dict[str, list[Sample]] = {}
    for done, (name, place) in enumerate(places.items()):
        if on_progress:
            on_progress(done / len(places), name)
        mine = replace(rules, form=forms.get(name, rules.form), leave_out=True)
        reader = SampleReader(open_source(place, split), tokenizer, mine, note)
        samples[name] = _taken(reader, num_samples, None if in_order else seed)
        lengths = (len(sample.ids) for sample in samples[name])
        found[name] = _measured(name, place, reader, lengths, rules.longest, encoder, note)
        document[name] = distribution_entry(found[name], seed)
    for name, target in targets.items():
        rows = ({"input_ids": s.ids.tolist(), "labels": s.labels.tolist()} for s in samples[name])
        write_atomically(target, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(output, json.dumps(document) + "\n")
    return found


def measure_in_order(
    name: str,
    place: str,
    encoder: TextEncoder,
    tokenizer: Path,
    rules: ReadingRules,
    most: int | None,
    on_note: Callable[[str], None],
) -> MeasuredDataset:
    """Tokenize the first samples of a source, as training reads them; none of them is kept.

    Parameters
    ----------
    encoder, tokenizer
        The tokenizer and its folder.
    rules
        What is made of the rows; those without a token to learn from are left out.
    most
        Rows that are read; None: all.
    on_note
        Told what `measure_lengths` tells.

    Raises
    ------
    InputError
        When the source cannot be read, a row is malformed, or nothing is left to learn from.
    """
    reader = SampleReader(open_source(place), tokenizer, replace(rules, leave_out=True), on_note)
    rows = reader.source.count()
    taken = rows if most is None else min(rows, most)
    lengths = (len(sample.ids) for sample in reader.samples(range(taken), taken))
    return _measured(name, place, reader, lengths, rules.longest, encoder, on_note)


def distribution_entry(found: MeasuredDataset, seed: int) -> dict[str, Any]:
    """Return what a distribution file holds of a dataset."""
    return {"seeds": [seed], f"seed_{seed}": found.statistics}


def _measured(
    name: str,
    place: str,
    reader: SampleReader,
    lengths: Iterable[int],
    longest: int,
    encoder: TextEncoder,
    note: Callable[[str], None],
) -> MeasuredDataset:
    """Return what a source holds, once its samples are read for their lengths, and tell it."""
    tokens = np.fromiter(lengths, dtype=np.int64)
    gone = summary.left_out(reader.report, longest)
    if not len(tokens):
        raise InputError(place, "", f"holds no sample to learn from ({gone or 'no rows'})", "add samples")
    for said in (
        summary.form_and_loss(reader.report),
        gone,
        summary.edges_in_words(reader.report, encoder.tokenizer),
        summary.unused(reader.unused),
    ):
        if said:
            note(f"{name}: {said}")
    edges = summary.edges(reader.report, encoder.tokenizer)
    return MeasuredDataset(length_statistics(tokens), reader.report, edges)


def _taken(reader: SampleReader, most: int, seed: int | None) -> list[Sample]:
    """Return samples of rows drawn with a seed, in the order of the draw, or else of the first rows.

    Rows are read twice for a draw, so that never more of them are held than are drawn.
    """
    if seed is None:
        return [_small(sample) for sample in reader.samples(range(most), most)]
    drawn = np.random.default_rng(seed).permutation(reader.source.count())[:most].tolist()
    rank = {row: k for k, row in enumerate(drawn)}
    taken = [_small(sample) for sample in reader.samples(sorted(drawn), len(drawn))]
    return sorted(taken, key=lambda sample: rank[sample.row])


def _small(sample: Sample) -> Sample:
    """Return a sample in as little memory as it takes, for many are held until they are in the order of the draw."""
    return Sample(sample.row, sample.ids.astype(np.int32), sample.labels.astype(np.int32))


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
