"""One stage's program, operation by operation, exactly in the order of the plan.

Shapes: T tokens of a micro-batch, L of them with loss, H hidden size, V vocabulary.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import schedules
from torch.nn.functional import cross_entropy

from cappuccino.plan import EvaluationBatch, MicroBatch, Operation, Replica
from cappuccino.runtime.data.micro_batch import PackedMicroBatch, collate, num_tokens
from cappuccino.runtime.data.samples import AdapterSamples
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining
from cappuccino.runtime.pipeline.clock import DeviceClock
from cappuccino.runtime.pipeline.communication import PlannedCommunicator
from cappuccino.runtime.pipeline.live_batches import LiveBatches
from cappuccino.runtime.pipeline.part_meter import PartMeter
from cappuccino.runtime.pipeline.program import fullest_moment, steps_by_last_backward
from cappuccino.runtime.pipeline.stage import Stage
from cappuccino.runtime.pipeline.step_losses import StepLosses
from cappuccino.runtime.pipeline.stopping import Listener, StopReason, StopSignal

_TAKES_MODEL_TYPE = "model_type" in inspect.signature(schedules.backward_step).parameters
"""Newer versions of megatron-core dropped the argument."""


@dataclass(frozen=True)
class StageRecord:
    """What a stage knows after its program."""

    starts: np.ndarray
    """When every operation that ran began with its input at hand, seconds on the machine's clock, (operations,)."""
    ends: np.ndarray
    """When it ended, likewise."""
    memory_gib: np.ndarray
    """Highest memory use of the process so far, after every operation, likewise."""
    skipped: tuple[int, ...]
    """Positions in the program of what did not run, since adapters were stopped."""


