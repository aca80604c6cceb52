"""Running a whole plan on this machine; needs no torch itself, the processes it starts do."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from cappuccino.backbone import MODULES_THERE_ARE, BackboneShape, unknown_modules
from cappuccino.errors import InputError
from cappuccino.files import write_atomically
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica, even_layers
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.data.samples import load_datasets
from cappuccino.runtime.launch.devices import num_gpus
from cappuccino.runtime.launch.metrics import METRICS, MetricEvent, first_not_finite
from cappuccino.runtime.launch.model_card import model_card
from cappuccino.runtime.launch.monitor import LOSSES, TRACE, RunMonitor, require_free_names
from cappuccino.runtime.launch.processes import ReplicaProcesses
from cappuccino.runtime.launch.results import measured_timeline, read_reports
from cappuccino.runtime.launch.specification import JobSpecification, ReplicaSpecification
from cappuccino.runtime.lora.adapter_folder import CARD
from cappuccino.runtime.lora.export import join_parts
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.timeline import Timeline, write_trace

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "float64", "bfloat16"]
Progress = Callable[[int, int], None]

_POLL_S = 0.05


@dataclass(frozen=True)
class RunResult:
    """What a run produced."""

    adapters: Mapping[str, Path]
    """By name, the folder with the PEFT adapter."""
    timelines: list[Timeline]
    """By replica, in the order of the plan; seconds from the replica's first operation."""
    losses: Mapping[str, list[float]]
    """By adapter, the loss of every optimizer step: mean cross-entropy over the global batch's loss tokens; NaN where
    it is not finite.
    """
    trace: Path
    """Trace file of the measured times."""
    memory_gib: Mapping[int, tuple[np.ndarray, ...]]
    """By replica id and stage, the highest memory use so far after every operation: resident on the CPU, allocated on
    the GPU.
    """
    parts: Mapping[int, tuple[tuple[PartCost, ...], ...]]
    """By replica id and stage, the parts of the operations; empty where they were not measured."""

    @property
    def metrics(self) -> Path:
        """File of the run's events."""
        return self.trace.with_name(METRICS)

    @property
    def diverged(self) -> dict[str, int]:
        """By adapter whose loss was not finite at some step, the first such step."""
        return {name: step for name, values in self.losses.items() if (step := first_not_finite(values)) is not None}

    def peak_memory_gib(self, replica: int) -> tuple[float, ...]:
        """Return the highest memory use of a replica, by its id, on every stage."""
        return tuple(float(memory[-1]) for memory in self.memory_gib[replica])


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
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    measure_parts: bool = False,
    watch: Watch | None = None,
    backbone_name: str | None = None,
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
        Folder with `<dataset>.jsonl` or `<dataset>.parquet` for every dataset.
    out
        Folder for the adapters, `losses.json` and `trace.json`, written when all replicas are done, and for
        `metrics.jsonl` and `logs/`, which grow from the start and stay when the run fails; what it holds under these
        names is replaced.
    device
        "cpu" or "cuda".
    dtype
        Type of weights and activations: "float32", "float64" or "bfloat16".
    measure_parts
        Whether the parts of operations are measured too, which costs a little time.
    watch
        How a run of one replica, whose parts are measured, is followed.
    backbone_name
        What the adapters say that they belong to; by default the path of the backbone as given.
    on_progress
        Called with the operations done and the operations in all.
    on_note
        Told what the data hold that is not used.
    on_event
        Told of every optimizer step.

    Raises
    ------
    InputError
        When the instance, the backbone or the data cannot be trained; nothing was written, or only events and logs
        where a process found it out.
    RunError
        When a process failed; all others were ended, and only events and logs were written.
    """
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
    shape = read_trainable_shape(backbone)
    layers = [_layers(replica, shape, backbone) for replica in plan.replicas]
    capacity = _capacity(device, plan)
    called = backbone_name or str(backbone)
    used = instance.subset([instance.adapter_index(name) for r in plan.replicas for name in r.adapters])
    require_free_names(used)
    _require_modules(used, shape)
    datasets = load_datasets(used, data, backbone, shape.vocab, on_note)

    with _gathered(out) as (folder, results):
        stems = {name: folder / f"data-{i}" for i, name in enumerate(datasets)}
        for name, tokens in datasets.items():
            tokens.save(stems[name])
        monitor = RunMonitor(out, on_event)
        pending = []
        for replica, split in zip(plan.replicas, layers, strict=True):
            place = folder / f"replica-{replica.id}"
            (place / "results").mkdir(parents=True)
            positions = [instance.adapter_index(name) for name in replica.adapters]
            jobs = tuple(
                JobSpecification(
                    adapter=instance.adapters[i],
                    num_steps=instance.num_steps(i),
                    data=stems[instance.adapters[i].dataset],
                    num_lengths=len(instance.dataset_lengths[instance.adapters[i].dataset]),
                )
                for i in positions
            )
            specification = ReplicaSpecification(
                replica=replica,
                jobs=jobs,
                layers_per_stage=split,
                backbone=backbone.resolve(),
                device=cast(Device, device),
                device_indices=(),
                dtype=cast(DType, dtype),
                measure_parts=measure_parts,
                pauses=watch.pauses if watch else (),
                journal=watch.journal.resolve() if watch else None,
                threads=max(1, _cores() // replica.num_stages),
                rendezvous=place / "rendezvous",
                results=place / "results",
            )
            monitor.follow(specification.results / METRICS)
            pending.append((specification, place))
        _run_all(pending, capacity, monitor, on_progress, watch.on_poll if watch else None)
        timelines, memory, parts = [], {}, {}
        losses = {name: monitor.losses[name] for replica in plan.replicas for name in replica.adapters}
        for specification, _ in pending:
            replica = specification.replica
            reports = read_reports(specification.results, replica.num_stages)
            timelines.append(measured_timeline(replica, reports))
            memory[replica.id] = tuple(np.array(report.memory_gib) for report in reports)
            parts[replica.id] = tuple(report.parts for report in reports)
            for position, name in enumerate(replica.adapters):
                join_parts(specification.results, position, replica.num_stages, results / name, called)
                job = specification.jobs[position]
                card = model_card(job.adapter, job.num_steps, losses[name], plan, replica, called)
                write_atomically(results / name / CARD, card)
        write_atomically(results / LOSSES, _as_json(losses))
        write_trace(results / TRACE, timelines, "measured", plan.instance.sha256)
    return RunResult({name: out / name for name in losses}, timelines, losses, out / TRACE, memory, parts)


def _layers(replica: Replica, shape: BackboneShape, backbone: Path) -> tuple[int, ...]:
    """Return the decoder layers by stage."""
    split = replica.layers_per_stage or even_layers(shape.num_layers, replica.num_stages)
    at = f"replicas[{replica.id}].layers_per_stage"
    if len(split) != replica.num_stages or sum(split) != shape.num_layers:
        problem = f"{list(split)} on {replica.num_stages} stages is no split of {shape.num_layers} layers ({backbone})"
        raise InputError("plan", at, problem, "plan with a cost table of this backbone")
    if 0 in split:
        problem = f"{shape.num_layers} layers on {replica.num_stages} stages leave a stage without layers"
        raise InputError("plan", at, problem, "plan with fewer stages")
    return tuple(split)


def _require_modules(instance: Instance, shape: BackboneShape) -> None:
    """Refuse target modules that the backbone does not have: PEFT would leave them out without a word."""
    for adapter in instance.adapters:
        for name in unknown_modules(adapter.target_modules, shape.num_layers):
            field = f'target_modules of adapter "{adapter.name}"'
            problem = f'"{name}" is no linear layer of the backbone'
            raise InputError(instance.source, field, problem, f"correct or remove it: {MODULES_THERE_ARE}")


def _as_json(losses: Mapping[str, list[float]]) -> str:
    """Return the losses as JSON, which knows no NaN: a diverged loss is null."""
    finite = {name: [x if math.isfinite(x) else None for x in values] for name, values in losses.items()}
    return json.dumps(finite, indent=2) + "\n"


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _capacity(device: str, plan: Plan) -> int | None:
    """Return how many GPUs there are, None on the CPU, where replicas run in turn."""
    count = num_gpus(device)
    for replica in plan.replicas:
        if count is not None and replica.num_stages > count:
            problem = f"replica {replica.id} has {replica.num_stages} stages, this machine {count} GPUs"
            raise InputError("device", "", problem, "plan with fewer stages per replica, or use device cpu")
    return count


def _run_all(
    pending: list[tuple[ReplicaSpecification, Path]],
    capacity: int | None,
    monitor: RunMonitor,
    on_progress: Progress | None,
    on_poll: Callable[[], None] | None,
) -> None:
    """Run all replicas, each as soon as its devices are free."""
    total = sum(len(program) for specification, _ in pending for program in specification.replica.programs)
    waiting = list(pending)
    running: list[ReplicaProcesses] = []
    finished = told = 0
    if on_progress is not None:
        on_progress(0, total)
    try:
        while waiting or running:
            busy = {index for processes in running for index in processes.specification.device_indices}
            while waiting:
                specification, place = waiting[0]
                free = [index for index in range(capacity or 0) if index not in busy]
                stages = specification.replica.num_stages
                if running if capacity is None else len(free) < stages:
                    break
                mine = tuple(free[:stages])
                busy.update(mine)
                placed = specification.model_copy(update={"device_indices": mine})
                running.append(ReplicaProcesses(placed, place, monitor.logs))
                waiting.pop(0)
            for processes in list(running):
                if processes.poll():
                    processes.stop()
                    running.remove(processes)
                    finished += sum(map(len, processes.specification.replica.programs))
            monitor.collect()
            done = finished + sum(processes.done for processes in running)
            if on_progress is not None and done > told:
                on_progress(done, total)
                told = done
            if on_poll is not None:
                on_poll()
            time.sleep(_POLL_S)
    finally:
        for processes in running:
            processes.stop()
        monitor.close()


@contextmanager
def _gathered(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give a folder for intermediate files and one for results, which replace those in `out` when all went well."""
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{out.name}."))
    except OSError as error:
        raise InputError(out, "", f"cannot be written ({error.strerror})", "name another folder") from error
    try:
        results = folder / "out"
        results.mkdir()
        yield folder, results
        replaced = folder / "replaced"
        replaced.mkdir()
        for item in sorted(results.iterdir()):
            target = out / item.name
            aside = replaced / item.name
            if target.exists():
                target.rename(aside)
            try:
                item.rename(target)
            except OSError:
                if aside.exists():
                    aside.rename(target)
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
