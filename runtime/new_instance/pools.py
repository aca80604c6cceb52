"""The GPUs of a new instance: as they are named, or as this machine has them."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from cappuccino.analytic.catalogue import GPUS
from cappuccino.errors import InputError
from cappuccino.instance import GpuPool

CPU = "cpu"
"""Name of the pool of a machine without GPUs."""
_OPTION = "--gpu"
_SHAPE = re.compile(r"(?P<gpu>[^=:]+)=(?P<count>[1-9][0-9]{0,8})(?::(?P<memory>[0-9]*\.?[0-9]+))?")
_MOST_STAGES = 4
"""Of a replica on a CPU, where replicas run in turn: cores beyond that are better used inside of a stage."""
_REPORTED = 0.9
"""Part of the memory as sold that a GPU reports at least."""
_GIB = 2**30


@dataclass(frozen=True)
class FoundPool:
    """A pool and where its figures are from."""

    pool: GpuPool
    why: str


def named_pools(options: Sequence[str], layers: int) -> list[FoundPool]:
    """Return the pools that options name.

    Parameters
    ----------
    options
        Each `NAME=COUNT` or `NAME=COUNT:MEMORY_GIB`; the memory of catalogued GPUs, and of the CPU, is known.
    layers
        Of the backbone.

    Raises
    ------
    InputError
        When an option has another form, a name is given twice, or the memory of a GPU is not known.
    """
    found: dict[str, FoundPool] = {}
    for option in options:
        parts = _SHAPE.fullmatch(option)
        if parts is None:
            problem = f'"{option}" is not NAME=COUNT or NAME=COUNT:MEMORY_GIB'
            raise InputError(_OPTION, "", problem, "give e.g. a100-80gb=8, or mine=2:24")
        gpu, count = parts["gpu"], int(parts["count"])
        if gpu in found:
            raise InputError(_OPTION, "", f'"{gpu}" is given twice', "give all GPUs of a type at once")
        if parts["memory"] is not None:
            memory, why = float(parts["memory"]), "as given"
        elif gpu in GPUS:
            memory, why = GPUS[gpu].memory_gib, "memory by the catalogue"
        elif gpu == CPU:
            memory, why = _cpu_memory_gib(count), _SHARED
        else:
            problem = f'the memory of "{gpu}" is not known'
            remedy = f"write {option}:MEMORY_GIB, or name one of {', '.join(GPUS)}"
            raise InputError(_OPTION, "", problem, remedy)
        if not memory > 0:
            raise InputError(_OPTION, "", f'"{option}" has no memory', "give the GiB of one GPU")
        if count > layers and gpu == CPU:
            problem = f"{count} stages for {layers} decoder layers"
            raise InputError(_OPTION, "", problem, f"give {CPU}={layers} or less: replicas run in turn there")
        found[gpu] = FoundPool(GpuPool(gpu=gpu, count=count, memory_gib=memory), why)
    return list(found.values())


def pools_of_this_machine(layers: int) -> list[FoundPool]:
    """Return this machine's GPUs, a pool a type, or its CPU as one pool with a core or more for every stage.

    Parameters
    ----------
    layers
        Of the backbone: no replica has more stages.
    """
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(cores, layers, _MOST_STAGES)
        pool = GpuPool(gpu=CPU, count=count, memory_gib=_cpu_memory_gib(count))
        return [FoundPool(pool, f"this machine's {cores} cores as pipeline stages, {_SHARED}")]
    counts: dict[str, int] = {}
    memory: dict[str, float] = {}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        gib = device.total_memory / _GIB
        name = gpu_name(device.name, gib)
        counts[name] = counts.get(name, 0) + 1
        memory[name] = min(gib, memory.get(name, math.inf))
    return [
        FoundPool(
            GpuPool(gpu=name, count=count, memory_gib=_rounded(memory[name])), "this machine's, memory as it says"
        )
        for name, count in counts.items()
    ]


def gpu_name(device: str, memory_gib: float) -> str:
    """Return what the catalogue calls a GPU, and of others a name made of what the driver says.

    Parameters
    ----------
    device
        As the driver names it, such as "NVIDIA A100-SXM4-80GB".
    memory_gib
        As it reports it: somewhat less than is sold.
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    for name, spec in GPUS.items():
        family = name.partition("-")[0]
        if family in words and _REPORTED * spec.memory_gib <= memory_gib <= spec.memory_gib:
            return name
    kept = [word for word in words if word not in ("nvidia", "geforce")]
    return "-".join(kept) or "gpu"


_SHARED = "its memory shared out evenly"


def _cpu_memory_gib(count: int) -> float:
    return _rounded(psutil.virtual_memory().total / _GIB / count)


def _rounded(memory_gib: float) -> float:
    """Return memory with one digit behind the point, never more than there is."""
    return max(0.1, math.floor(10 * memory_gib) / 10)
