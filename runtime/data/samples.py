"""Training samples from the user's files, checked against the lengths that the plan was made for; needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.data.reading import ReadingReport, ReadingRules, SampleReader
from cappuccino.runtime.data.sample_files import find_samples
from cappuccino.runtime.data.sources import Source, open_source
from cappuccino.runtime.data.summary import left_out, unused
from cappuccino.runtime.encoding.encoder import NO_LOSS
from cappuccino.runtime.encoding.forms import Form, LossOn


@dataclass(frozen=True)
class TokenizedDataset:
    """Token ids and labels of all samples one after another."""

    input_ids: np.ndarray
    """Shape (tokens,), int64."""
    labels: np.ndarray
    """Likewise; `NO_LOSS` where a token is not to be predicted."""
    offsets: np.ndarray
    """First token of every sample and the end, shape (samples + 1,), int64."""

    def save(self, stem: Path) -> None:
        """Write the arrays next to each other, as `stem` with the name of the array."""
        for name in ("input_ids", "labels", "offsets"):
            np.save(f"{stem}-{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, stem: Path) -> "TokenizedDataset":
        """Map what `save` wrote into memory; only the samples used are read."""
        names = ("input_ids", "labels", "offsets")
        return cls(*(np.load(f"{stem}-{name}.npy", mmap_mode="r", allow_pickle=False) for name in names))


@dataclass(frozen=True)
class AdapterSamples:
    """The samples of one adapter in its training order."""

    dataset: TokenizedDataset
    num_lengths: int
    """Samples after which the training order starts again."""
    global_batch_size: int
    """Samples per optimizer step."""

    def step(self, number: int) -> int:
        """Return the optimizer step that sample `number` trains."""
        return number // self.global_batch_size

    def tokens(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and labels of sample `number`, each of shape (length,)."""
        start, end = self.dataset.offsets[number % self.num_lengths :][:2]
        return self.dataset.input_ids[start:end], self.dataset.labels[start:end]

    def loss_tokens(self, step: int) -> int:
        """Return how many tokens of a step's global batch are to be predicted."""
        first = step * self.global_batch_size
        samples = range(first, first + self.global_batch_size)
        # The first token of a sample has nothing before it to be predicted from.
        return sum(int((self.tokens(n)[1][1:] != NO_LOSS).sum()) for n in samples)


@dataclass(frozen=True)
class LoadedData:
    """The samples of all datasets, and what was found in their sources."""

    datasets: Mapping[str, TokenizedDataset]
    """By name, those that adapters train on."""
    reports: Mapping[str, ReadingReport]
    sources: Mapping[str, str]
    """Where each was read from."""


