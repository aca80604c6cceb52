"""The folder of a run's checkpoints: `<adapter>/step-<k>/`; needs no torch.

Stages write their parts here; whoever looks after the run makes complete what has all its parts, and removes what is
older. Nothing but a complete checkpoint is ever read, so that it does not matter when writing was cut off.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.files import parse_model, read_json, write_atomically
from cappuccino.runtime.checkpoint.manifest import MANIFEST, Checkpoint, CheckpointPart, joined
from cappuccino.runtime.pipeline.stopping import StopReason

_STEP = re.compile(r"step-(\d+)")


def part_file(stage: int) -> str:
    """Return the name of the file in which a stage says what it wrote."""
    return f"stage-{stage}.json"


class CheckpointStore:
    """Finds, completes and removes checkpoints.

    Parameters
    ----------
    root
        The folder; it need not be there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, adapter: str, step: int) -> Path:
        """Return where the checkpoint of an adapter with so many steps done is."""
        return self.root / adapter / f"step-{step}"

    def adapters(self) -> list[str]:
        """Return the names of the adapters that have a folder here."""
        return sorted(p.name for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []

    def seal(self, adapter: str) -> int | None:
        """Make complete what has all its parts and is newer than what is complete.

        Returns
        -------
        int or None
            The newest complete step.
        """
        newest: int | None = None
        for step in self._steps(adapter):
            folder = self.folder(adapter, step)
            if (folder / MANIFEST).is_file():
                return step if newest is None else newest
            files = sorted(folder.glob("stage-*.json"))
            made = joined([parse_model(CheckpointPart, read_json(file), file) for file in files])
            if made is not None:
                write_atomically(folder / MANIFEST, made.model_dump_json() + "\n")
                for file in files:
                    file.unlink()
                newest = step if newest is None else newest
        return newest

    def mark_stopped(self, checkpoint: Checkpoint, reason: StopReason) -> Checkpoint:
        """Note that an adapter is not trained on from a complete checkpoint; return it so."""
        marked = checkpoint.model_copy(update={"stopped": reason})
        folder = self.folder(checkpoint.adapter.name, checkpoint.step)
        write_atomically(folder / MANIFEST, marked.model_dump_json() + "\n")
        return marked

    def newest(self, adapter: str) -> Checkpoint | None:
        """Return the newest complete checkpoint whose files are all there, None where there is none.

        Raises
        ------
        InputError
            When a manifest is malformed.
        """
        for step in self._steps(adapter):
            folder = self.folder(adapter, step)
            if not (folder / MANIFEST).is_file():
                continue
            found = parse_model(Checkpoint, read_json(folder / MANIFEST), folder / MANIFEST)
            sizes = {folder / name: size for stage in found.stages for name, size in stage.sizes.items()}
            if all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()):
                return found
        return None

    def prune(self, adapter: str, keep: int) -> None:
        """Remove all but the newest complete checkpoints, and incomplete ones before the newest of them.

        Every stage writes the steps of an adapter in their order, so that nobody writes to these any more.

        Parameters
        ----------
        keep
            How many stay.
        """
        kept = 0
        for step in self._steps(adapter):
            folder = self.folder(adapter, step)
            complete = (folder / MANIFEST).is_file()
            if complete and kept < keep:
                kept += 1
            elif kept:
                self._remove(folder)

    def discard_after(self, adapter: str, step: int) -> None:
        """Remove whatever is newer than a step: parts that a run did not complete, or files that are damaged.

        Nobody may write meanwhile.
        """
        for other in self._steps(adapter):
            if other > step:
                self._remove(self.folder(adapter, other))

    def _remove(self, folder: Path) -> None:
        try:
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that what is half removed is not complete
            shutil.rmtree(folder)
        except OSError as error:
            problem = f"cannot be removed ({error.strerror})"
            raise InputError(folder, "", problem, "correct the folder's rights and go on with --resume") from error

    def _steps(self, adapter: str) -> Iterator[int]:
        """Yield the steps that have a folder, newest first."""
        place = self.root / adapter
        if place.is_dir():
            found = (_STEP.fullmatch(p.name) for p in place.iterdir())
            yield from sorted((int(match[1]) for match in found if match), reverse=True)
