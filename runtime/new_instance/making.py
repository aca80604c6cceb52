"""Makes an instance of raw data: measures their lengths, and sets what is not given to what mostly works."""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.backbone import BackboneShape
from cappuccino.documents import YAML_SUFFIXES
from cappuccino.errors import InputError
from cappuccino.files import parse_model, require_writable, write_atomically
from cappuccino.instance import Instance, InstanceFile, name_problem
from cappuccino.runtime.backbone.config import read_positions, read_trainable_shape
from cappuccino.runtime.backbone.hub import find_backbone, table_name
from cappuccino.runtime.data.lengths import MeasuredDataset, distribution_entry, measure_in_order
from cappuccino.runtime.data.reading import ReadingRules
from cappuccino.runtime.data.summary import left_out
from cappuccino.runtime.encoding.forms import Form, LossOn
from cappuccino.runtime.encoding.text_encoder import TextEncoder
from cappuccino.runtime.new_instance.adapters import NewAdapter, adapter_name, new_adapter, parse_sweeps
from cappuccino.runtime.new_instance.document import NewDataset, NewInstance
from cappuccino.runtime.new_instance.estimate import estimated_costs
from cappuccino.runtime.new_instance.pools import FoundPool, named_pools, pools_of_this_machine
from cappuccino.sweep import expand_sweeps
from cappuccino.training_data import FILE_SUFFIXES, TooLong, TrainingData

SEED = 42
"""Under which a distribution file has the lengths of samples in their order."""
LENGTHS, COST_TABLE = "lengths.json", "cost-table.csv"
"""What files beside the instance are called."""
_SUFFIXES = (*YAML_SUFFIXES, ".json")


