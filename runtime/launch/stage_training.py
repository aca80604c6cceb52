"""The training of one stage: what it is built of, what it writes on the way, what it measured."""

import math
import resource
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from cappuccino.plan import Recompute
from cappuccino.runtime.backbone.part import BackbonePart
from cappuccino.runtime.checkpoint.manifest import Checkpoint
from cappuccino.runtime.checkpoint.recorder import CheckpointRecorder, RecordedAdapter
from cappuccino.runtime.checkpoint.restore import read_checkpoint, restore
from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.data.samples import AdapterSamples, TokenizedDataset
from cappuccino.runtime.launch.protocol import PATIENCE, StageProgress
from cappuccino.runtime.launch.results import StageReport
from cappuccino.runtime.launch.specification import JobSpecification, ReplicaSpecification
from cappuccino.runtime.lora.export import write_part
from cappuccino.runtime.lora.multi_lora import MultiLora
from cappuccino.runtime.monitoring.journal import JournalEntry, journal_file
from cappuccino.runtime.monitoring.lines import LineWriter
from cappuccino.runtime.monitoring.metrics import METRICS, MetricsRecorder
from cappuccino.runtime.pipeline.adapter_training import AdapterTraining
from cappuccino.runtime.pipeline.communication import PlannedCommunicator
from cappuccino.runtime.pipeline.executor import Executor
from cappuccino.runtime.pipeline.part_meter import PartMeter
from cappuccino.runtime.pipeline.reference import ReferenceKernel
from cappuccino.runtime.pipeline.stage import Stage
from cappuccino.runtime.pipeline.stopping import StopReason, StopSignal, out_of_patience


def train_stage(
    specification: ReplicaSpecification,
    stage: int,
    progress: StageProgress,
    asked: threading.Event,
    device: torch.device,
) -> StageReport:
    """Build a stage and run its program.

    Parameters
    ----------
    specification
        Of the replica.
    stage
        Which stage.
    progress
        Told of every operation.
    asked
        Set when checkpoints are wanted after every step.
    device
        Where it runs.
    """
    replica, jobs = specification.replica, specification.jobs
    dtype: torch.dtype = getattr(torch, specification.dtype)
    first_layer = sum(specification.layers_per_stage[:stage])
    layers = range(first_layer, first_layer + specification.layers_per_stage[stage])
    part = BackbonePart(specification.backbone, layers, device, dtype)
    lora = MultiLora(part, [job.adapter for job in jobs])

    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=replica.num_stages)
    pipeline = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["pp"]).pp
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    config = TransformerConfig(
        num_layers=max(sum(specification.layers_per_stage), replica.num_stages),
        hidden_size=part.model.config.hidden_size,
        num_attention_heads=part.model.config.num_attention_heads,
        pipeline_model_parallel_size=replica.num_stages,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        use_cpu_initialization=True,
    )
    lookahead = 1 if device.type == "cuda" else 2  # a posted NCCL receive occupies the GPU until it is served
    communicator = PlannedCommunicator(pipeline, config, device, lookahead)
    starts = [None if job.start is None else read_checkpoint(job.start) for job in jobs]
    trainings = [
        _training(job, start, k, lora, control) for k, (job, start) in enumerate(zip(jobs, starts, strict=True))
    ]
    samples = [
        AdapterSamples(TokenizedDataset.load(job.data), job.num_lengths, job.adapter.global_batch_size) for job in jobs
    ]

    def kept(adapter: int, step: int) -> None:
        write_part(lora, adapter, stage, specification.results, step)

    meter = PartMeter(device) if specification.measure_parts else None
    executor = Executor(
        stage=Stage(config, part, lora, replica.recompute is Recompute.FULL),
        communicator=communicator,
        trainings=trainings,
        samples=samples,
        evaluation_samples=[_evaluated(job) for job in jobs],
        replica=replica,
        index=stage,
        device=device,
        peak_memory_gib=lambda: _peak_memory_gib(device),
        on_evaluation=kept if specification.keep_evaluated else None,
    )
    if meter is None:  # a profile warms up point by point: the largest ones would hide the memory of the others
        executor.warm_up()
    chronicle = _Chronicle(specification, stage, layers, starts, executor, lora, trainings, samples, asked, progress)
    watched = specification.journal is not None  # then the journal tells how fast the machine is
    dist.barrier(control)  # so that no stage's first operations wait for another's imports
    references = () if watched else ReferenceKernel(device, dtype).samples()
    chronicle.begin()
    try:
        if meter is not None and specification.journal is not None:
            diary = _Diary(specification, stage, executor, meter, control, device, dtype)
            pauses = frozenset(specification.pauses[stage])
            record = executor.run(chronicle, meter, pauses, diary.pause)
        else:
            record = executor.run(chronicle, meter)
        chronicle.finish()
    finally:  # also when another stage is gone: what is complete here may be so there
        chronicle.close()
    dist.barrier(control)  # a stage that left early would cut connections that others still read from
    if not watched:
        references += ReferenceKernel(device, dtype).samples()
    return StageReport(
        starts=tuple(record.starts.tolist()),
        ends=tuple(record.ends.tolist()),
        memory_gib=tuple(record.memory_gib.tolist()),
        skipped=record.skipped,
        parts=meter.costs() if meter else (),
        reference_s=references,
    )


def _training(
    job: JobSpecification, start: Checkpoint | None, position: int, lora: MultiLora, control: dist.ProcessGroup
) -> AdapterTraining:
    """Return an adapter's training, as the checkpoint left it that it goes on from."""
    done = 0 if start is None else start.step
    training = AdapterTraining(job.adapter, job.num_steps, lora.parameters(position), control, done)
    if job.start is not None and start is not None:
        restore(job.start, start, position, lora, training)
    return training


