"""Events of a run, one line of JSON each, and how the last stage of a replica writes them; needs no torch."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cappuccino.files import Record
from cappuccino.runtime.launch.lines import LineWriter

if TYPE_CHECKING:
    from cappuccino.runtime.data.samples import AdapterSamples
    from cappuccino.runtime.pipeline.adapter_training import AdapterTraining
    from cappuccino.runtime.pipeline.step_losses import StepLosses

METRICS = "metrics.jsonl"
"""Name of the file of events, in a run's output folder and in the results of a replica."""


class MetricEvent(Record):
    """Something that happened to an adapter."""

    time_s: float
    """When its figures were known: seconds from the run's first operation; as a stage writes it, on the machine's
    monotonic clock.
    """
    adapter: str
    """Name of the adapter."""
    step: int
    """Optimizer step, from 0."""
    kind: Literal["train", "eval", "checkpoint", "stop", "done"]
    """`train`: an optimizer step was made."""
    loss: float | None
    """Mean cross-entropy over the loss tokens of the step's global batch; None where it is not finite."""
    learning_rate: float | None
    """That the step was made with."""
    grad_norm: float | None
    """Norm of the adapter's gradients before clipping; None for adapters that are not clipped, and where it is not
    finite.
    """
    tokens: int
    """Trained so far by this adapter."""


class ReplicaStart(Record):
    """First line that the last stage of a replica writes."""

    began_s: float
    """When its first operation was due, on the machine's monotonic clock."""


class MetricsRecorder:
    """Writes an event for every optimizer step of a replica, on its last stage.

    Parameters
    ----------
    file
        To append the lines to.
    adapters
        Names, by position in the replica.
    trainings, samples
        Likewise.
    losses
        Of the stage.
    """

    def __init__(
        self,
        file: Path,
        adapters: Sequence[str],
        trainings: Sequence["AdapterTraining"],
        samples: Sequence["AdapterSamples"],
        losses: "StepLosses",
    ) -> None:
        self._writer = LineWriter(file)
        self._adapters, self._trainings, self._samples, self._losses = adapters, trainings, samples, losses
        self._made: dict[tuple[int, int], tuple[float | None, float | None]] = {}
        self._tokens = [0] * len(adapters)

    def begin(self) -> None:
        """Note that the program begins."""
        self._writer.write(ReplicaStart(began_s=time.perf_counter()))

    def on_step(self, adapter: int, step: int) -> None:
        """Remember what is known of a step that was just made."""
        training = self._trainings[adapter]
        self._made[adapter, step] = training.learning_rate, training.grad_norm

    def write(self, *, wait: bool = False) -> None:
        """Write the events of the steps whose loss is known.

        Parameters
        ----------
        wait
            Whether to wait until that of every step made is.
        """
        for adapter, step, loss in self._losses.take(wait=wait):
            learning_rate, norm = self._made.pop((adapter, step))
            source = self._samples[adapter]
            first = step * source.global_batch_size
            numbers = range(first, first + source.global_batch_size)
            self._tokens[adapter] += sum(len(source.tokens(number)[0]) for number in numbers)
            event = MetricEvent(
                time_s=time.perf_counter(),
                adapter=self._adapters[adapter],
                step=step,
                kind="train",
                loss=_finite(loss),
                learning_rate=learning_rate,
                grad_norm=_finite(norm),
                tokens=self._tokens[adapter],
            )
            self._writer.write(event)


def first_not_finite(losses: Sequence[float]) -> int | None:
    """Return the first step whose loss is not finite, from which on the adapter is lost; None where all are."""
    return next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)


def _finite(value: float | None) -> float | None:
    """Return what JSON has a number for."""
    return value if value is not None and math.isfinite(value) else None
