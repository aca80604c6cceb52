"""The commands that lead from a new instance to adapters."""

import math
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
_STEPS = 4
"""Optimizer steps that it holds, of as many adapters, where there are so many: plans put that much together."""
_MOST_TOKENS = 8192
"""But it has no more than these, unless the longest sample has."""
_MOST_SIZES = 6
"""Of micro-batches: more than these are a factor of four apart, not two."""


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
    step = np.mean([steps.sum(axis=1).mean() for steps in instance.step_lengths])
    together = min(_STEPS, len(instance.adapters))
    sequence_lengths, tokens = profiled_sizes(lengths, float(together * step))
    stages = [g for g in STAGE_COUNTS if g <= min(pool.count, shape.num_layers)]
    gpu = () if pool.gpu == CPU else ("--gpu", pool.gpu, "--device", "cuda", "--dtype", "bfloat16")
    grid = {"--num-stages": stages, "--tokens": tokens, "--sequence-lengths": sequence_lengths}
    options = [part for option, values in grid.items() for part in (option, ",".join(map(str, values)))]
    return _joined("profile", "--backbone", backbone, "-o", str(table), *gpu, *options)


def profiled_sizes(lengths: np.ndarray, largest: float) -> tuple[list[int], list[int]]:
    """Return lengths of samples to profile, and tokens of micro-batches: powers of two around those of the data.

    Parameters
    ----------
    lengths
        Tokens of samples, shape (samples,).
    largest
        Tokens that a micro-batch may well have.
    """
    short, middle, long = np.percentile(lengths, [10, 50, 100])
    exponents = sorted({_exponent(n) for n in (short, middle, long)})
    first, longest = exponents[0] + 1, exponents[-1] + 1
    likely = min(_exponent(largest), _exponent(_MOST_TOKENS))
    last = max(longest, likely, exponents[0] + _exponent(_SAMPLES))
    apart = 1 if last - first < _MOST_SIZES else 2
    return [2**e for e in exponents], sorted(2**e for e in range(last, first - 1, -apart))


def _exponent(number: float) -> int:
    """Return that of the power of two that is as large or larger; 8 at least."""
    return max(3, math.ceil(math.log2(number)))


def _joined(command: str, *parts: str) -> str:
    return shlex.join(["cappuccino", command, *parts])
