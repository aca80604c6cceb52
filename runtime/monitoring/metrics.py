"""Events of a run, one line of JSON each, and how the last stage of a replica writes them; needs no torch."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from cappuccino.files import Record
from cappuccino.runtime.monitoring.lines import LineReader, LineWriter
from cappuccino.runtime.pipeline.stopping import StopReason

if TYPE_CHECKING:
    from cappuccino.runtime.data.samples import AdapterSamples
    from cappuccino.runtime.pipeline.adapter_training import AdapterTraining
    from cappuccino.runtime.pipeline.step_losses import StepLosses

METRICS = "metrics.jsonl"
"""Name of the file of events, in a run's output folder and in the results of a replica."""


class MetricEvent(Record):
    """Something that happened to an adapter."""

    time_s: float
    """When its figures were known: seconds from the first operation of the run, or of the one that went on; as a
    stage writes it, on the machine's monotonic clock.
    """
    adapter: str
    """Name of the adapter."""
    step: int
    """Optimizer step, from 0."""
    kind: Literal["train", "eval", "stop"]
    """`train`: an optimizer step was made. `eval`: its weights were evaluated. `stop`: it was not made, and the adapter
    is as the one before has left it.
    """
    loss: float | None
    """Mean cross-entropy over the loss tokens of the step's global batch, or of the evaluation data; None where it is
    not finite.
    """
    learning_rate: float | None
    """That the step was made with; None of an evaluation."""
    grad_norm: float | None
    """Norm of the adapter's gradients before clipping; None for adapters that are not clipped, of an evaluation, and
    where it is not finite.
    """
    tokens: int
    """Trained so far by this adapter."""
    reason: StopReason | None = None
    """Why it was stopped; None of other events."""


class ReplicaStart(Record):
    """First line that the last stage of a replica writes."""

    began_s: float
    """When its first operation was due, on the machine's monotonic clock."""


def read_events(file: Path) -> list[MetricEvent]:
    """Return the events that a run has written so far; a line that is cut off is none."""
    found = []
    for line in LineReader(file).read():
        with suppress(ValidationError):
            found.append(MetricEvent.model_validate_json(line))
    return found


class MetricsRecorder:
    """Writes an event for every optimizer step and evaluation of a replica, on its last stage.

    Parameters
    ----------
    file
        To append the lines to.
    adapters
        Names, by position in the replica.
    trainings, samples
        Likewise.
    losses, evaluations
        Of the stage.
    first
        By position, the first step that is made.
    """

    def __init__(
        self,
        file: Path,
        adapters: Sequence[str],
        trainings: Sequence["AdapterTraining"],
        samples: Sequence["AdapterSamples"],
        losses: "StepLosses",
        evaluations: "StepLosses",
        first: Sequence[int],
    ) -> None:
        self._writer = LineWriter(file)
        self._adapters, self._trainings, self._samples = adapters, trainings, samples
        self._losses, self._evaluations = losses, evaluations
        self._made: dict[tuple[int, int], tuple[float | None, float | None]] = {}
        self._known: list[tuple[int, int, float]] = []
        """Losses of steps that are still to be made, but for those above."""
        self._tokens = [sum(self._tokens_of(a, step) for step in range(done)) for a, done in enumerate(first)]

    def begin(self) -> None:
        """Note that the program begins."""
        self._writer.write(ReplicaStart(began_s=time.perf_counter()))

    def on_step(self, adapter: int, step: int) -> None:
        """Remember what is known of a step that was just made."""
        training = self._trainings[adapter]
        self._made[adapter, step] = training.learning_rate, training.grad_norm

    def on_stop(self, adapter: int, step: int, reason: StopReason) -> None:
        """Write that an adapter was stopped instead of making a step, after all that was known before."""
        self.write(wait=True)
        loss = next((loss for a, j, loss in self._known if (a, j) == (adapter, step)), None)
        self._known = [(a, j, loss) for a, j, loss in self._known if (a, j) != (adapter, step)]
        self._write(adapter, step, "stop", loss, None, self._trainings[adapter].grad_norm, reason)

    def write(self, *, wait: bool = False) -> None:
        """Write the events of the steps and evaluations whose loss is known.

        Parameters
        ----------
        wait
            Whether to wait until all of them are.
        """
        known, self._known = [*self._known, *self._losses.take(wait=wait)], []
        for adapter, step, loss in known:
            if (adapter, step) not in self._made:
                self._known.append((adapter, step, loss))
                continue
            learning_rate, norm = self._made.pop((adapter, step))
            self._tokens[adapter] += self._tokens_of(adapter, step)
            self._write(adapter, step, "train", loss, learning_rate, norm)
        for adapter, step, loss in self._evaluations.take(wait=wait):
            self._write(adapter, step, "eval", loss)

    def _write(
        self,
        adapter: int,
        step: int,
        kind: Literal["train", "eval", "stop"],
        loss: float | None,
        learning_rate: float | None = None,
        norm: float | None = None,
        reason: StopReason | None = None,
    ) -> None:
        event = MetricEvent(
            time_s=time.perf_counter(),
            adapter=self._adapters[adapter],
            step=step,
            kind=kind,
            loss=_finite(loss),
            learning_rate=learning_rate,
            grad_norm=_finite(norm),
            tokens=self._tokens[adapter],
            reason=reason,
        )
        self._writer.write(event)

    def _tokens_of(self, adapter: int, step: int) -> int:
        """Return the tokens of a global batch."""
        source = self._samples[adapter]
        first = step * source.global_batch_size
        return sum(len(source.tokens(number)[0]) for number in range(first, first + source.global_batch_size))


def _finite(value: float | None) -> float | None:
    """Return what JSON has a number for."""
    return value if value is not None and math.isfinite(value) else None
