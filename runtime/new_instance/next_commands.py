"""The commands that lead from a new instance to adapters."""

import os
import shlex
from pathlib import Path

import numpy as np

from cappuccino.backbone import BackboneShape
from cappuccino.instance import GpuPool, Instance
from cappuccino.runtime.new_instance.making import beside
from cappuccino.runtime.new_instance.pools import CPU

STAGE_COUNTS = (1, 2, 4, 8)
"""Profiled as far as GPUs and layers allow."""
_SAMPLES = 8
"""Least samples of the largest profiled micro-batch: it is shared out to as many as four adapters."""


def next_commands(backbone: str, path: Path, instance: Instance, shape: BackboneShape, profiled: bool) -> list[str]:
    """Return the command lines that profile, plan and run, for the folder that we are in.

    Parameters
    ----------
    backbone
        As it was given.
    path
        Of the instance.
    profiled
        Whether there is a cost table.
    """
    table, plan = Path(os.path.normpath(instance.cost_table)), beside(path, "plan.json")
    commands = [] if profiled else _profiles(backbone, table, instance, shape)
    commands.append(_joined("plan", str(path), "-o", str(plan)))
    on_gpus = any(pool.gpu != CPU for pool in instance.gpu_pools)
    device = ("--device", "cuda", "--dtype", "bfloat16") if on_gpus else ()
    where = ("--instance", str(path), "--backbone", backbone, "-o", str(beside(path, "adapters")))
    commands.append(_joined("run", str(plan), *where, *device))
    return commands


def _profiles(backbone: str, table: Path, instance: Instance, shape: BackboneShape) -> list[str]:
    """Return a command a pool, and one that puts several tables together."""
    pools = instance.gpu_pools
    tables = [table if len(pools) == 1 else table.with_name(f"{table.stem}-{pool.gpu}.csv") for pool in pools]
    commands = [_profile(backbone, t, pool, instance, shape) for pool, t in zip(pools, tables, strict=True)]
    if len(pools) > 1:
        files = " ".join(shlex.quote(str(t)) for t in tables)
        commands.append(f"awk 'NR == 1 || FNR > 1' {files} > {shlex.quote(str(table))}")
    return commands


def _profile(backbone: str, table: Path, pool: GpuPool, instance: Instance, shape: BackboneShape) -> str:
    lengths = np.concatenate([np.ravel(steps) for steps in instance.step_lengths])
    sequence_lengths, tokens = profiled_sizes(lengths)
    stages = [g for g in STAGE_COUNTS if g <= min(pool.count, shape.num_layers)]
    gpu = () if pool.gpu == CPU else ("--gpu", pool.gpu, "--device", "cuda", "--dtype", "bfloat16")
    grid = {"--num-stages": stages, "--tokens": tokens, "--sequence-lengths": sequence_lengths}
    options = [part for option, values in grid.items() for part in (option, ",".join(map(str, values)))]
    return _joined("profile", "--backbone", backbone, "-o", str(table), *gpu, *options)


def profiled_sizes(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """Return lengths of samples to profile, and tokens of micro-batches: powers of two around those of the data.

    Parameters
    ----------
    lengths
        Tokens of samples, shape (samples,).
    """
    short, middle, long = np.percentile(lengths, [10, 50, 100])
    exponents = sorted({int(np.ceil(np.log2(max(8.0, n)))) for n in (short, middle, long)})
    first, last = exponents[0] + 1, max(exponents[-1] + 1, exponents[0] + int(np.log2(_SAMPLES)))
    return [2**e for e in exponents], [2**e for e in range(first, last + 1)]


def _joined(command: str, *parts: str) -> str:
    return shlex.join(["cappuccino", command, *parts])
