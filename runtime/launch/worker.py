"""What the process of one stage does: `python -m cappuccino.runtime.launch.worker SPECIFICATION STAGE`.

The launcher holds the other ends of two pipes: standard input, which closes when the launcher dies, and standard
output, on which the process writes one byte per finished operation.
"""

import os
import sys
import threading
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cappuccino.files import parse_model, read_json
from cappuccino.runtime.launch.journal import JournalEntry, journal_file
from cappuccino.runtime.launch.lines import LineWriter
from cappuccino.runtime.launch.metrics import METRICS, MetricsRecorder
from cappuccino.runtime.launch.results import StageReport, as_failure, failure_file, report_file, write_record
from cappuccino.runtime.launch.specification import ReplicaSpecification

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from cappuccino.runtime.pipeline.executor import Executor
    from cappuccino.runtime.pipeline.part_meter import PartMeter

_PATIENCE = timedelta(days=7)
"""The launcher ends the others when one stage fails, so no stage needs to give up waiting."""
_REASON_LINES = 8


class StageProgress:
    """How far a stage has come.

    Parameters
    ----------
    descriptor
        Of the file that gets one byte per operation.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.done: int | None = None
        """Operations finished; None before the program's begin."""

    def begin(self) -> None:
        """Note that the program begins."""
        self.done = 0

    def advance(self) -> None:
        """Note that an operation is finished."""
        self.done = (self.done or 0) + 1
        os.write(self._descriptor, b".")


def main(arguments: list[str]) -> NoReturn:
    """Run one stage and leave with exit status 0, or 1 when it failed."""
    path, stage = Path(arguments[0]), int(arguments[1])
    progress = StageProgress(os.dup(1))
    os.dup2(2, 1)  # whatever libraries print must not look like progress
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    specification = parse_model(ReplicaSpecification, read_json(path), path)
    try:
        run_stage(specification, stage, progress)
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        reason = "\n".join(lines[-_REASON_LINES:])
        failure = as_failure(error, time.perf_counter(), reason, progress.done)
        write_record(failure_file(specification.results, stage), failure)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the destructors of process groups would wait for the other stages
    sys.stderr.flush()
    os._exit(0)  # all is written, and taking down what was imported takes seconds


