"""How far the run in a folder has come, and what must not be mixed with it; needs no torch."""

from collections.abc import Collection, Mapping
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.runtime.checkpoint.identity import lengths_digest, require_same, trained_as
from cappuccino.runtime.checkpoint.manifest import MANIFEST, Checkpoint, Origin
from cappuccino.runtime.checkpoint.store import CheckpointStore

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in that of its results."""


def find_checkpoints(out: Path, origins: Mapping[str, Origin]) -> dict[str, Checkpoint]:
    """Return by adapter the newest complete checkpoint, and remove what is incomplete.

    Parameters
    ----------
    out
        Folder of the results.
    origins
        By adapter, what its checkpoint must be from; plan and instance may be others.

    Raises
    ------
    InputError
        When there is none, or one is of another training; nothing was removed.
    """
    store = CheckpointStore(out / CHECKPOINTS)
    names = _adapters(store, origins)
    found: dict[str, Checkpoint] = {}
    for name in names:
        newest = store.newest(name)
        if newest is not None:
            require_same(newest.origin.training, origins[name].training, store.folder(name, newest.step) / MANIFEST)
            found[name] = newest
    for name in names:
        store.discard_after(name, found[name].step if name in found else -1)
    return found


def steps_done(instance: Instance, out: Path) -> dict[str, int]:
    """Return by adapter the steps of its newest complete checkpoint, all of them where it was stopped.

    Adapters without any are left out.

    Parameters
    ----------
    instance
        Whose settings and lengths the checkpoints must be of; backbone and data are looked at when it runs.
    out
        Folder of the run's results.

    Raises
    ------
    InputError
        As of `find_checkpoints`.
    """
    store = CheckpointStore(out / CHECKPOINTS)
    found: dict[str, int] = {}
    names = {job.name: i for i, job in enumerate(instance.adapters)}
    for name in _adapters(store, names):
        newest = store.newest(name)
        if newest is not None:
            stored = newest.origin.training
            settings, lengths = trained_as(instance, names[name]), lengths_digest(instance, names[name])
            own = stored.model_copy(update={"adapter": settings, "lengths_sha256": lengths})
            require_same(stored, own, store.folder(name, newest.step) / MANIFEST)
            found[name] = newest.steps_past
    return found


def _adapters(store: CheckpointStore, known: Collection[str]) -> list[str]:
    """Return the adapters in a store, their newest checkpoints complete where they can be."""
    names = store.adapters()
    if not names:
        raise InputError(store.root, "", "holds no checkpoint", "run without --resume, or name the folder of that run")
    for name in names:
        if name not in known:
            problem = f'is of an adapter "{name}", which this instance and plan do not have'
            raise InputError(store.root / name, "", problem, "run with those it was made with, or into another folder")
        store.seal(name)
    return names


def require_no_checkpoints(out: Path) -> None:
    """Refuse to begin a run where another one left something to go on from; anything else that one left is removed.

    Raises
    ------
    InputError
        When an adapter in the folder is not finished.
    """
    store = CheckpointStore(out / CHECKPOINTS)
    for name in store.adapters():
        store.seal(name)
        newest = store.newest(name)
        if newest is not None and not newest.finished:
            problem = f'holds checkpoints of a run that did not end (adapter "{name}")'
            raise InputError(store.root, "", problem, "go on with --resume, remove the folder, or name another -o")
    for name in store.adapters():
        store.discard_after(name, -1)