def _evaluated(job: JobSpecification) -> AdapterSamples | None:
    if job.evaluation_data is None:
        return None
    return AdapterSamples(TokenizedDataset.load(job.evaluation_data), job.num_evaluated, job.num_evaluated)


class _Chronicle:
    """Writes what a stage has to tell while it runs: checkpoints, events on the last stage, progress.

    A stage whose times are measured for a profile writes no checkpoints: nobody goes on from it.
    """

    def __init__(
        self,
        specification: ReplicaSpecification,
        stage: int,
        layers: range,
        starts: Sequence[Checkpoint | None],
        executor: Executor,
        lora: MultiLora,
        trainings: Sequence[AdapterTraining],
        samples: Sequence[AdapterSamples],
        asked: threading.Event,
        progress: StageProgress,
    ) -> None:
        replica, last = specification.replica, stage == specification.replica.num_stages - 1
        self._progress, self._executor = progress, executor
        self._stopping = [
            _Stopping(job, start, specification.stops) for job, start in zip(specification.jobs, starts, strict=True)
        ]
        self._recorder: CheckpointRecorder | None = None
        self._metrics: MetricsRecorder | None = None
        if specification.journal is None:
            self._recorder = CheckpointRecorder(
                store=CheckpointStore(specification.checkpoints),
                stage=stage,
                layers=(layers.start, layers.stop),
                num_layers=sum(specification.layers_per_stage),
                adapters=[
                    RecordedAdapter(
                        origin=job.origin,
                        every=job.checkpoint_every,
                        losses=start.losses if start else (),
                        evaluations=start.evaluations if start else {},
                    )
                    for job, start in zip(specification.jobs, starts, strict=True)
                ],
                lora=lora,
                trainings=trainings,
                loss=executor.losses.value if last else None,
                evaluations=executor.evaluations.of,
                asked=asked,
                on_part=progress.wrote_part,
            )
        if last:
            self._metrics = MetricsRecorder(
                specification.results / METRICS,
                replica.adapters,
                trainings,
                samples,
                executor.losses,
                executor.evaluations,
                [start.step if start else 0 for start in starts],
            )

    def begin(self) -> None:
        """Note that the program begins."""
        self._progress.begin()
        if self._metrics:
            self._metrics.begin()

    def on_step(self, adapter: int, step: int) -> None:
        """Note that an optimizer step was made."""
        if self._metrics:
            self._metrics.on_step(adapter, step)
        if self._recorder:
            self._recorder.on_step(adapter, step)

    def stop_signal(self, adapter: int, step: int) -> StopSignal:
        """Return on the last stage whether an adapter is to be stopped instead of making a step.

        Where times are measured for a profile, nobody is: what is learnt does not matter there.
        """
        if self._recorder is None:
            return StopSignal.GO_ON
        loss = self._executor.losses.value(adapter, step)
        return self._stopping[adapter].signal(loss, lambda: self._executor.evaluations.of(adapter))

    def on_stop(self, adapter: int, step: int, reason: StopReason) -> None:
        """Note that an adapter was stopped instead of making a step."""
        if self._metrics:
            self._metrics.on_stop(adapter, step, reason)
        if self._recorder:
            self._recorder.on_stop(adapter, step)

    def on_operation(self) -> None:
        """Note that an operation is finished."""
        if self._metrics:
            self._metrics.write()
        self._progress.advance()

    def finish(self) -> None:
        """Wait for the figures of the last operations."""
        if self._metrics:
            self._metrics.write(wait=True)

    def close(self) -> None:
        """Wait until all checkpoints are written."""
        if self._recorder:
            self._recorder.close()


class _Stopping:
    """Decides whether an adapter is trained on."""

    def __init__(self, job: JobSpecification, start: Checkpoint | None, stops: Path) -> None:
        self._adapter = job.adapter
        self._earlier = start.evaluated if start else {}
        self._asked = stops / job.adapter.name

    def signal(self, loss: float, evaluations: Callable[[], Mapping[int, float]]) -> StopSignal:
        """Return what is to become of a step with this loss, after these evaluations of this run by step."""
        if not math.isfinite(loss):
            return StopSignal.DIVERGED
        patience = self._adapter.early_stopping_patience
        if patience is not None:
            losses = [loss for _, loss in sorted((self._earlier | dict(evaluations())).items())]
            if out_of_patience(losses, patience, self._adapter.early_stopping_threshold):
                return StopSignal.PATIENCE
        return StopSignal.ASKED if self._asked.exists() else StopSignal.GO_ON


class _Diary:
    """Writes a stage's journal at its pauses, in which all stages run the reference kernel side by side."""

    def __init__(
        self,
        specification: ReplicaSpecification,
        stage: int,
        executor: Executor,
        meter: PartMeter,
        control: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if specification.journal is None:
            raise ValueError("a journal needs a folder")
        self._writer = LineWriter(journal_file(specification.journal, stage))
        self._executor, self._meter, self._control = executor, meter, control
        self._kernel = ReferenceKernel(device, dtype)
        self._operations = self._marks = 0

    def pause(self) -> None:
        """Wait for the other stages, run the reference kernel, write what is new."""
        record, parts = self._executor.record(self._operations), self._meter.costs(self._marks)
        self._operations += len(record.starts)
        self._marks = self._meter.num_marks
        dist.barrier(self._control)
        entry = JournalEntry(
            starts=tuple(record.starts.tolist()),
            ends=tuple(record.ends.tolist()),
            memory_gib=tuple(record.memory_gib.tolist()),
            parts=parts,
            reference_s=self._kernel.samples(),
        )
        self._writer.write(entry)


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**30)
    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
