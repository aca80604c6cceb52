"""The shipped instances: `python -m cappuccino.instances.generate_instances` rewrites their JSON files."""

import json
from itertools import cycle
from pathlib import Path
from typing import Any

from cappuccino.files import write_atomically
from cappuccino.instance import FORMAT
from cappuccino.instances.generate_lengths import PUBLIC_DATASETS, SEED

FOLDER = Path(__file__).parent
MAX_SEQUENCE_LENGTH = 4096
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEED_DATASETS = ("wikisum", "xsum", "samsum", "gsm8k")
"""Datasets of the seed's example configuration."""
A100_PRICE_PER_HOUR = 1.8
H100_PRICE_PER_HOUR = 3.0


def seed4(backbone: str, name: str) -> dict[str, Any]:
    """Return the seed's example: four adapters alike but for their data."""
    adapters = [_adapter(dataset, dataset, 8, 2, 10) for dataset in SEED_DATASETS]
    return _instance(name, backbone, _a100(16), adapters)


def mixed12() -> dict[str, Any]:
    """Return all twelve datasets, batches and micro-batches of several sizes."""
    sizes = zip(PUBLIC_DATASETS, cycle((8, 16, 4, 8)), cycle((1, 2, 4, 1)), strict=False)
    adapters = [_adapter(dataset, dataset, batch, micro, 10) for dataset, batch, micro in sizes]
    return _instance("mixed12-qwen32b", "Qwen2.5-32B-Instruct", _a100(64), adapters)


def mixed16() -> dict[str, Any]:
    """Return sixteen adapters of four ranks: every dataset once, four of them twice, jobs of unequal length."""
    datasets = [*PUBLIC_DATASETS, "xsum", "mathinstruct", "magicoder_evol_instruct_110k", "wikisum"]
    ranks, batches = cycle((8, 16, 32, 64)), cycle((8, 16, 4, 32, 8))
    micros, steps = cycle((1, 2, 4)), cycle((10, 16, 8, 12, 20, 14, 18))
    adapters = [
        _adapter(f"{dataset}-r{rank}", dataset, batch, micro, count, rank=rank)
        for dataset, rank, batch, micro, count in zip(datasets, ranks, batches, micros, steps, strict=False)
    ]
    pool = {"gpu": "h100-80gb", "count": 64, "memory_gib": 80.0, "price_per_hour": H100_PRICE_PER_HOUR}
    return _instance("mixed16-llama70b", "Llama-3.1-70B", pool, adapters)


def instance_texts() -> dict[str, str]:
    """Return the text of every generated instance file, by file name."""
    instances = (
        seed4("Qwen2.5-32B-Instruct", "seed4-qwen32b"),
        seed4("Llama-2-7b-hf", "seed4-llama7b"),
        mixed12(),
        mixed16(),
    )
    return {f"{instance['name']}.json": _text(instance) for instance in instances}


def _a100(count: int) -> dict[str, Any]:
    return {"gpu": "a100-40gb", "count": count, "memory_gib": 40.0, "price_per_hour": A100_PRICE_PER_HOUR}


def _adapter(name: str, dataset: str, batch: int, micro: int, steps: int, *, rank: int = 16) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": dataset,
        "global_batch_size": batch,
        "micro_batch_size": micro,
        "num_steps": steps,
        "rank": rank,
        "alpha": 2 * rank,
        "dropout": 0.05,
        "target_modules": TARGET_MODULES,
        "learning_rate": 1e-4,
    }


def _instance(name: str, backbone: str, pool: dict[str, Any], adapters: list[dict[str, Any]]) -> dict[str, Any]:
    used = dict.fromkeys(adapter["dataset"] for adapter in adapters)
    source = {"file": "lengths/public.json", "seed": SEED, "permutation": 1}
    return {
        "format": FORMAT,
        "name": name,
        "backbone": backbone,
        "cost_table": f"tables/{pool['gpu']}.csv",
        "gpu_pools": [pool],
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "datasets": {dataset: {**source, "key": dataset} for dataset in used},
        "adapters": adapters,
    }


def _text(instance: dict[str, Any]) -> str:
    """Return JSON with one pool, dataset or adapter a line."""
    fields = []
    for key, value in instance.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        elif isinstance(value, dict):
            items = (f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            body = "{\n" + ",\n".join(items) + "\n  }"
        else:
            body = json.dumps(value)
        fields.append(f"  {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def main() -> None:
    """Rewrite the instance files."""
    for name, text in instance_texts().items():
        write_atomically(FOLDER / name, text)


if __name__ == "__main__":
    main()
