"""The problem: adapters to train, their sample lengths, and the GPUs that are there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from cappuccino.adapter import MOST_NAME_LENGTH, MOST_STEPS, Adapter, NonNegativeFloat, PositiveFloat, PositiveInt
from cappuccino.documents import read_document
from cappuccino.errors import InputError
from cappuccino.files import Record, parse_model, write_atomically
from cappuccino.lengths import read_length_distribution
from cappuccino.sweep import expand_sweeps
from cappuccino.training_data import FormName, LossRule, TooLong, TrainingData, find_place

__all__ = ["FORMAT", "Adapter", "DatasetSource", "GpuPool", "Instance", "InstanceFile", "name_problem", "save_instance"]

FORMAT = "cappuccino.instance/1"


def name_problem(name: str) -> str | None:
    """Return why a dataset cannot have this name, which names its files in a folder; None where it can.

    A name may have parts, like `organisation/dataset`: folders inside that one.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it has an empty part, or one that leads out of the data folder"
    if any(ord(c) < 32 or ord(c) == 127 or c == "\\" for c in name):
        return "it has a control character or a backslash"
    if any(len(part.encode(errors="surrogatepass")) > MOST_NAME_LENGTH for part in parts):
        return f"a part of it is longer than {MOST_NAME_LENGTH} bytes"
    return None


class GpuPool(Record):
    """GPUs of one type that replicas may be placed on."""

    gpu: str
    """GPU type; rows of the cost table carry the same name."""
    count: PositiveInt
    """How many GPUs of this type there are."""
    memory_gib: PositiveFloat
    """Memory of one GPU, GiB."""
    price_per_hour: NonNegativeFloat | None = None
    """Money per GPU-hour; needed by the objective `cost` only."""


class DatasetSource(Record):
    """A dataset: its sample lengths in training order, given here or by reference, and where its samples are."""

    lengths: tuple[PositiveInt, ...] | None = None
    """Tokens of every sample."""
    file: str | None = None
    """Distribution file, relative to the instance file."""
    key: str | None = None
    """Dataset name inside the file."""
    seed: int | None = None
    """Sampling seed inside the file; by default the only one there, 42 where there are several."""
    permutation: PositiveInt | None = None
    """Permutation inside the file; by default the only one there, 1 where there are several."""
    source: str | None = None
    """Samples: a file or folder, relative to the instance file, or a name on the hub; by default given to `run`."""
    form: FormName | None = None
    """What its rows are; by default recognised by their columns."""
    loss_on: LossRule | None = None
    """Which tokens are learnt; by default the assistant's or the completion's, where the form knows them."""
    too_long: TooLong = "cut"
    """Whether samples longer than `max_sequence_length` are cut to it or dropped."""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetSource":
        if (self.lengths is None) == (self.file is None):
            raise ValueError("Give either `lengths` or `file` with `key`")
        if self.file is not None and self.key is None:
            raise ValueError("Give the `key` of the dataset in `file`")
        if self.lengths is not None and not (self.key is None and self.seed is None and self.permutation is None):
            raise ValueError("Give `key`, `seed` and `permutation` with `file` only")
        if self.lengths is not None and not self.lengths:
            raise ValueError("Give at least one length")
        return self


class InstanceFile(Record):
    """Schema of `cappuccino.instance/1`, before references are resolved."""

    format: Literal["cappuccino.instance/1"]
    name: str
    backbone: str
    """As the rows of the cost table call it."""
    cost_table: str
    """Times and memory, of `profile` or `estimate`; relative to the instance file."""
    gpu_pools: Annotated[tuple[GpuPool, ...], Field(min_length=1)]
    """One per GPU type."""
    max_sequence_length: PositiveInt
    """Tokens; longer samples are cut or dropped."""
    datasets: dict[str, DatasetSource]
    """By name."""
    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1)]
    """What is trained; an entry may be a sweep."""
    layout: Literal["packed", "padded"] = "packed"
    """What a micro-batch costs: its tokens, or its samples times the longest one (for planning only)."""

    @field_validator("datasets")
    @classmethod
    def _names_of_files(cls, datasets: dict[str, DatasetSource]) -> dict[str, DatasetSource]:
        for name in datasets:
            problem = name_problem(name)
            if problem is not None:
                raise ValueError(f"Give dataset {name!r} another name: {problem}")
        return datasets


