"""Looks after what a run leaves behind while it goes on: checkpoints and finished adapters; needs no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.files import write_atomically
from cappuccino.plan import Plan
from cappuccino.runtime.checkpoint.manifest import Checkpoint
from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.launch.model_card import model_card
from cappuccino.runtime.launch.output import OutputFolder
from cappuccino.runtime.lora.adapter_folder import CARD
from cappuccino.runtime.lora.export import join_parts
from cappuccino.runtime.pipeline.stopping import Stop


@dataclass(frozen=True)
class CheckpointOptions:
    """When adapters are written while they train."""

    every: int | None = None
    """Optimizer steps of an adapter between two checkpoints; None: a tenth of its steps."""
    keep: int = 2
    """Checkpoints that stay of an adapter; of a finished one the last."""

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("keep", self.keep)):
            if value is not None and value < 1:
                raise InputError("checkpoints", name, f"{value} is below 1", "give 1 or more")

    def steps(self, num_steps: int) -> int:
        """Return the steps between two checkpoints of an adapter with so many steps."""
        return self.every or math.ceil(num_steps / 10)


class AdapterKeeper:
    """Completes checkpoints, removes older ones, and exports every adapter as soon as its last step is done.

    Parameters
    ----------
    store
        Where the stages write.
    keep
        Checkpoints that stay of an adapter.
    plan
        What is run, for the model cards.
    output
        Where finished adapters go.
    backbone
        What they say that they belong to.
    found
        By adapter, the checkpoint that this run goes on from, where there is one.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int,
        plan: Plan,
        output: OutputFolder,
        backbone: str,
        found: Mapping[str, Checkpoint],
    ) -> None:
        self._store, self._keep, self._plan = store, keep, plan
        self._replicas = {name: replica for replica in plan.replicas for name in replica.adapters}
        self._output, self._backbone = output, backbone
        self._found = found
        self.steps: dict[str, int] = {name: checkpoint.step for name, checkpoint in found.items()}
        """By adapter, the steps of its newest complete checkpoint."""
        self.losses: dict[str, list[float]] = {}
        """By finished adapter, the loss of every step."""
        self.stopped: dict[str, Stop] = {}
        """By adapter that was finished before its last step, what it was."""
        self._stops: dict[str, Stop] = {}

    def export_finished(self) -> None:
        """Write the adapters that were finished before this run, as its end would have done."""
        for checkpoint in self._found.values():
            if checkpoint.finished:
                self._export(checkpoint)

    def stop(self, stops: Mapping[str, Stop]) -> None:
        """Take note of the adapters that are not trained on; they end when their last checkpoint is complete."""
        self._stops.update(stops)

    @property
    def awaits_stopped(self) -> bool:
        """Whether adapters are stopped and not yet exported."""
        return any(name not in self.losses for name in self._stops)

    def look(self, adapters: Iterable[str]) -> None:
        """Take note of what the stages have written of some adapters.

        Raises
        ------
        InputError
            When something cannot be written or removed.
        """
        for name in adapters:
            if name in self.losses:
                continue
            step, stop = self._store.seal(name), self._stops.get(name)
            if step is None or (step == self.steps.get(name) and (stop is None or stop.step != step)):
                continue
            checkpoint = self._store.newest(name)
            if checkpoint is None:
                continue
            if stop is not None and stop.step == checkpoint.step:
                checkpoint = self._store.mark_stopped(checkpoint, stop.reason)
            self.steps[name] = checkpoint.step
            if checkpoint.finished:
                self._export(checkpoint)
            self._store.prune(name, 1 if checkpoint.finished else self._keep)

    def evaluated(self, name: str) -> dict[int, float]:
        """Return an adapter's losses on evaluation data before this run, by step, as its checkpoint has them."""
        return self._found[name].evaluated if name in self._found else {}

    def keep_weights(self, name: str, parts: Sequence[Path]) -> None:
        """Write a finished adapter with other weights than those of its last step.

        Parameters
        ----------
        parts
            Files of the stages.
        """
        checkpoint = self._store.newest(name)
        if checkpoint is not None and checkpoint.finished:
            self._export(checkpoint, parts)

    def _export(self, checkpoint: Checkpoint, parts: Sequence[Path] | None = None) -> None:
        """Write a finished adapter's folder in place of what is there, by default as its last step has left it."""
        job = checkpoint.adapter
        folder = self._store.folder(job.name, checkpoint.step)
        losses = [math.nan if loss is None else loss for loss in checkpoint.losses]
        if parts is None:
            parts = [folder / stage.files["weights"] for stage in checkpoint.stages if "weights" in stage.files]

        def write(target: Path, parts: Sequence[Path] = parts) -> None:
            join_parts(parts, checkpoint.peft, target, self._backbone)
            replica = self._replicas.get(job.name)
            card = model_card(job, losses, checkpoint.stopped, self._plan, replica, self._backbone)
            write_atomically(target / CARD, card)

        if checkpoint.stopped is not None:
            self.stopped[job.name] = Stop(checkpoint.step, checkpoint.stopped)
        self._output.put(job.name, write)
        self.losses[job.name] = losses

    def tidy(self) -> None:
        """Remove what is incomplete, once nobody writes any more."""
        for name in self._store.adapters():
            self._store.discard_after(name, self.steps.get(name, -1))

    def kept(self, resumable: bool) -> str:
        """Say in words what a run that ends early leaves, and how to go on.

        Parameters
        ----------
        resumable
            Whether checkpoints stay.
        """
        said = []
        if self.losses:
            said.append(f"finished in {self._output.out}: {_listed(self.losses)}")
        under_way = {name: step for name, step in self.steps.items() if name not in self.losses}
        if resumable and under_way:
            said.append(f"checkpoints: {_listed(f'{name} (step {step})' for name, step in under_way.items())}")
        if not said:
            return "nothing was kept; run again"
        return "; ".join([*said, "go on by the same command with --resume" if resumable else "the others begin anew"])


_MOST_NAMES = 5


def _listed(names: Iterable[str]) -> str:
    """Return names in a row, the first few where they are many."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