def _end_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def run_stage(specification: ReplicaSpecification, stage: int, progress: StageProgress) -> None:
    """Build a stage, run its program and write its results.

    Parameters
    ----------
    specification
        Of the replica.
    stage
        Which stage.
    progress
        Told of every operation.
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(specification.threads)
    on_gpu = specification.device == "cuda"
    device = torch.device("cuda", specification.device_indices[stage]) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # by its path: torch does not decode the URL of a file whose name has a space in it
    store = dist.FileStore(str(specification.rendezvous.absolute()), specification.replica.num_stages)  # type: ignore[attr-defined]
    store.set_timeout(_PATIENCE)
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        store=store,
        rank=stage,
        world_size=specification.replica.num_stages,
        timeout=_PATIENCE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # megatron-core warns of every optional kernel that is not there
        report = _train(specification, stage, progress, device)
    write_record(report_file(specification.results, stage), report)
    dist.destroy_process_group()


def _train(
    specification: ReplicaSpecification, stage: int, progress: StageProgress, device: "torch.device"
) -> StageReport:
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415
    from megatron.core import parallel_state  # noqa: PLC0415
    from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: PLC0415
    from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: PLC0415

    from cappuccino.plan import Recompute  # noqa: PLC0415
    from cappuccino.runtime.backbone.part import BackbonePart  # noqa: PLC0415
    from cappuccino.runtime.data.samples import AdapterSamples, TokenizedDataset  # noqa: PLC0415
    from cappuccino.runtime.lora.export import write_parts  # noqa: PLC0415
    from cappuccino.runtime.lora.multi_lora import MultiLora  # noqa: PLC0415
    from cappuccino.runtime.pipeline.adapter_training import AdapterTraining  # noqa: PLC0415
    from cappuccino.runtime.pipeline.communication import PlannedCommunicator  # noqa: PLC0415
    from cappuccino.runtime.pipeline.executor import Executor  # noqa: PLC0415
    from cappuccino.runtime.pipeline.part_meter import PartMeter  # noqa: PLC0415
    from cappuccino.runtime.pipeline.stage import Stage  # noqa: PLC0415

    replica, jobs = specification.replica, specification.jobs
    dtype: torch.dtype = getattr(torch, specification.dtype)
    first_layer = sum(specification.layers_per_stage[:stage])
    layers = range(first_layer, first_layer + specification.layers_per_stage[stage])
    part = BackbonePart(specification.backbone, layers, device, dtype)
    lora = MultiLora(part, [job.adapter for job in jobs])

    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=replica.num_stages)
    pipeline = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["pp"]).pp
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
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
    trainings = [
        AdapterTraining(job.adapter, job.num_steps, lora.parameters(position), control)
        for position, job in enumerate(jobs)
    ]
    samples = [
        AdapterSamples(TokenizedDataset.load(job.data), job.num_lengths, job.adapter.global_batch_size) for job in jobs
    ]
    meter = PartMeter(device) if specification.measure_parts else None
    executor = Executor(
        stage=Stage(config, part, lora, replica.recompute is Recompute.FULL),
        communicator=communicator,
        trainings=trainings,
        samples=samples,
        replica=replica,
        index=stage,
        device=device,
        peak_memory_gib=lambda: _peak_memory_gib(device),
    )
    if meter is None:  # a profile warms up point by point: the largest ones would hide the memory of the others
        executor.warm_up()
    recorder: MetricsRecorder | None = None
    if stage == replica.num_stages - 1:
        file = specification.results / METRICS
        recorder = MetricsRecorder(file, replica.adapters, trainings, samples, executor.losses)
    on_step = recorder.on_step if recorder else None

    def on_operation() -> None:
        if recorder:
            recorder.write()
        progress.advance()

    dist.barrier(control)  # so that no stage's first operations wait for another's imports
    progress.begin()
    if recorder:
        recorder.begin()
    if meter is not None and specification.journal is not None:
        diary = _Diary(specification, stage, executor, meter, control, device, dtype)
        pauses = frozenset(specification.pauses[stage])
        record = executor.run(on_operation, meter, pauses, diary.pause, on_step)
    else:
        record = executor.run(on_operation, meter, on_step=on_step)
    if recorder:
        recorder.write(wait=True)
    write_parts(lora, stage, specification.results)
    dist.barrier(control)  # a stage that left early would cut connections that others still read from
    return StageReport(
        starts=tuple(record.starts.tolist()),
        ends=tuple(record.ends.tolist()),
        memory_gib=tuple(record.memory_gib.tolist()),
        parts=meter.costs() if meter else (),
    )


class _Diary:
    """Writes a stage's journal at its pauses, in which all stages run the reference kernel side by side."""

    def __init__(
        self,
        specification: ReplicaSpecification,
        stage: int,
        executor: "Executor",
        meter: "PartMeter",
        control: "ProcessGroup",
        device: "torch.device",
        dtype: "torch.dtype",
    ) -> None:
        from cappuccino.runtime.pipeline.reference import ReferenceKernel  # noqa: PLC0415

        if specification.journal is None:
            raise ValueError("a journal needs a folder")
        self._writer = LineWriter(journal_file(specification.journal, stage))
        self._executor, self._meter, self._control = executor, meter, control
        self._kernel = ReferenceKernel(device, dtype)
        self._operations = self._marks = 0

    def pause(self) -> None:
        """Wait for the other stages, run the reference kernel, write what is new."""
        import torch.distributed as dist  # noqa: PLC0415

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


def _peak_memory_gib(device: "torch.device") -> float:
    import resource  # noqa: PLC0415

    import torch  # noqa: PLC0415

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**30)
    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main(sys.argv[1:])
