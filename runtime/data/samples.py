"""Training samples from the user's folder, checked against the lengths that the plan was made for; needs no torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.data.columns import NO_LOSS, OtherColumns
from cappuccino.runtime.data.sample_files import Row, find_samples, read_rows
from cappuccino.runtime.data.text_encoder import TextEncoder


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


def load_datasets(
    instance: Instance,
    folder: Path,
    backbone: Path,
    vocab_size: int,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, TokenizedDataset]:
    """Read and check the data of every dataset that an adapter of the instance trains on.

    A dataset is `<name>.jsonl` or `<name>.parquet`, row n being sample n: `input_ids` and optionally `labels`, or
    `text`, which the backbone's tokenizer turns into tokens, with an end-of-sequence token where the lengths count one.
    Masks, positions and boundaries of samples are refused where they say something that training would not honour.

    Parameters
    ----------
    instance
        Says which lengths the samples must have.
    folder
        Where the files are.
    backbone
        Folder with the tokenizer.
    vocab_size
        Token ids must be below it.
    on_note
        Told what a file holds that is not used, and of texts without an end.

    Raises
    ------
    InputError
        When a file is missing, a row is malformed or has another length than the instance says, or an optimizer step
        would have no token to learn from.
    """
    if not folder.is_dir():
        raise InputError(folder, "", "is not a folder", "name the folder that holds a file per dataset")
    needed: dict[str, int] = {}
    for i, job in enumerate(instance.adapters):
        used = min(instance.num_steps(i) * job.global_batch_size, len(instance.dataset_lengths[job.dataset]))
        needed[job.dataset] = max(needed.get(job.dataset, 0), used)
    datasets = {}
    for name, count in needed.items():
        file = find_samples(folder, name)
        lengths = instance.dataset_lengths[name][:count]
        rows = _samples(file, lengths, instance.max_sequence_length, backbone, on_note or (lambda note: None))
        datasets[name] = _tokenized(file, rows, lengths, instance.max_sequence_length, vocab_size)
    for i, job in enumerate(instance.adapters):
        samples = adapter_samples(instance, i, datasets)
        for step in range(instance.num_steps(i)):
            if samples.loss_tokens(step) == 0:
                problem = f"optimizer step {step} of adapter {job.name} has no token to learn from"
                remedy = "give labels other than -100, or a larger global_batch_size"
                raise InputError(find_samples(folder, job.dataset), "labels", problem, remedy)
    return datasets


def adapter_samples(instance: Instance, adapter: int, datasets: Mapping[str, TokenizedDataset]) -> AdapterSamples:
    """Return the samples of an adapter by its position in the instance."""
    job = instance.adapters[adapter]
    return AdapterSamples(datasets[job.dataset], len(instance.dataset_lengths[job.dataset]), job.global_batch_size)


def _samples(
    file: Path, lengths: np.ndarray, longest: int, backbone: Path, on_note: Callable[[str], None]
) -> Iterator[tuple[Any, Any]]:
    """Yield token ids, and labels or None, of the first rows, as many as there are lengths."""
    count, rows = len(lengths), read_rows(file)
    first = next(rows, None)
    form = next((c for c in ("input_ids", "text") if first is not None and c in first), None)
    if first is not None and form is None:
        problem = f"has neither the field input_ids nor text (fields: {', '.join(first) or 'none'})"
        raise InputError(file, "", problem, "add one of them to every row")
    used = ("input_ids", "labels") if form == "input_ids" else ("text",)
    others, found = OtherColumns(used, longest), 0
    numbered = enumerate(islice(chain([] if first is None else [first], rows), count))
    if form == "input_ids":
        samples = _token_rows(file, numbered, others)
    else:
        samples = _text_rows(file, numbered, others, lengths, longest, backbone, on_note)
    for sample in samples:
        yield sample
        found += 1
    if found < count:
        problem = f"holds {found} rows, the instance uses {count}"
        raise InputError(file, "", problem, "add rows, or correct the dataset's lengths in the instance")
    if others.unused:
        on_note(f"{file}: not used: {', '.join(sorted(others.unused))}")


def _token_rows(
    file: Path, rows: Iterable[tuple[int, Row]], others: OtherColumns
) -> Iterator[tuple[list[int], list[int] | None]]:
    """Yield token ids and labels of rows of tokens."""
    labelled = None
    for number, row in rows:
        at, ids, labels = f"row {number}", row.get("input_ids"), row.get("labels")
        if not isinstance(ids, list):
            raise InputError(file, f"{at}: input_ids", "is no list of integers", "give token ids")
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(ids)):
            many = f"{len(labels)} labels for {len(ids)} input_ids" if isinstance(labels, list) else "labels is no list"
            raise InputError(file, at, many, "give a label for every token, -100 for no loss")
        labelled = labels is not None if labelled is None else labelled
        if (labels is not None) != labelled:
            problem = f"labels are {'missing' if labelled else 'given'}, of row 0 they are not"
            raise InputError(file, at, problem, "give labels in all rows or in none")
        found = others.problem_beside_tokens(row, labels)
        if found is not None:
            raise InputError(file, at, *found)
        yield ids, labels


def _text_rows(
    file: Path,
    rows: Iterable[tuple[int, Row]],
    others: OtherColumns,
    lengths: np.ndarray,
    longest: int,
    backbone: Path,
    on_note: Callable[[str], None],
) -> Iterator[tuple[list[int], None]]:
    """Yield the tokens of texts, with an end-of-sequence token if the first length that can tell counts one."""
    encoder: TextEncoder | None = None
    counted: bool | None = None
    for number, row in rows:
        at, text = f"row {number}", row.get("text")
        if not isinstance(text, str):
            raise InputError(file, at, f"text is {text!r}", "give a string")
        found = others.problem_beside_text(row)
        if found is not None:
            raise InputError(file, at, *found)
        encoder = encoder or TextEncoder(backbone)
        (sample,) = encoder.encode([text])
        if counted is None and sample.end_added and len(sample.ids) <= longest:
            counted = int(lengths[number]) != len(sample.ids) - 1
            if not counted:
                note = f"no {encoder.end} is added, as the lengths of the instance count none"
                on_note(f"{file}: {note}: adapters do not learn where to stop")
        yield sample.ids if counted in (None, True) else sample.bare, None


def _tokenized(
    file: Path,
    rows: Iterator[tuple[list[int], list[int] | None]],
    lengths: Sequence[int] | np.ndarray,
    longest: int,
    vocab_size: int,
) -> TokenizedDataset:
    """Check every row and cut it to `longest` tokens."""
    ids_parts, label_parts = [], []
    for number, ((raw_ids, raw_labels), expected) in enumerate(zip(rows, lengths, strict=True)):
        at = f"row {number}"
        ids = _integers(raw_ids, file, f"{at}: input_ids")
        labels = ids if raw_labels is None else _integers(raw_labels, file, f"{at}: labels")
        ids, labels = ids[:longest], labels[:longest]
        if len(ids) != expected:
            problem = f"has {len(ids)} tokens (cut at {longest}), the instance says {expected}"
            raise InputError(file, at, problem, "correct the dataset's lengths in the instance and plan again")
        _in_vocabulary(ids, ids >= 0, vocab_size, file, f"{at}: input_ids")
        _in_vocabulary(labels, (labels >= 0) | (labels == NO_LOSS), vocab_size, file, f"{at}: labels")
        ids_parts.append(ids)
        label_parts.append(labels)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in ids_parts])]).astype(np.int64)
    return TokenizedDataset(np.concatenate(ids_parts), np.concatenate(label_parts), offsets)


def _integers(values: object, file: Path, at: str) -> np.ndarray:
    """Return a row's list as int64, shape (length,)."""
    try:
        array = np.asarray(values if isinstance(values, list) else None)
    except ValueError:  # lists of lists of unlike lengths
        array = np.array(None)
    if array.size and array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64)
    if isinstance(values, list) and not values:
        return np.zeros(0, dtype=np.int64)
    raise InputError(file, at, "is no list of integers", "give token ids")


def _in_vocabulary(values: np.ndarray, allowed: np.ndarray, vocab_size: int, file: Path, at: str) -> None:
    wrong = np.flatnonzero(~(allowed & (values < vocab_size)))
    if len(wrong):
        problem = f"{values[wrong[0]]} is no token of the backbone (vocabulary {vocab_size})"
        raise InputError(file, at, problem, "tokenise with the backbone's own tokenizer")