def _with_steps(adapter: Adapter, at: str, lengths: Mapping[str, np.ndarray], source: str) -> Adapter:
    """Return an adapter whose epochs are steps; InputError at the field `at` where it cannot be trained on the data."""
    if adapter.dataset not in lengths:
        remedy = f"name one of the datasets: {', '.join(lengths) or 'none'}"
        raise InputError(source, f"{at}.dataset", f'"{adapter.dataset}" is not a dataset', remedy)
    if adapter.eval_dataset is not None and adapter.eval_dataset not in lengths:
        remedy = f"name one of the datasets: {', '.join(lengths)}"
        raise InputError(source, f"{at}.eval_dataset", f'"{adapter.eval_dataset}" is not a dataset', remedy)
    size = len(lengths[adapter.dataset])
    if adapter.num_steps is None and adapter.epochs is None and size < adapter.global_batch_size:
        problem = f"one pass over {size} samples holds no batch of {adapter.global_batch_size}"
        raise InputError(source, f"{at}.num_steps", problem, "set num_steps or a smaller global_batch_size")
    resolved = adapter.with_steps(size)
    if resolved.num_steps is not None and resolved.num_steps > MOST_STEPS:
        problem = f"{adapter.epochs} passes over {size} samples are {resolved.num_steps} steps"
        raise InputError(source, f"{at}.epochs", problem, f"give fewer; there may be {MOST_STEPS} steps")
    return resolved


def _not_told(adapter: Adapter) -> set[str]:
    """Return the fields that are left out of digests: epochs are in the steps, others are younger than digests."""
    young = ("eval_dataset", "eval_every", "early_stopping_patience", "early_stopping_threshold")
    return {"epochs", *(name for name in young if not getattr(adapter, name))}