def load_datasets(
    instance: Instance,
    folder: Path | None,
    backbone: Path,
    vocab_size: int,
    on_note: Callable[[str], None] | None = None,
) -> LoadedData:
    """Read and check the data of every dataset that an adapter of the instance trains on.

    Sample n is row n, but for rows that are left out: those too long, where the instance says so, and, but for rows of
    tokens and of text in a folder, those without a token to learn from. Texts and chats are tokenised with the
    backbone's tokenizer, an end-of-sequence token added where they have no end and the lengths count one.

    Parameters
    ----------
    instance
        Says which lengths the samples must have.
    folder
        Where the files are, each named after its dataset; None: every dataset names its source.
    backbone
        Folder with the tokenizer.
    vocab_size
        Token ids must be below it.
    on_note
        Told what a source holds that is not used, what was left out, and of texts without an end.

    Raises
    ------
    InputError
        When a source is missing, a row is malformed or has another length than the instance says, or an optimizer step
        would have no token to learn from.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(folder, "", "is not a folder", "name the folder that holds a file per dataset")
    note = on_note or (lambda text: None)
    needed: dict[str, int] = {}
    for i, job in enumerate(instance.adapters):
        used = min(instance.num_steps(i) * job.global_batch_size, len(instance.dataset_lengths[job.dataset]))
        needed[job.dataset] = max(needed.get(job.dataset, 0), used)
        if job.eval_dataset is not None:
            needed[job.eval_dataset] = len(instance.dataset_lengths[job.eval_dataset])
    sources = {name: _source(instance, name, folder) for name in needed}
    datasets, reports = {}, {}
    for name, many in needed.items():
        data, lengths = instance.data_of(name), instance.dataset_lengths[name][:many]
        rules = ReadingRules(
            longest=instance.max_sequence_length,
            form=None if data.form is None else Form(data.form),
            loss_on=None if data.loss_on is None else LossOn(data.loss_on),
            too_long=data.too_long,
            leave_out=True if folder is None else None,
        )
        reader = SampleReader(sources[name], backbone, rules, note)
        datasets[name] = _tokenized(reader, sources[name].name, lengths, rules, vocab_size)
        reports[name] = reader.report
        for said in (left_out(reader.report), unused(reader.unused)):
            if said:
                note(f"{sources[name].name}: {said}")
    for i, job in enumerate(instance.adapters):
        samples = adapter_samples(instance, i, datasets)
        for step in range(instance.num_steps(i)):
            if samples.loss_tokens(step) == 0:
                problem = f"optimizer step {step} of adapter {job.name} has no token to learn from"
                remedy = "give labels other than -100, or a larger global_batch_size"
                raise InputError(sources[job.dataset].name, "labels", problem, remedy)
        evaluated = evaluation_samples(instance, i, datasets)
        if job.eval_dataset is not None and evaluated is not None and evaluated.loss_tokens(0) == 0:
            problem = f"has no token to evaluate adapter {job.name} on"
            raise InputError(sources[job.eval_dataset].name, "labels", problem, "give labels other than -100")
    return LoadedData(datasets, reports, {name: source.name for name, source in sources.items()})


def evaluation_samples(
    instance: Instance, adapter: int, datasets: Mapping[str, TokenizedDataset]
) -> AdapterSamples | None:
    """Return the samples that an adapter is evaluated on, by its position; None without any."""
    name = instance.adapters[adapter].eval_dataset
    if name is None:
        return None
    number = len(instance.dataset_lengths[name])
    return AdapterSamples(datasets[name], number, number)


def adapter_samples(instance: Instance, adapter: int, datasets: Mapping[str, TokenizedDataset]) -> AdapterSamples:
    """Return the samples of an adapter by its position in the instance."""
    job = instance.adapters[adapter]
    return AdapterSamples(datasets[job.dataset], len(instance.dataset_lengths[job.dataset]), job.global_batch_size)


def _source(instance: Instance, name: str, folder: Path | None) -> Source:
    """Return the samples of a dataset: those in the folder, or else those that the instance names."""
    if folder is not None:
        return open_source(find_samples(folder, name))
    place = instance.data_of(name).source
    if place is None:
        field, remedy = f"datasets.{name}.source", "add it, or name a folder with the samples (--data)"
        raise InputError(instance.source, field, "is not given", remedy)
    return open_source(place)


def _tokenized(
    reader: SampleReader, source: str, lengths: np.ndarray, rules: ReadingRules, vocab_size: int
) -> TokenizedDataset:
    """Return as many samples as there are lengths, each of its length."""
    ids_parts, label_parts = [], []
    samples = reader.samples(count(), len(lengths), lengths)
    for expected, sample in zip(lengths, samples, strict=False):
        at = f"row {sample.row}"
        if len(sample.ids) != expected:
            treated = f"cut at {rules.longest}" if rules.too_long == "cut" else f"none above {rules.longest} kept"
            problem = f"has {len(sample.ids)} tokens ({treated}), the instance says {expected}"
            raise InputError(source, at, problem, "correct the dataset's lengths in the instance and plan again")
        _in_vocabulary(sample.ids, sample.ids >= 0, vocab_size, source, f"{at}: input_ids")
        labels = sample.labels
        _in_vocabulary(labels, (labels >= 0) | (labels == NO_LOSS), vocab_size, source, f"{at}: labels")
        ids_parts.append(sample.ids)
        label_parts.append(labels)
    if len(ids_parts) < len(lengths):
        gone = left_out(reader.report)
        problem = (
            f"holds {len(ids_parts)} rows{f' to train on ({gone})' if gone else ''}, the instance uses {len(lengths)}"
        )
        raise InputError(source, "", problem, "add rows, or correct the dataset's lengths in the instance")
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in ids_parts])]).astype(np.int64)
    return TokenizedDataset(np.concatenate(ids_parts), np.concatenate(label_parts), offsets)


def _in_vocabulary(values: np.ndarray, allowed: np.ndarray, vocab_size: int, source: str, at: str) -> None:
    wrong = np.flatnonzero(~(allowed & (values < vocab_size)))
    if len(wrong):
        problem = f"{values[wrong[0]]} is no token of the backbone (vocabulary {vocab_size})"
        raise InputError(source, at, problem, "tokenise with the backbone's own tokenizer")
