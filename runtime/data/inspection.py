"""What would be trained: counts of every data set, and samples token by token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.data import summary
from cappuccino.runtime.data.samples import TokenizedDataset, load_datasets
from cappuccino.runtime.encoding.encoder import NO_LOSS
from cappuccino.runtime.encoding.text_encoder import TextEncoder


@dataclass(frozen=True)
class ShownToken:
    """A token of a sample."""

    id: int
    text: str
    """As the tokenizer decodes it alone."""
    learnt: bool
    """Whether it is to be predicted: not the first of a sample, which has nothing before it."""


@dataclass(frozen=True)
class InspectedDataset:
    """What would be trained of a data set."""

    name: str
    source: str
    counts: Mapping[str, Any]
    """Form, rule of the loss, numbers of samples, of tokens, of tokens with loss, and of what was cut or left out."""
    ends: str
    """A sentence on the special tokens that begin and end samples."""
    samples: tuple[tuple[ShownToken, ...], ...]
    """The first ones."""


def inspect_data(
    instance: Instance,
    folder: Path | None,
    backbone: Path,
    vocab_size: int,
    samples: int,
    on_note: Callable[[str], None] | None = None,
) -> list[InspectedDataset]:
    """Read the data of an instance as a run would, and show what is learnt.

    Parameters
    ----------
    instance
        Whose adapters are to be trained.
    folder
        As `load_datasets` takes it.
    backbone
        Folder with the tokenizer.
    vocab_size
        Token ids must be below it.
    samples
        How many samples of each data set are shown.
    on_note
        Told what a run would say.

    Raises
    ------
    InputError
        When a run would refuse the data.
    """
    loaded = load_datasets(instance, folder, backbone, vocab_size, on_note)
    tokenizer = TextEncoder(backbone).tokenizer
    found = []
    for name, dataset in loaded.datasets.items():
        report = loaded.reports[name]
        counts = {
            "form": report.form.value,
            "loss_on": "labels" if report.loss_on is None else report.loss_on.value,
            "samples": report.samples,
            "tokens": report.tokens,
            "loss_tokens": report.loss_tokens,
            "cut": report.cut,
            "dropped": report.dropped,
            "empty": report.empty,
            "without_loss": report.unlearnt,
        }
        shown = tuple(_shown(dataset, n, tokenizer) for n in range(min(samples, report.samples)))
        ends = summary.edges_in_words(report, tokenizer)
        found.append(InspectedDataset(name, loaded.sources[name], counts, ends, shown))
    return found


def instance_of_dataset(instance: Instance, name: str) -> Instance:
    """Return the instance with the adapters of one data set only; InputError where none is trained on it."""
    jobs = [i for i, adapter in enumerate(instance.adapters) if adapter.dataset == name]
    if not jobs:
        known = ", ".join(dict.fromkeys(adapter.dataset for adapter in instance.adapters))
        raise InputError(instance.source, "datasets", f'no adapter is trained on "{name}"', f"name one of {known}")
    return instance.subset(jobs)


def _shown(dataset: TokenizedDataset, number: int, tokenizer: Any) -> tuple[ShownToken, ...]:
    begin, end = (int(x) for x in dataset.offsets[number : number + 2])
    ids, labels = dataset.input_ids[begin:end].tolist(), dataset.labels[begin:end].tolist()
    texts = [tokenizer.decode([token]) for token in ids]
    return tuple(
        ShownToken(token, text, k > 0 and label != NO_LOSS)
        for k, (token, text, label) in enumerate(zip(ids, texts, labels, strict=True))
    )