class Executor:
    """Runs the program of one stage.

    Parameters
    ----------
    stage
        The layers and adapters of this stage.
    communicator
        Links to the neighbours.
    trainings
        By position in the replica's adapters.
    samples
        Likewise.
    evaluation_samples
        Likewise; None for adapters that are not evaluated.
    replica
        The plan of the replica.
    index
        Which stage this is.
    device
        Where the stage runs.
    peak_memory_gib
        Tells the highest memory use of the process so far.
    on_evaluation
        Called with adapter and step before an evaluation begins: the adapter is as that step has left it.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        communicator: PlannedCommunicator,
        trainings: Sequence[AdapterTraining],
        samples: Sequence[AdapterSamples],
        evaluation_samples: Sequence[AdapterSamples | None],
        replica: Replica,
        index: int,
        device: torch.device,
        peak_memory_gib: Callable[[], float],
        on_evaluation: Callable[[int, int], None] | None = None,
    ) -> None:
        self._stage = stage
        self._communicator = communicator
        self._trainings = trainings
        self._samples = samples
        self._replica = replica
        self._index = index
        self._device = device
        self._peak_memory_gib = peak_memory_gib
        self._meter: PartMeter | None = None
        self._memory_gib: list[float] = []
        self._skipped: list[int] = []
        self._first, self._last = index == 0, index == replica.num_stages - 1
        self._clock = DeviceClock.of(device)
        self._in_flight: dict[int, tuple[torch.Tensor | None, torch.Tensor]] = {}
        self.losses = StepLosses(device)
        """Of the steps made; on the last stage only."""
        self.evaluations = StepLosses(device)
        """On evaluation data, behind steps; likewise."""
        self._evaluated: tuple[int, int] | None = None
        """Adapter and step, while an evaluation runs."""
        self._evaluation_batches = [_evaluation(batch, evaluation_samples) for batch in replica.evaluations]
        planned = [operation[1] for operation in replica.programs[index] if operation[0] == "E"]
        self._last_evaluation = {(replica.evaluations[e].adapter, replica.evaluations[e].step): e for e in planned}
        self._on_evaluation = on_evaluation
        self._listener: Listener | None = None
        self._live = LiveBatches(replica, samples)
        hidden = stage.config.hidden_size
        tokens = {m: num_tokens(batch, samples) for m, batch in enumerate(replica.micro_batches)}
        tokens |= {~e: num_tokens(*both) for e, both in enumerate(self._evaluation_batches)}
        self._shapes = {key: (1, number, hidden) for key, number in tokens.items()}
        self._completed_by = steps_by_last_backward(replica.programs[index], replica, samples)

    def warm_up(self) -> None:
        """Run the micro-batches of the program's fullest moment on this stage alone, and forget what came out.

        First operations are slow, since libraries choose kernels and memory is asked for, and every stage would wait
        for the slowest one's.
        """
        options = {"device": self._device, "dtype": self._stage.config.pipeline_dtype}
        forwarded = []
        tokens = {m: shape[1] for m, shape in self._shapes.items()}
        for micro_batch in fullest_moment(self._replica.programs[self._index], tokens):
            shape = self._shapes[micro_batch]
            received = None if self._first else torch.zeros(shape, requires_grad=True, **options)
            output = self._forward_step(micro_batch, received)
            if not self._last:
                schedules.deallocate_output_tensor(output, self._stage.config.deallocate_pipeline_outputs)
            forwarded.append((received, output, None if self._last else torch.zeros(shape, **options)))
        for tensors in forwarded:
            self._backward_step(*tensors)
        for training in self._trainings:
            training.forget_gradients()
        self.losses.forget()

    def run(
        self,
        listener: Listener,
        meter: PartMeter | None = None,
        pauses: Collection[int] = (),
        on_pause: Callable[[], None] | None = None,
    ) -> StageRecord:
        """Run the program.

        Parameters
        ----------
        listener
            Told of what happens, and asked which adapters are trained on.
        meter
            Measures the parts of every operation; the operations that it weighs besides are those of first steps.
        pauses
            Operations before which `on_pause` is called; the program's length stands for its end.
        on_pause
            Runs between two operations, and may ask for the `record` so far.
        """
        self._meter = self._stage.meter = meter
        self._listener = listener
        program = self._replica.programs[self._index]
        previous = None if self._first else self._replica.programs[self._index - 1]
        self._communicator.follow(program, previous, self._shapes, self._live.steps_before(program))
        self._memory_gib = []
        for position, operation in enumerate(program):
            if on_pause is not None and position in pauses:
                on_pause()
            if self._run(operation):
                self._memory_gib.append(self._peak_memory_gib())
                if operation[0] == "S":
                    listener.on_step(operation[1], operation[2])
            else:
                self._skipped.append(position)
            if operation[0] == "S":
                self._communicator.step()
            listener.on_operation()
        if on_pause is not None and len(program) in pauses:
            on_pause()
        self._communicator.finish()
        for training in self._trainings:
            training.finish()
        return self.record()

    def _run(self, operation: Operation) -> bool:
        """Run an operation, unless the adapters that it is for were stopped; return whether it ran."""
        if not self._live.runs(operation):
            return False
        if operation[0] == "S":
            return self._step(operation[1], operation[2])
        if operation[0] == "E":
            self._evaluate(operation[1])
        elif operation[0] == "F":
            self._forward(operation[1])
        else:
            self._backward(operation[1])
        return True

    def _stop(self, adapter: int, step: int, reason: StopReason) -> None:
        """Take what is still to come of an adapter out of the program."""
        self._trainings[adapter].stop()
        changed = self._live.stop(adapter, step)
        hidden = self._stage.config.hidden_size
        for m, batch in changed.items():
            if batch is not None:
                self._shapes[m] = (1, num_tokens(batch, self._samples), hidden)
        self._communicator.change({m: None if batch is None else self._shapes[m] for m, batch in changed.items()})
        if self._listener is not None:
            self._listener.on_stop(adapter, step, reason)

    def record(self, first: int = 0) -> StageRecord:
        """Return what is known of the operations so far; those before `first` are left out."""
        times = self._clock.times(2 * first).reshape(-1, 2)
        return StageRecord(times[:, 0], times[:, 1], np.array(self._memory_gib[first:]), tuple(self._skipped))

    def _forward(self, micro_batch: int) -> None:
        received = self._communicator.recv_forward(self._shapes[micro_batch], self._first)
        self._clock.mark()
        if self._meter is not None:
            self._meter.begin("F", micro_batch)
        output = self._forward_step(micro_batch, received)
        self._clock.mark()
        self._communicator.send_forward(output, self._last)
        if not self._last:
            schedules.deallocate_output_tensor(output, self._stage.config.deallocate_pipeline_outputs)
        self._in_flight[micro_batch] = (received, output)

    def _evaluate(self, evaluation: int) -> None:
        planned = self._replica.evaluations[evaluation]
        behind = planned.adapter, planned.step
        if self._on_evaluation is not None:
            self._on_evaluation(*behind)
        received = self._communicator.recv_forward(self._shapes[~evaluation], self._first)
        self._clock.mark()
        self._evaluated, meter, self._stage.meter = behind, self._stage.meter, None
        self._stage.eval()
        with torch.no_grad():
            output = self._run_forward(collate(*self._evaluation_batches[evaluation], self._device), received)
        self._stage.train()
        self._evaluated, self._stage.meter = None, meter
        if self._last and self._last_evaluation[behind] == evaluation:
            self.evaluations.complete(*behind)
        self._clock.mark()
        self._communicator.send_forward(output, self._last)

    def _backward(self, micro_batch: int) -> None:
        gradient = self._communicator.recv_backward(self._shapes[micro_batch], self._last)
        self._clock.mark()
        if self._meter is not None:
            self._meter.begin("B", micro_batch)
        received, output = self._in_flight.pop(micro_batch)
        completed = [x for x in self._completed_by.get(micro_batch, ()) if not self._live.stopped(x[0])]
        if self._last:  # before the backward, so that nobody waits for a GPU to be through with it to know the loss
            for adapter, step in completed:
                self.losses.complete(adapter, step)
        returned = self._backward_step(received, output, gradient)
        del received, output, gradient  # to give their memory back takes a while
        if self._meter is not None:
            self._meter.mark("layers")
        self._clock.mark()
        self._communicator.send_backward(returned, self._first)
        for adapter, step in completed:
            signal = StopSignal.GO_ON
            if self._last and self._listener is not None:
                signal = self._listener.stop_signal(adapter, step)
            self._trainings[adapter].gradients_complete(signal)

    def _forward_step(self, micro_batch: int, received: torch.Tensor | None) -> torch.Tensor:
        batch = collate(self._live[micro_batch], self._samples, self._device)
        weighs = self._meter is not None and all(segment.step == 0 for segment in batch.segments)
        with self._meter.weighed(self._stage) if self._meter is not None and weighs else nullcontext():
            return self._run_forward(batch, received)

    def _run_forward(self, batch: PackedMicroBatch, received: torch.Tensor | None) -> torch.Tensor:
        output: torch.Tensor
        output, _ = schedules.forward_step(
            self._forward_function,
            iter([batch]),
            self._stage,
            num_microbatches=1,
            input_tensor=received,
            forward_data_store=[],
            config=self._stage.config,
            cp_group_size=1,
            is_last_stage=self._last,
        )
        return output

    def _backward_step(
        self, received: torch.Tensor | None, output: torch.Tensor, gradient: torch.Tensor | None
    ) -> torch.Tensor | None:
        kind = {"model_type": ModelType.encoder_or_decoder} if _TAKES_MODEL_TYPE else {}
        return schedules.backward_step(received, output, gradient, config=self._stage.config, **kind)

    def _step(self, adapter: int, step: int) -> bool:
        """Make an optimizer step, unless the adapter is to be stopped; return whether it was made."""
        training = self._trainings[adapter]
        reason = training.agree()
        if reason is not None:
            self._stop(adapter, step, reason)
            return False
        training.clip()
        self._clock.mark()
        training.step()
        self._clock.mark()
        return True

    def _forward_function(
        self, batches: Iterator[PackedMicroBatch], model: Stage
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]]:
        batch = next(batches)

        def loss(logits_LV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            # Three values and calculate_per_token_loss: so Megatron leaves the sum as it is.
            logits_LV = logits_LV if logits_LV.dtype == torch.float64 else logits_LV.float()
            losses_L = cross_entropy(logits_LV, batch.targets, reduction="none") * batch.weights.to(logits_LV.dtype)
            for segment in batch.loss_segments:
                part = losses_L.detach()[segment.start : segment.end].double().sum()
                if self._evaluated is not None:
                    self.evaluations.add(*self._evaluated, part)
                else:
                    self.losses.add(segment.adapter, segment.step, part)
            total = losses_L.sum()
            if self._stage.meter is not None:
                self._stage.meter.mark("loss")
            return total, torch.tensor(len(losses_L)), {}

        return model(batch), loss


def _evaluation(
    batch: EvaluationBatch, samples: Sequence[AdapterSamples | None]
) -> tuple[MicroBatch, list[AdapterSamples]]:
    """Return an evaluation micro-batch as one to be collated, with the samples that it is of."""
    mine = samples[batch.adapter]
    if mine is None:
        raise RuntimeError(f"adapter {batch.adapter} is evaluated without data")
    return MicroBatch(samples=tuple((batch.adapter, n) for n in batch.samples)), [mine] * len(samples)
