"""Running a plan, on this machine or as one of several; needs no torch itself, the processes it starts do."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cappuccino.errors import CappuccinoError, InputError, counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica
from cappuccino.remaining import remaining_replica
from cappuccino.runtime.checkpoint.manifest import Checkpoint
from cappuccino.runtime.checkpoint.progress import CHECKPOINTS
from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.interruption import InterruptedRunError, Interruption
from cappuccino.runtime.launch.keeper import AdapterKeeper, CheckpointOptions
from cappuccino.runtime.launch.output import OutputFolder
from cappuccino.runtime.launch.preparation import Device, DType, Preparation, num_gpus, prepare
from cappuccino.runtime.launch.replicas import StartReplica, run_replicas
from cappuccino.runtime.launch.run_result import Keep, RunResult, gather_results
from cappuccino.runtime.launch.specification import JobSpecification, ReplicaSpecification
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent
from cappuccino.runtime.monitoring.monitor import RunMonitor
from cappuccino.runtime.monitoring.records import begin_record, drop_records, join_records
from cappuccino.runtime.monitoring.requests import STOP, announced, forget_requests

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Watch:
    """What is to be known of a run while it goes on."""

    journal: Path
    """Folder for the journals of the stages."""
    pauses: tuple[tuple[int, ...], ...]
    """By stage of the only replica, operations before which its journal is written; as many on every stage."""
    on_poll: Callable[[], None]
    """Called some times a second; what it raises ends the run."""


@dataclass(frozen=True)
class Share:
    """What one of several runs of a plan does, all of which write to one folder."""

    replica: int
    """Id of the only replica that it runs."""
    start: StartReplica
    """Starts it on the machines that it has."""


def run_plan(
    plan: Plan,
    instance: Instance,
    backbone: Path,
    data: Path | None,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    measure_parts: bool = False,
    watch: Watch | None = None,
    backbone_name: str | None = None,
    keep: Keep = "last",
    checkpoints: CheckpointOptions | None = None,
    resume: bool = False,
    interruption: Interruption | None = None,
    share: Share | None = None,
    on_progress: Progress | None = None,
    on_note: Callable[[str], None] | None = None,
    on_event: Callable[[MetricEvent], None] | None = None,
) -> RunResult:
    """Train the adapters of a plan, one process per stage.

    Replicas run one after another on the CPU; on GPUs side by side as far as there are GPUs.

    Parameters
    ----------
    plan
        A plan that the checker found valid for the instance.
    instance
        The jobs.
    backbone
        Folder of a Hugging Face checkpoint.
    data
        Folder with a file for every dataset (`<dataset>.jsonl`, `.json` or `.parquet`); None: the instance names them.
    out
        Folder for the adapters, each written as soon as its last step is done, for checkpoints, for `metrics.jsonl` and
        `logs/`, which grow from the start and stay when the run fails, and in the end for `losses.json` and
        `trace.json`; what it holds under these names is replaced.
    device
        "cpu" or "cuda".
    dtype
        Type of weights and activations: "float32", "float64" or "bfloat16".
    measure_parts
        Whether the parts of operations are measured too, which costs a little time.
    watch
        How a run of one replica, whose parts are measured, is followed; its adapters are not kept.
    backbone_name
        What the adapters say that they belong to; by default the path of the backbone as given.
    keep
        Which weights adapters are written with: those behind the last step, or behind the step with the least loss on
        the evaluation data, where there are any.
    checkpoints
        When adapters are written while they train; None: only when they are finished.
    resume
        Whether the run goes on from the newest complete checkpoints in `out`; adapters without any begin.
    interruption
        Signals that ask the run to end; it then writes checkpoints, where these are on.
    share
        Which replica is run, where others are run by other calls into the same folder; None: all are. What all of them
        would write, as `trace.json`, is a record of this replica then, until `join_records` joins the records.
    on_progress
        Called with the operations done and the operations in all.
    on_note
        Told what the data hold that is not used, and from where adapters go on.
    on_event
        Told of every optimizer step and evaluation; before the run begins, of those that it goes on from.

    Raises
    ------
    InputError
        When the instance, the backbone or the data cannot be trained, or checkpoints are of another training; nothing
        was written, or only events and logs where a process found it out. Or when something could not be written; the
        error says what is kept.
    RunError
        When a process failed; all others were ended, and the error says what is kept.
    InterruptedRunError
        When the run was asked to end; likewise.
    """
    capacity = _capacity(device, plan) if share is None else None
    ready = prepare(
        plan,
        instance,
        backbone,
        data,
        out,
        device=device,
        dtype=dtype,
        best=keep == "best",
        resume=resume,
        only=None if share is None else (share.replica,),
        on_note=on_note,
    )
    resumable, found = checkpoints is not None or resume, ready.found
    trained = None if share is None else [name for replica in ready.replicas for name in replica.adapters]
    with OutputFolder(out) as output:
        records = _records(out, plan, share, resume)
        store = CheckpointStore(out.resolve() / CHECKPOINTS if resumable else output.intermediate / CHECKPOINTS)
        called = backbone_name or str(backbone)
        keep_of_each = (checkpoints or CheckpointOptions()).keep
        keeper = AdapterKeeper(store, keep_of_each, plan, output, called, found, trained)
        keeper.export_finished()
        past = {name: checkpoint.steps_past for name, checkpoint in found.items()}
        stems = {name: output.intermediate / f"data-{i}" for i, name in enumerate(ready.datasets)}
        for name, tokens in ready.datasets.items():
            tokens.save(stems[name])
        pending = []
        for replica, split in zip(ready.replicas, ready.layers, strict=True):
            left = remaining_replica(replica, instance, past)
            if left is None:
                continue
            place = output.intermediate / f"replica-{replica.id}"
            (place / "results").mkdir(parents=True)
            specification = ReplicaSpecification(
                replica=left,
                jobs=_jobs(left, ready, instance, stems, store, checkpoints),
                layers_per_stage=split,
                backbone=backbone.resolve(),
                device=cast(Device, device),
                device_indices=(),
                dtype=cast(DType, dtype),
                measure_parts=measure_parts,
                pauses=watch.pauses if watch else (),
                journal=watch.journal.resolve() if watch else None,
                keep_evaluated=keep == "best" and bool(replica.evaluations),
                threads=max(1, _cores() // replica.num_stages),
                rendezvous=place / "rendezvous" if share is None else None,
                results=place / "results",
                checkpoints=store.root,
                stops=out.resolve() / STOP,
            )
            pending.append((specification, place))
        if not resume:
            forget_requests(out, trained)
        monitor = RunMonitor(out, on_event, _goes_on(found, pending) if resume else None, records, ready.replicas)
        for specification, _ in pending:
            monitor.follow(specification.results / METRICS)
        try:
            with announced(records, _steps(pending)), interruption.heeded() if interruption else nullcontext():
                run_replicas(
                    pending,
                    capacity,
                    keeper,
                    monitor,
                    resumable=checkpoints is not None,
                    start=share.start if share else None,
                    interruption=interruption,
                    on_progress=on_progress,
                    on_poll=watch.on_poll if watch else None,
                )
            forget_requests(out, trained)  # that came too late
        except CappuccinoError as error:
            raise _with_kept(error, keeper.kept(resumable)) from error
        return gather_results(
            ready.origins, plan, records, output, [specification for specification, _ in pending], keeper, monitor, keep
        )


def _records(out: Path, plan: Plan, share: Share | None, resume: bool) -> Path:
    """Return the folder for what several runs cannot write together, in the state that this run goes on from."""
    if share is not None:
        return begin_record(out, plan, share.replica, resume=resume)
    if resume:  # of replicas that ran by themselves; from here on this run has all of them
        join_records(out, plan)
    drop_records(out)
    return out


def _jobs(
    replica: Replica,
    ready: Preparation,
    instance: Instance,
    stems: Mapping[str, Path],
    store: CheckpointStore,
    checkpoints: CheckpointOptions | None,
) -> tuple[JobSpecification, ...]:
    """Return what the stages of a replica are told of its adapters."""
    return tuple(
        JobSpecification(
            adapter=instance.adapters[i],
            num_steps=instance.num_steps(i),
            data=stems[instance.adapters[i].dataset],
            num_lengths=len(instance.dataset_lengths[instance.adapters[i].dataset]),
            evaluation_data=stems.get(instance.adapters[i].eval_dataset or ""),
            num_evaluated=len(instance.evaluation_lengths(i)),
            origin=ready.origins[name],
            checkpoint_every=checkpoints.steps(instance.num_steps(i)) if checkpoints else None,
            start=store.folder(name, ready.found[name].step) if name in ready.found else None,
        )
        for name in replica.adapters
        for i in [instance.adapter_index(name)]
    )


def _goes_on(
    found: Mapping[str, Checkpoint], pending: Sequence[tuple[ReplicaSpecification, Path]]
) -> Callable[[MetricEvent], bool]:
    """Return what tells whether an event of the run before is not to come again."""
    again = {
        (replica.adapters[x.adapter], x.step)
        for s, _ in pending
        for replica in [s.replica]
        for x in replica.evaluations
    }

    def goes_on(event: MetricEvent) -> bool:
        at = found.get(event.adapter)
        if at is None:
            return False
        if event.kind == "stop":
            return at.stopped is not None and event.step == at.step
        return event.step < at.step and (event.kind == "train" or (event.adapter, event.step) not in again)

    return goes_on


def _steps(pending: Sequence[tuple[ReplicaSpecification, Path]]) -> dict[str, int]:
    """Return the optimizer steps of the adapters that are to be trained, by name."""
    return {job.adapter.name: job.num_steps for specification, _ in pending for job in specification.jobs}


def _with_kept(error: CappuccinoError, kept: str) -> CappuccinoError:
    """Return the error that ended a run with what the run leaves."""
    if isinstance(error, RunError):
        return RunError(error.replica, error.stage, error.reason, error.operation, log=error.log, kept=kept)
    if isinstance(error, InterruptedRunError):
        return InterruptedRunError(kept)
    if isinstance(error, InputError):
        return InputError(error.source, error.field, error.problem, f"{error.remedy}; {kept}")
    return error


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _capacity(device: str, plan: Plan) -> int | None:
    """Return how many GPUs there are, None on the CPU, where replicas run in turn."""
    count = num_gpus(device)
    for replica in plan.replicas:
        if count is not None and replica.num_stages > count:
            problem = (
                f"replica {replica.id} has {counted(replica.num_stages, 'stage')}, this machine {counted(count, 'GPU')}"
            )
            raise InputError("device", "", problem, "plan with fewer stages per replica, or use device cpu")
    return count
