"""What must hold before a run begins, found out before anything is written; needs no torch but to count GPUs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cappuccino.backbone import MODULES_THERE_ARE, BackboneShape, unknown_modules
from cappuccino.errors import InputError, counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica, even_layers
from cappuccino.runtime.backbone.config import read_trainable_shape
from cappuccino.runtime.checkpoint.identity import backbone_digest, training_identity
from cappuccino.runtime.checkpoint.manifest import Checkpoint, Origin
from cappuccino.runtime.checkpoint.progress import find_checkpoints, require_no_checkpoints
from cappuccino.runtime.data.samples import TokenizedDataset, load_datasets
from cappuccino.runtime.monitoring.monitor import require_free_names
from cappuccino.runtime.monitoring.records import record_folders, record_place
from cappuccino.runtime.monitoring.requests import require_no_run

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "float64", "bfloat16"]


def num_gpus(device: str) -> int | None:
    """Return how many GPUs there are for replicas side by side; None on the CPU, where they run in turn."""
    if device != "cuda":
        return None
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


@dataclass(frozen=True)
class Preparation:
    """What a run stands on, all of it found to be right."""

    replicas: tuple[Replica, ...]
    """Those that run, as planned."""
    layers: tuple[tuple[int, ...], ...]
    """By replica, the decoder layers by stage."""
    datasets: Mapping[str, TokenizedDataset]
    """By name, those that they train and evaluate on."""
    origins: Mapping[str, Origin]
    """By adapter, what its checkpoints are from."""
    found: Mapping[str, Checkpoint]
    """By adapter, the checkpoint that it goes on from, where there is one."""


def prepare(
    plan: Plan,
    instance: Instance,
    backbone: Path,
    data: Path | None,
    out: Path,
    *,
    device: str,
    dtype: str,
    best: bool = False,
    resume: bool = False,
    only: Collection[int] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Preparation:
    """Look at everything that a run needs; parameters are those of `run_plan`.

    Parameters
    ----------
    best
        Whether adapters are to have the weights of their least evaluation loss.
    only
        Ids of the replicas that run, where others run on other machines into the same folder; None: all. Checkpoints of
        other replicas do not matter then, and to go on where nothing was done is to begin.

    Raises
    ------
    InputError
        When the instance, the backbone or the data cannot be trained, or checkpoints are of another training.
    """
    _require_runnable(instance, out, device, dtype, only, best=best, resume=resume)
    replicas = tuple(r for r in plan.replicas if only is None or r.id in only)
    shape = read_trainable_shape(backbone)
    layers = tuple(_layers(replica, shape, backbone) for replica in replicas)
    placed = [name for r in replicas for name in r.adapters]
    ended = [name for name in plan.done if name not in placed] if only is None else []
    used = instance.subset([instance.adapter_index(name) for name in (*placed, *ended)])
    require_free_names(used)
    _require_modules(used, shape)
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
    return Preparation(replicas, layers, datasets, origins, _found(plan, out, origins, resume, alone=only is None))


def _require_runnable(
    instance: Instance, out: Path, device: str, dtype: str, only: Collection[int] | None, *, best: bool, resume: bool
) -> None:
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
    for folder in (out, *(record_folders(out) if only is None else (record_place(out, replica) for replica in only))):
        require_no_run(folder)
    if best and resume:
        problem = "the weights at earlier evaluations ended with the run before"
        raise InputError("keep", "", f'"best" is not known any more: {problem}', "go on with the last weights")


def _found(plan: Plan, out: Path, origins: Mapping[str, Origin], resume: bool, *, alone: bool) -> dict[str, Checkpoint]:
    """Return what the run goes on from; refuse a plan that begins later, and a run that begins amid another one."""
    found: dict[str, Checkpoint] = {}
    if resume:
        found = find_checkpoints(out, origins, alone=alone)
    else:
        require_no_checkpoints(out, None if alone else origins)
    for name, steps in plan.done.items():
        if not alone and name not in origins:
            continue
        reached = found[name].steps_past if name in found else 0
        if reached < steps:
            problem = f'the plan begins after step {steps} of adapter "{name}", {out} has come to {reached}'
            raise InputError("plan", "done", problem, "run it with --resume into the folder that it was planned for")
    return found


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
