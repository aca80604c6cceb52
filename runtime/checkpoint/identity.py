"""By what a checkpoint is known to belong to a run; needs no torch."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cappuccino.errors import InputError
from cappuccino.instance import Adapter, Instance
from cappuccino.runtime.checkpoint.manifest import TrainingIdentity
from cappuccino.runtime.data.samples import TokenizedDataset

_ENDS = 1 << 20
"""Bytes that are read of either end of a file of weights, which is too large to be read as a whole for this."""


def backbone_digest(path: Path) -> str:
    """Return a digest of a backbone: its configuration, and size, beginning and end of its files of weights.

    Parameters
    ----------
    path
        Folder of the checkpoint, or the configuration file alone.
    """
    digest = hashlib.sha256()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest.update((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_ENDS))
            stream.seek(max(0, size - _ENDS))
            digest.update(stream.read(_ENDS))
    return digest.hexdigest()


def training_identity(
    instance: Instance, adapter: int, dataset: TokenizedDataset, backbone_sha256: str, dtype: str
) -> TrainingIdentity:
    """Return what the training of an adapter depends on.

    Parameters
    ----------
    adapter
        Its position in the instance.
    dataset
        Its tokens and labels.
    backbone_sha256
        As of `backbone_digest`.
    dtype
        That of the run.
    """
    job = trained_as(instance, adapter)
    used = min(instance.num_steps(adapter) * job.global_batch_size, len(instance.dataset_lengths[job.dataset]))
    end = int(dataset.offsets[used])
    return TrainingIdentity(
        adapter=job,
        lengths_sha256=lengths_digest(instance, adapter),
        data_sha256=_digest(dataset.input_ids[:end], dataset.labels[:end], dataset.offsets[: used + 1]),
        backbone_sha256=backbone_sha256,
        dtype=dtype,
    )


def trained_as(instance: Instance, adapter: int) -> Adapter:
    """Return the settings of an adapter with its steps, and without how it would be split on its own."""
    steps = {"num_steps": instance.num_steps(adapter), "epochs": None}
    return instance.adapters[adapter].model_copy(update={**steps, "micro_batch_size": 1})


def lengths_digest(instance: Instance, adapter: int) -> str:
    """Return a digest of the lengths of an adapter's samples, step by step."""
    return _digest(instance.step_lengths[adapter])


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype=np.int64).data)
    return digest.hexdigest()


def require_same(stored: TrainingIdentity, own: TrainingIdentity, manifest: Path) -> None:
    """Refuse to go on from a checkpoint of another training.

    Raises
    ------
    InputError
        Naming the manifest and whatever differs.
    """
    found = list(_differences(stored, own))
    if found:
        problem = f'is of another training of "{stored.adapter.name}": {"; ".join(found)}'
        raise InputError(manifest, "", problem, "run with what it was made with, or into another folder")


def _differences(stored: TrainingIdentity, own: TrainingIdentity) -> Iterator[str]:
    for name in type(own.adapter).model_fields:
        before, now = getattr(stored.adapter, name), getattr(own.adapter, name)
        if before != now:
            yield f"{name} was {before}, now {now}"
    if stored.dtype != own.dtype:
        yield f"dtype was {stored.dtype}, now {own.dtype}"
    if stored.backbone_sha256 != own.backbone_sha256:
        yield "the backbone is another"
    if stored.lengths_sha256 != own.lengths_sha256:
        yield "the lengths of the samples are others"
    elif stored.data_sha256 != own.data_sha256:
        yield "the training data are others"