@dataclass(frozen=True)
class NewInstanceOptions:
    """What may be said of a new instance; None and empty: as it mostly works."""

    gpus: Sequence[str] = ()
    """`NAME=COUNT` or `NAME=COUNT:MEMORY_GIB`; by default this machine's."""
    sweeps: Sequence[str] = ()
    """`SETTING=VALUE,...`."""
    epochs: float | None = None
    max_length: int | None = None
    """Tokens; by default the longest sample, if the backbone has positions for it."""
    num_samples: int | None = None
    """Rows of every source; by default all."""
    form: Form | None = None
    """Of all sources that `forms` does not name."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    loss_on: LossOn | None = None
    too_long: TooLong = "cut"
    cost_table: Path | None = None
    """By default `COST_TABLE` beside the instance."""
    evaluation: Sequence[str] = ()
    """`DATASET=SOURCE` of data to evaluate on; a source alone is for the only dataset, or the one named as it is."""
    estimate: bool = False
    """Whether the cost table is computed from specifications."""


@dataclass(frozen=True)
class MadeInstance:
    """What was written, and what was found on the way."""

    path: Path
    lengths: Path
    instance: Instance
    shape: BackboneShape
    measured: Mapping[str, MeasuredDataset]
    pools: Sequence[FoundPool]


def make_instance(
    backbone: str,
    sources: Sequence[str],
    output: Path,
    options: NewInstanceOptions,
    *,
    force: bool = False,
    on_progress: Callable[[float, str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> MadeInstance:
    """Write an instance of raw data, and beside it the lengths of their samples.

    Parameters
    ----------
    backbone
        Its folder, or its name on the hub.
    sources
        `NAME=SOURCE`, or a source alone: its name is that of the file or folder then.
    output
        Where the instance goes, by its ending in YAML, with comments, or JSON.
    force
        Whether files that are there are replaced.
    on_note
        Told what was found in the sources.

    Raises
    ------
    InputError
        When an option, the backbone or a source is wrong, or a file is there already; nothing was written.
    """
    if output.suffix.lower() not in _SUFFIXES:
        problem = f"ends with none of {', '.join(_SUFFIXES)}"
        raise InputError(output, "", problem, "name it by what it is to hold, e.g. instance.yaml")
    places = named_sources(sources)
    unknown = [name for name in options.forms if name not in places]
    if unknown:
        raise InputError("--form", "", f'"{unknown[0]}" is no dataset of this command', f"use {', '.join(places)}")
    held_out = evaluation_sources(options.evaluation, places)
    target = beside(output, LENGTHS)
    for path in (output, target):
        require_writable(path)
        if path.resolve() in {Path(place).resolve() for place in (*places.values(), *held_out.values())}:
            raise InputError(path, "", "would replace the training data", "name another output")
        if path.exists() and not force:
            raise InputError(path, "", "is there already", "name another output, or give --force to replace it")
    if options.epochs is not None and not 0 < options.epochs < math.inf:
        raise InputError("--epochs", "", f"{options.epochs} is not allowed", "give a positive number of passes")
    sweep = parse_sweeps(options.sweeps, options.epochs)
    folder = find_backbone(backbone)
    shape = read_trainable_shape(folder)
    if not folder.is_dir():
        raise InputError(folder, "", "has no tokenizer beside it", "name the folder of the backbone")
    positions = read_positions(folder)
    if options.max_length and positions and options.max_length > positions:
        problem = f"{options.max_length} is more than the {positions} positions of the backbone"
        raise InputError("--max-length", "", problem, f"give {positions} or less")
    longest = options.max_length or positions
    if longest is None:
        problem = "max_position_embeddings is not given"
        raise InputError(folder / "config.json", "", problem, "set --max-length")
    pools = named_pools(options.gpus, shape.num_layers) or pools_of_this_machine(shape.num_layers)
    table = options.cost_table or output.with_name(COST_TABLE)
    estimate = estimated_costs(table, table_name(folder), shape, pools) if options.estimate else None
    note = on_note or (lambda text: None)
    sources_of = {**places, **{evaluation_name(name): place for name, place in held_out.items()}}
    trained = {**{name: name for name in places}, **{evaluation_name(name): name for name in held_out}}
    measured = _measured(sources_of, trained, folder, longest, options, on_progress, note)
    most = max(int(found.statistics["max"]) for found in measured.values())
    why = f"the longest sample{f', of {positions} positions of the model' if positions else ''}"
    new = NewInstance(
        name=output.stem,
        backbone=table_name(folder),
        cost_table=_relative(table, output),
        pools=pools,
        max_sequence_length=options.max_length or most,
        why_length="as given; longer samples are " + _TREATED[options.too_long] if options.max_length else why,
        datasets=[
            NewDataset(name, _fields(name, sources_of[name], found, options, output), _counts(found))
            for name, found in measured.items()
        ],
        adapters=_adapters({name: measured[name] for name in places}, held_out, sweep, options.epochs),
    )
    _check(new, output, table, measured)
    if estimate is not None:
        write_atomically(table, estimate)
    write_atomically(target, _distribution(measured))
    write_atomically(output, new.json() if output.suffix.lower() == ".json" else new.yaml())
    return MadeInstance(output, target, Instance.load(output), shape, measured, pools)


_TREATED: Mapping[TooLong, str] = {"cut": "cut", "drop": "left out"}


def beside(output: Path, name: str) -> Path:
    """Return a file of an instance's own beside it: named after it, unless it is called `instance`."""
    return output.with_name(name if output.stem == "instance" else f"{output.stem}-{name}")


def named_sources(sources: Sequence[str]) -> dict[str, str]:
    """Return the source of every dataset.

    Raises
    ------
    InputError
        When there is none, or a name is given twice or cannot name a dataset.
    """
    places: dict[str, str] = {}
    for source in sources:
        name, equals, place = source.partition("=")
        if not equals or Path(source).exists():
            path = Path(source)
            name, place = path.stem if path.suffix in FILE_SUFFIXES else path.resolve().name, source
        if not place or not name:
            raise InputError("--data", "", f'"{source}" names no source', "give e.g. chat=raw/chat.jsonl")
        problem = name_problem(name)
        if problem is not None:
            raise InputError("--data", "", f'"{name}" names no dataset: {problem}', "write another NAME=SOURCE")
        if name in places:
            problem = f'"{name}" is the name of {places[name]} and of {place}'
            raise InputError("--data", "", problem, "write NAME=SOURCE for one of them")
        places[name] = place
    if not places:
        raise InputError("--data", "", "is not given", "name the training data, e.g. --data chat=raw/chat.jsonl")
    return places


def evaluation_name(dataset: str) -> str:
    """Return the name of the dataset that an adapter of another one is evaluated on."""
    return f"{dataset}-eval"


