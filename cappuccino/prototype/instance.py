"""An instance from the seed's files and options."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cappuccino.analytic.catalogue import GPUS
from cappuccino.backbone import ALL_LINEAR
from cappuccino.errors import InputError
from cappuccino.files import parse_model
from cappuccino.instance import Adapter, GpuPool, Instance, name_problem
from cappuccino.lengths import LengthDistribution
from cappuccino.prototype.formats import SeedAdapter


def seed_instance(
    distribution: LengthDistribution,
    adapters: Sequence[SeedAdapter],
    *,
    source: object,
    backbone: str,
    gpu: str,
    gpus: int,
    gpu_memory_gib: float | None,
    cost_table: Path,
    num_steps: int,
    max_sequence_length: int,
) -> Instance:
    """Return the instance that the seed's files describe; adapter i is called `adapter-i`.

    Parameters
    ----------
    source
        Where the adapters come from, for messages.
    gpu_memory_gib
        Memory of one GPU; None looks the GPU type up in the catalogue.
    num_steps
        Optimizer steps of every adapter: the seed's files do not say.

    Raises
    ------
    InputError
        When a dataset index or the GPU type is unknown.
    """
    if gpu_memory_gib is None:
        if gpu not in GPUS:
            remedy = f"use one of {', '.join(GPUS)}, or give --gpu_memory_gib"
            raise InputError("--gpu_type", "", f'"{gpu}" is not in the catalogue', remedy)
        gpu_memory_gib = GPUS[gpu].memory_gib
    lengths: dict[str, np.ndarray] = {}
    keys: dict[str, tuple[str, int, int]] = {}
    jobs = []
    for i, adapter in enumerate(adapters):
        key = distribution.entry(adapter.dataset_idx, source, f"adapters[{i}].dataset_idx")
        dataset = distribution.label(*key)
        problem = name_problem(dataset)
        if problem is not None:
            remedy = "give the dataset another name in the file"
            raise InputError(distribution.source, key[0], f"names no data file: {problem}", remedy)
        if keys.setdefault(dataset, key) != key:
            remedy = "give one of the datasets another name in the file"
            raise InputError(distribution.source, dataset, "is a dataset, and seed and permutation of another", remedy)
        lengths[dataset] = np.minimum(distribution.lengths(*key), max_sequence_length)
        modules = adapter.target_modules
        job = {
            "name": f"adapter-{i}",
            "dataset": dataset,
            "global_batch_size": adapter.global_batch_size,
            "micro_batch_size": adapter.microbatch_size,
            "num_steps": num_steps,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "dropout": adapter.dropout,
            "target_modules": ALL_LINEAR if modules == ALL_LINEAR else tuple(modules.split("+")),
        }
        jobs.append(parse_model(Adapter, job, f"{source}: adapter {i}"))
    pool = parse_model(GpuPool, {"gpu": gpu, "count": gpus, "memory_gib": gpu_memory_gib}, f"GPUs of {gpu}")
    return Instance(
        name="seed",
        backbone=backbone,
        cost_table=cost_table,
        gpu_pools=(pool,),
        max_sequence_length=max_sequence_length,
        dataset_lengths=lengths,
        adapters=tuple(jobs),
        source=str(source),
    )
