"""The pieces that shipped instance files are made of, and their text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cappuccino.instance import FORMAT
from cappuccino.instances.generate_lengths import PUBLIC_DATASETS, SEED

MAX_SEQUENCE_LENGTH = 4096
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
DATASETS = tuple(PUBLIC_DATASETS)
SEED_DATASETS = ("wikisum", "xsum", "samsum", "gsm8k")
"""Datasets of the seed's example configuration."""
PRICES_PER_HOUR = {"a100-40gb": 1.8, "h100-80gb": 3.0}
MEMORY_GIB = {"a100-40gb": 40.0, "h100-80gb": 80.0}


def pool(gpu: str, count: int) -> dict[str, Any]:
    """Return a pool of `count` GPUs at the GPU's price and memory as sold."""
    return {"gpu": gpu, "count": count, "memory_gib": MEMORY_GIB[gpu], "price_per_hour": PRICES_PER_HOUR[gpu]}


def adapter(
    name: str,
    dataset: str,
    batch: int,
    micro: int,
    steps: int | None,
    *,
    rank: int = 16,
    max_grad_norm: float | None = None,
) -> dict[str, Any]:
    """Return an adapter with every training setting spelled out; without `steps` it trains one pass."""
    return {
        **_size(name, dataset, batch, micro, steps),
        "rank": rank,
        "alpha": 2 * rank,
        "dropout": 0.05,
        "target_modules": TARGET_MODULES,
        "learning_rate": 1e-4,
        **({} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}),
    }


def short_adapter(name: str, dataset: str, batch: int, micro: int, steps: int | None) -> dict[str, Any]:
    """Return an adapter that leaves its training settings at their defaults: for files with many of them."""
    return _size(name, dataset, batch, micro, steps)


def instance(
    name: str,
    backbone: str,
    pools: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    adapters: Iterable[Mapping[str, Any]],
    *,
    lengths: Mapping[str, Sequence[int]] | None = None,
    max_sequence_length: int = MAX_SEQUENCE_LENGTH,
    layout: str = "packed",
) -> dict[str, Any]:
    """Return an instance document.

    Parameters
    ----------
    pools
        One pool, or several; the cost table is that of their GPU types.
    lengths
        Sample lengths of datasets that stand in the file; the others are taken out of `lengths/public.json`.
    """
    pools = [dict(pools)] if isinstance(pools, Mapping) else [dict(p) for p in pools]
    listed = list(adapters)
    source = {"file": "lengths/public.json", "seed": SEED, "permutation": 1}
    given = {dataset: {"lengths": list(values)} for dataset, values in (lengths or {}).items()}
    used = dict.fromkeys(a["dataset"] for a in listed)
    return {
        "format": FORMAT,
        "name": name,
        "backbone": backbone,
        "cost_table": f"tables/{'-'.join(p['gpu'] for p in pools)}.csv",
        "gpu_pools": pools,
        "max_sequence_length": max_sequence_length,
        "datasets": {dataset: given.get(dataset, {**source, "key": dataset}) for dataset in used},
        "adapters": listed,
        **({} if layout == "packed" else {"layout": layout}),
    }


def text_of(document: Mapping[str, Any]) -> str:
    """Return JSON with one pool, dataset or adapter a line."""
    fields = []
    for key, value in document.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        elif isinstance(value, dict):
            items = (f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            body = "{\n" + ",\n".join(items) + "\n  }"
        else:
            body = json.dumps(value)
        fields.append(f"  {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _size(name: str, dataset: str, batch: int, micro: int, steps: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": dataset,
        "global_batch_size": batch,
        "micro_batch_size": micro,
        **({} if steps is None else {"num_steps": steps}),
    }
