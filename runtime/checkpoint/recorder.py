"""What a stage writes of its adapters while they train.

Copies are taken between two operations; a thread writes them, so that the pipeline goes on. The queue to it is short:
where writing is slower than training, training waits rather than filling the memory.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from safetensors.torch import save

from cappuccino.errors import InputError
from cappuccino.files import write_atomically
from cappuccino.runtime.checkpoint.manifest import CheckpointPart, Origin, StageFiles
from cappuccino.runtime.checkpoint.store import CheckpointStore, part_file
from cappuccino.runtime.lora.export import plain_fields
from cappuccino.runtime.lora.multi_lora import MultiLora
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining

_WAITING = 2
"""Copies that may wait for the disk."""


@dataclass(frozen=True)
class RecordedAdapter:
    """What a stage has to know of an adapter to write its checkpoints."""

    origin: Origin
    """Its run; tells its steps as well."""
    every: int | None
    """Steps between checkpoints; None: at the last step only."""
    losses: tuple[float | None, ...]
    """Of the steps that were done before this run."""
    evaluations: Mapping[int, float | None]
    """Of evaluations before this run, by step."""


class CheckpointRecorder:
    """Writes a stage's part of the checkpoints that are due.

    Parameters
    ----------
    store
        Where they go.
    stage
        Index of the stage.
    layers
        Its decoder layers: first, and the one after the last.
    num_layers
        Of the whole backbone.
    adapters
        By position in the replica's adapters.
    lora, trainings
        Their weights and optimizers on this stage.
    loss
        Returns the loss of (adapter, step); None but on the last stage.
    evaluations
        Returns an adapter's losses on evaluation data by step.
    asked
        Once it is set, a checkpoint of every adapter is due after each of its steps. Stages see it at different
        moments; with every step there is one that all of them write.
    on_part
        Called by the writing thread after every part.
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        stage: int,
        layers: tuple[int, int],
        num_layers: int,
        adapters: Sequence[RecordedAdapter],
        lora: MultiLora,
        trainings: Sequence[AdapterTraining],
        loss: Callable[[int, int], float] | None,
        evaluations: Callable[[int], Mapping[int, float]],
        asked: threading.Event,
        on_part: Callable[[], None],
    ) -> None:
        self._store, self._stage, self._layers, self._num_layers = store, stage, layers, num_layers
        self._adapters, self._lora, self._trainings = adapters, lora, trainings
        self._loss, self._evaluations, self._on_part = loss, evaluations, on_part
        self._losses = [list(adapter.losses) for adapter in adapters]
        self._asked = asked
        self._written = [len(adapter.losses) or None for adapter in adapters]
        """Steps of the newest checkpoint, where there is one."""
        self._error: Exception | None = None
        self._queue: Queue[_Copy | None] = Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def on_step(self, position: int, step: int) -> None:
        """Write the part of an adapter's checkpoint where one is due after optimizer step `step`.

        Raises
        ------
        InputError
            When an earlier one could not be written.
        """
        self._raise_error()
        adapter, done = self._adapters[position], step + 1
        last = done == adapter.origin.training.adapter.num_steps
        if last or (adapter.every is not None and (self._asked.is_set() or done % adapter.every == 0)):
            self._write_state(position, done)

    def on_stop(self, position: int, step: int) -> None:
        """Write the part of an adapter's last checkpoint when it is stopped instead of making step `step`.

        Raises
        ------
        InputError
            When an earlier one could not be written.
        """
        self._raise_error()
        if self._written[position] != step:
            self._write_state(position, step)

    def _write_state(self, position: int, done: int) -> None:
        self._written[position] = done
        self._queue.put(self._copy(position, done))

    def close(self) -> None:
        """Wait until everything is written.

        Raises
        ------
        InputError
            When something could not be.
        """
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _copy(self, position: int, done: int) -> "_Copy":
        adapter = self._adapters[position]
        weights = {name: _copied(tensor) for name, tensor in self._lora.state_dict(position).items()}
        names = self._lora.named_parameters(position)
        moments, schedule = self._trainings[position].state()
        optimizer = {
            f"{name}.{kind}": _copied(tensor)
            for name, state in zip(names, moments, strict=True)
            for kind, tensor in state.items()
        }
        losses = None
        if self._loss is not None:
            known = self._losses[position]
            values = (self._loss(position, step) for step in range(len(known), done))
            known += [value if math.isfinite(value) else None for value in values]
            losses = tuple(known)
        return _Copy(
            origin=adapter.origin,
            step=done,
            tensors={kind: found for kind, found in (("weights", weights), ("optimizer", optimizer)) if found},
            schedule=schedule,
            losses=losses,
            evaluations=dict(adapter.evaluations)
            | {j: x if math.isfinite(x) else None for j, x in self._evaluations(position).items()},
            peft=plain_fields(self._lora.configs[position]),
        )

    def _write_all(self) -> None:
        while (copy := self._queue.get()) is not None:
            if self._error is not None:
                continue  # so that nobody waits for a place in the queue
            try:
                self._write(copy)
                self._on_part()
            except Exception as error:  # whatever it is, the stage is told at its next step
                self._error = error

    def _write(self, copy: "_Copy") -> None:
        folder = self._store.folder(copy.origin.training.adapter.name, copy.step)
        files = {kind: f"stage-{self._stage}-{kind}.safetensors" for kind in copy.tensors}
        sizes = {}
        for kind, tensors in copy.tensors.items():
            content = save(tensors)
            _write(folder / files[kind], content)
            sizes[files[kind]] = len(content)
        part = CheckpointPart(
            origin=copy.origin,
            step=copy.step,
            num_layers=self._num_layers,
            stage=StageFiles(layers=self._layers, files=files, sizes=sizes),
            schedule=copy.schedule,
            losses=copy.losses,
            evaluations=copy.evaluations,
            peft=copy.peft,
        )
        _write(folder / part_file(self._stage), part.model_dump_json() + "\n")


@dataclass(frozen=True)
class _Copy:
    """State of an adapter on the CPU, which training does not change any more."""

    origin: Origin
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    schedule: dict[str, Any] | None
    losses: tuple[float | None, ...] | None
    evaluations: dict[int, float | None]
    peft: dict[str, Any]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_atomically(path, content)
    except InputError as error:
        raise InputError(path, "", error.problem, "free space, or correct the folder's rights") from error
