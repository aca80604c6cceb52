"""Running a whole plan on this machine; needs no torch itself, the processes it starts do."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cappuccino.backbone import MODULES_THERE_ARE, BackboneShape, unknown_modules
from cappuccino.errors import CappuccinoError, InputError, counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica, even_layers
from cappuccino.remaining import remaining_replica
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.checkpoint.identity import backbone_digest, training_identity
from cappuccino.runtime.checkpoint.manifest import Checkpoint, Origin
from cappuccino.runtime.checkpoint.progress import CHECKPOINTS, find_checkpoints, require_no_checkpoints
from cappuccino.runtime.checkpoint.store import CheckpointStore
from cappuccino.runtime.data.samples import load_datasets
from cappuccino.runtime.launch.devices import num_gpus
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.interruption import InterruptedRunError, Interruption
from cappuccino.runtime.launch.keeper import AdapterKeeper, CheckpointOptions
from cappuccino.runtime.launch.output import OutputFolder
from cappuccino.runtime.launch.replicas import run_replicas
from cappuccino.runtime.launch.run_result import Keep, RunResult, gather_results
from cappuccino.runtime.launch.specification import JobSpecification, ReplicaSpecification
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent
from cappuccino.runtime.monitoring.monitor import RunMonitor, require_free_names
from cappuccino.runtime.monitoring.requests import STOP, announced, forget_requests, require_no_run

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "float64", "bfloat16"]
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
    _require_runnable(instance, out, device, dtype, best=keep == "best", resume=resume)
    shape = read_trainable_shape(backbone)
    layers = [_layers(replica, shape, backbone) for replica in plan.replicas]
    capacity = _capacity(device, plan)
    called = backbone_name or str(backbone)
    placed = [name for r in plan.replicas for name in r.adapters]
    names = [*placed, *(name for name in plan.done if name not in placed)]
    used = instance.subset([instance.adapter_index(name) for name in names])
    require_free_names(used)
    _require_modules(used, shape)
    resumable = checkpoints is not None or resume
    datasets = load_datasets(used, data, backbone, shape.vocab, on_note).datasets

    identity, digest = backbone_digest(backbone), plan.digest
    origins = {
        job.name: Origin(
            training=training_identity(used, i, datasets[job.dataset], identity, dtype),
            instance_sha256=instance.digest,
            plan_sha256=digest,
        )
        for i, job in enumerate(used.adapters)
    }
    found = _found(plan, out, origins, resume)
    with OutputFolder(out) as output:
        store = CheckpointStore(out.resolve() / CHECKPOINTS if resumable else output.intermediate / CHECKPOINTS)
        keeper = AdapterKeeper(store, (checkpoints or CheckpointOptions()).keep, plan, output, called, found)
        keeper.export_finished()
        past = {name: checkpoint.steps_past for name, checkpoint in found.items()}
        stems = {name: output.intermediate / f"data-{i}" for i, name in enumerate(datasets)}
        for name, tokens in datasets.items():
            tokens.save(stems[name])
        pending = []
        for replica, split in zip(plan.replicas, layers, strict=True):
            left = remaining_replica(replica, instance, past)
            if left is None:
                continue
            place = output.intermediate / f"replica-{replica.id}"
            (place / "results").mkdir(parents=True)
            jobs = [
                JobSpecification(
                    adapter=instance.adapters[i],
                    num_steps=instance.num_steps(i),
                    data=stems[instance.adapters[i].dataset],
                    num_lengths=len(instance.dataset_lengths[instance.adapters[i].dataset]),
                    evaluation_data=stems.get(instance.adapters[i].eval_dataset or ""),
                    num_evaluated=len(instance.evaluation_lengths(i)),
                    origin=origins[name],
                    checkpoint_every=checkpoints.steps(instance.num_steps(i)) if checkpoints else None,
                    start=store.folder(name, found[name].step) if name in found else None,
                )
                for name in left.adapters
                for i in [instance.adapter_index(name)]
            ]
            specification = ReplicaSpecification(
                replica=left,
                jobs=tuple(jobs),
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
                rendezvous=place / "rendezvous",
                results=place / "results",
                checkpoints=store.root,
                stops=out.resolve() / STOP,
            )
            pending.append((specification, place))
        if not resume:
            forget_requests(out)
        monitor = RunMonitor(out, on_event, _goes_on(found, pending) if resume else None)
        for specification, _ in pending:
            monitor.follow(specification.results / METRICS)
        try:
            with announced(out, _steps(pending)), interruption.heeded() if interruption else nullcontext():
                run_replicas(
                    pending,
                    capacity,
                    keeper,
                    monitor,
                    resumable=checkpoints is not None,
                    interruption=interruption,
                    on_progress=on_progress,
                    on_poll=watch.on_poll if watch else None,
                )
            forget_requests(out)  # that came too late
        except CappuccinoError as error:
            raise _with_kept(error, keeper.kept(resumable)) from error
        return gather_results(plan, out, output, [specification for specification, _ in pending], keeper, monitor, keep)


def _require_runnable(instance: Instance, out: Path, device: str, dtype: str, *, best: bool, resume: bool) -> None:
    """Refuse settings that no run has."""
    if device not in get_args(Device):
        raise InputError("device", "", f'"{device}" is not known', f"use one of {', '.join(get_args(Device))}")
    if dtype == "float16":
        problem = '"float16" is refused: without a loss scale the gradients of large batches vanish in it'
        raise InputError("dtype", "", problem, "use bfloat16 or float32")
    if dtype not in get_args(DType):
        raise InputError("dtype", "", f'"{dtype}" is not known', f"use one of {', '.join(get_args(DType))}")
    if instance.layout != "packed":
        remedy = 'set it to "packed" and plan again'
        raise InputError(instance.source, "layout", f'the runtime does not train "{instance.layout}"', remedy)
    if out.exists() and not out.is_dir():
        raise InputError(out, "", "is not a folder", "name a folder for the results")
    require_no_run(out)
    if best and resume:
        problem = "the weights at earlier evaluations ended with the run before"
        raise InputError("keep", "", f'"best" is not known any more: {problem}', "go on with the last weights")


def _found(plan: Plan, out: Path, origins: Mapping[str, Origin], resume: bool) -> dict[str, Checkpoint]:
    """Return what the run goes on from; refuse a plan that begins later, and a run that begins amid another one."""
    found: dict[str, Checkpoint] = {}
    if resume:
        found = find_checkpoints(out, origins)
    else:
        require_no_checkpoints(out)
    for name, steps in plan.done.items():
        reached = found[name].steps_past if name in found else 0
        if reached < steps:
            problem = f'the plan begins after step {steps} of adapter "{name}", {out} has come to {reached}'
            raise InputError("plan", "done", problem, "run it with --resume into the folder that it was planned for")
    return found


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


def _layers(replica: Replica, shape: BackboneShape, backbone: Path) -> tuple[int, ...]:
    """Return the decoder layers by stage."""
    split = replica.layers_per_stage or even_layers(shape.num_layers, replica.num_stages)
    at = f"replicas[{replica.id}].layers_per_stage"
    stages, layers = counted(replica.num_stages, "stage"), counted(shape.num_layers, "layer")
    if len(split) != replica.num_stages or sum(split) != shape.num_layers:
        problem = f"{list(split)} on {stages} is no split of {layers} ({backbone})"
        raise InputError("plan", at, problem, "plan with a cost table of this backbone")
    if 0 in split:
        problem = f"{layers} on {stages} leave a stage without layers"
        raise InputError("plan", at, problem, "plan with fewer stages")
    return tuple(split)


def _require_modules(instance: Instance, shape: BackboneShape) -> None:
    """Refuse target modules that the backbone does not have: PEFT would leave them out without a word."""
    for adapter in instance.adapters:
        for name in unknown_modules(adapter.target_modules, shape.num_layers):
            field = f'target_modules of adapter "{adapter.name}"'
            problem = f'"{name}" is no linear layer of the backbone'
            raise InputError(instance.source, field, problem, f"correct or remove it: {MODULES_THERE_ARE}")


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