@dataclass(frozen=True)
class Instance:
    """A resolved instance: every dataset's lengths are at hand, every reference is known to be good.

    Raises
    ------
    InputError
        On construction, when references or names contradict each other.
    """

    name: str
    backbone: str
    cost_table: Path
    gpu_pools: tuple[GpuPool, ...]
    max_sequence_length: int
    dataset_lengths: Mapping[str, np.ndarray] = field(repr=False)
    adapters: tuple[Adapter, ...]
    layout: Literal["packed", "padded"] = "packed"
    training_data: Mapping[str, TrainingData] = field(default_factory=dict)
    """By dataset; one that says nothing of its samples may be missing."""
    source: str = "instance"
    """File the instance came from, for messages."""
    begun: Mapping[str, int] = field(default_factory=dict)
    """By adapter, optimizer steps that were done before those here: evaluations count from the first one of all."""

    def __post_init__(self) -> None:
        self._no_duplicates("adapters", [a.name for a in self.adapters])
        self._no_duplicates("gpu_pools", [p.gpu for p in self.gpu_pools])
        resolved = tuple(
            _with_steps(a, f"adapters[{i}]", self.dataset_lengths, self.source) for i, a in enumerate(self.adapters)
        )
        object.__setattr__(self, "adapters", resolved)  # once: nothing below this knows of epochs

    def _no_duplicates(self, name: str, values: list[str]) -> None:
        seen: set[str] = set()
        for i, value in enumerate(values):
            if value in seen:
                raise InputError(self.source, f"{name}[{i}]", f'"{value}" is given twice', "use unique names")
            seen.add(value)

    @classmethod
    def load(cls, path: Path | str) -> "Instance":
        """Read and validate an instance file, JSON or, by its suffix, YAML; sweeps in it are expanded.

        Raises
        ------
        InputError
            Naming file, field, value and remedy.
        """
        path = Path(path)
        document, entries = expand_sweeps(read_document(path), path)
        return cls.from_file_model(parse_model(InstanceFile, document, path), path, entries)

    @classmethod
    def from_file_model(cls, data: InstanceFile, path: Path, entries: Sequence[str] = ()) -> "Instance":
        """Resolve an instance schema.

        Parameters
        ----------
        data
            The schema.
        path
            Where it stands; relative paths in it are relative to its folder.
        entries
            By adapter, the field of the file that it is from; by default they are as in `data`.
        """
        lengths, samples = {}, {}
        for name, source in data.datasets.items():
            if source.lengths is not None:
                values = np.asarray(source.lengths, dtype=np.int64)
            else:
                assert source.file is not None and source.key is not None  # the schema guarantees it
                file = path.parent / source.file
                values = read_length_distribution(file).lengths(source.key, source.seed, source.permutation)
            fitting = values[values <= data.max_sequence_length]
            dropping = source.too_long == "drop"
            if dropping and not len(fitting):
                problem = f"all {len(values)} lengths are above max_sequence_length {data.max_sequence_length}"
                raise InputError(path, f"datasets.{name}.too_long", problem, 'raise it, or set too_long to "cut"')
            lengths[name] = fitting if dropping else np.minimum(values, data.max_sequence_length)
            place = None if source.source is None else find_place(source.source, path.parent)
            samples[name] = TrainingData(place, source.form, source.loss_on, source.too_long)
        adapters = data.adapters
        if entries:  # so that errors name these
            pairs = zip(adapters, entries, strict=True)
            adapters = tuple(_with_steps(adapter, at, lengths, str(path)) for adapter, at in pairs)
        return cls(
            name=data.name,
            backbone=data.backbone,
            cost_table=path.parent / data.cost_table,
            gpu_pools=data.gpu_pools,
            max_sequence_length=data.max_sequence_length,
            dataset_lengths=lengths,
            adapters=adapters,
            layout=data.layout,
            training_data=samples,
            source=str(path),
        )

    def data_of(self, dataset: str) -> TrainingData:
        """Return where the samples of a dataset are and what is made of them."""
        return self.training_data.get(dataset, TrainingData())

    def num_steps(self, adapter: int) -> int:
        """Return the number of optimizer steps of an adapter."""
        job = self.adapters[adapter]
        return job.num_steps or len(self.dataset_lengths[job.dataset]) // job.global_batch_size

    @cached_property
    def step_lengths(self) -> tuple[np.ndarray, ...]:
        """Sample lengths by adapter, each of shape (steps, global_batch_size), tokens."""
        result = []
        for i, job in enumerate(self.adapters):
            steps = self.num_steps(i)
            lengths = self.dataset_lengths[job.dataset]
            numbers = np.arange(steps * job.global_batch_size) % len(lengths)
            result.append(lengths[numbers].reshape(steps, job.global_batch_size))
        return tuple(result)

    def evaluated_steps(self, adapter: int) -> tuple[int, ...]:
        """Return the optimizer steps of an adapter after which it is evaluated, ascending."""
        job, last = self.adapters[adapter], self.num_steps(adapter) - 1
        if job.eval_dataset is None:
            return ()
        begun = self.begun.get(job.name, 0)
        every = job.eval_every or begun + last + 1
        return tuple(j for j in range(last + 1) if j == last or (begun + j + 1) % every == 0)

    def evaluation_lengths(self, adapter: int) -> np.ndarray:
        """Return the tokens of the samples that an adapter is evaluated on, shape (samples,); none without data."""
        name = self.adapters[adapter].eval_dataset
        return np.zeros(0, np.int64) if name is None else self.dataset_lengths[name]

    def sample_length(self, adapter: int, number: int) -> int:
        """Return the tokens of sample `number` (0, 1, ... in training order) of an adapter."""
        batch = self.adapters[adapter].global_batch_size
        return int(self.step_lengths[adapter][number // batch, number % batch])

    def adapter_index(self, name: str) -> int:
        """Return the position of the adapter called `name`; KeyError when there is none."""
        return self._positions[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {a.name: i for i, a in enumerate(self.adapters)}

    def pool(self, gpu: str) -> GpuPool:
        """Return the pool of a GPU type; KeyError when there is none."""
        for pool in self.gpu_pools:
            if pool.gpu == gpu:
                return pool
        raise KeyError(gpu)

    def subset(self, adapters: list[int]) -> "Instance":
        """Return the instance with these adapters only, in the given order."""
        return replace(self, adapters=tuple(self.adapters[i] for i in adapters))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that a plan depends on except the costs; plans carry it."""
        used = {name for a in self.adapters for name in (a.dataset, a.eval_dataset) if name is not None}
        content: dict[str, Any] = {
            "backbone": self.backbone,
            "gpu_pools": [p.model_dump() for p in self.gpu_pools],
            "max_sequence_length": self.max_sequence_length,
            "layout": self.layout,
            "lengths": {k: v.tolist() for k, v in sorted(self.dataset_lengths.items()) if k in used},
            "adapters": [a.model_dump(exclude=_not_told(a)) for a in self.adapters],
        }
        rules = {name: self.data_of(name).rules for name in sorted(used)}
        if any(rules.values()):  # else as it always was
            content["training_data"] = {name: found for name, found in rules.items() if found}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_instance(instance: Instance, path: Path) -> None:
    """Write an instance file with all lengths in it; the cost table is named relative to the file where possible."""
    table = instance.cost_table.resolve()
    folder = path.resolve().parent
    document = {
        "format": FORMAT,
        "name": instance.name,
        "backbone": instance.backbone,
        "cost_table": str(table.relative_to(folder) if table.is_relative_to(folder) else table),
        "gpu_pools": [p.model_dump(exclude_none=True) for p in instance.gpu_pools],
        "max_sequence_length": instance.max_sequence_length,
        "layout": instance.layout,
        "datasets": {
            name: {"lengths": lengths.tolist()} | instance.data_of(name).fields(folder)
            for name, lengths in instance.dataset_lengths.items()
        },
        "adapters": [a.model_dump(mode="json", exclude_none=True) for a in instance.adapters],
    }
    write_atomically(path, json.dumps(document, indent=1) + "\n")