def evaluation_sources(sources: Sequence[str], places: Mapping[str, str]) -> dict[str, str]:
    """Return by dataset the source that its adapters are evaluated on; datasets without one are left out.

    Parameters
    ----------
    sources
        `DATASET=SOURCE`, or a source alone: it is for the only dataset, or for the one that is named as it is.
    places
        Sources of the datasets.

    Raises
    ------
    InputError
        When it is not clear which dataset a source is for, or one has several.
    """
    option, found = "--eval", dict[str, str]()
    known = ", ".join(places)
    for source in sources:
        name, equals, place = source.partition("=")
        if not equals or Path(source).exists():
            path = Path(source)
            stem = path.stem if path.suffix in FILE_SUFFIXES else path.resolve().name
            name, place = next(iter(places)) if len(places) == 1 else stem, source
        if not place or name not in places:
            problem = f'"{source}" is for none of the datasets {known}'
            raise InputError(option, "", problem, "write DATASET=SOURCE with one of them")
        if name in found:
            problem = f'"{name}" has {found[name]} and {place}'
            raise InputError(option, "", problem, "give one source for a dataset")
        if evaluation_name(name) in places:
            problem = f'"{evaluation_name(name)}" is the name of another dataset'
            raise InputError("--data", "", problem, "write another NAME=SOURCE")
        found[name] = place
    return found


def _measured(
    places: Mapping[str, str],
    trained: Mapping[str, str],
    folder: Path,
    longest: int,
    options: NewInstanceOptions,
    on_progress: Callable[[float, str], None] | None,
    note: Callable[[str], None],
) -> dict[str, MeasuredDataset]:
    encoder = TextEncoder(folder)
    found = {}
    for done, (name, place) in enumerate(places.items()):
        if on_progress:
            on_progress(done / len(places), name)
        form = options.forms.get(trained[name], options.form)
        rules = ReadingRules(longest=longest, form=form, loss_on=options.loss_on, too_long=options.too_long)
        found[name] = measure_in_order(name, place, encoder, folder, rules, options.num_samples, note)
    if on_progress:
        on_progress(1.0, f"{sum(f.report.samples for f in found.values())} samples")
    return found


def _fields(name: str, place: str, found: MeasuredDataset, options: NewInstanceOptions, output: Path) -> dict[str, Any]:
    """Return a dataset as the instance file has it."""
    report = found.report
    data = TrainingData(
        source=place,
        form=report.form.value,
        loss_on=None if report.loss_on is None else report.loss_on.value,
        too_long=options.too_long,
    ).fields(output.resolve().parent)
    lengths = {"file": beside(output, LENGTHS).name, "key": name}
    return lengths | {"source": data.pop("source")} | data


def _counts(found: MeasuredDataset) -> str:
    numbers, report = found.statistics, found.report
    gone = left_out(report)
    tokens = f"{numbers['min']:.0f} to {numbers['max']:.0f} tokens, median {numbers['median']:.0f}"
    cut = f", {report.cut} cut" if report.cut else ""
    return f"{report.samples} samples, {tokens}{cut}{f'; left out: {gone}' if gone else ''}"


def _adapters(
    measured: Mapping[str, MeasuredDataset],
    held_out: Collection[str],
    sweep: Mapping[str, tuple[Any, ...]],
    epochs: float | None,
) -> list[NewAdapter]:
    made: list[NewAdapter] = []
    for name, found in measured.items():
        called = adapter_name(name, [adapter.name for adapter in made])
        evaluated_on = evaluation_name(name) if name in held_out else None
        made.append(new_adapter(called, name, found.report.samples, epochs, sweep, evaluated_on))
    return made


def _check(new: NewInstance, output: Path, table: Path, measured: Mapping[str, MeasuredDataset]) -> None:
    """Refuse what could not be read again: before it is written, and not after it."""
    document, _ = expand_sweeps(new.document(), output)
    schema = parse_model(InstanceFile, document, output)
    Instance(
        name=schema.name,
        backbone=schema.backbone,
        cost_table=table,
        gpu_pools=schema.gpu_pools,
        max_sequence_length=schema.max_sequence_length,
        dataset_lengths={n: np.asarray(f.statistics["permutation_1"], dtype=np.int64) for n, f in measured.items()},
        adapters=schema.adapters,
        source=str(output),
    )


def _distribution(measured: Mapping[str, MeasuredDataset]) -> str:
    entries = {name: distribution_entry(found, SEED) for name, found in measured.items()}
    return json.dumps(entries) + "\n"


def _relative(path: Path, output: Path) -> str:
    """Return a path as the instance names it."""
    return Path(os.path.relpath(path.resolve(), output.resolve().parent)).as_posix()
