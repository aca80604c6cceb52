"""Analytic cost tables of the shipped instances; `python -m cappuccino.instances.generate_tables` rewrites them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import PUBLISHED
from cappuccino.analytic.table import seed_table
from cappuccino.backbone import BACKBONES
from cappuccino.files import write_atomically

TABLES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "a100-40gb": {
        "Llama-2-7b-hf": range(1, 3),
        "Qwen2.5-32B-Instruct": range(2, 7),
        "Qwen2.5-7B-Instruct": range(1, 5),
        "Llama-3.1-8B": range(1, 5),
        "Llama-2-13b-hf": range(1, 4),
        "Qwen2.5-14B-Instruct": range(1, 5),
    },
    "h100-80gb": {
        "Llama-3.1-70B": range(2, 9),
        "Qwen2.5-32B-Instruct": range(1, 5),
        "Llama-3.1-8B": range(1, 3),
    },
}
"""Pipeline sizes by GPU and backbone."""
POOL_TABLES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "a100-40gb-h100-80gb": (("a100-40gb", "h100-80gb"), ("Qwen2.5-32B-Instruct", "Llama-3.1-8B")),
}
"""GPUs and backbones of the tables that serve several pools."""
FOLDER = Path(__file__).parent / "tables"


def table_csv(gpu: str) -> str:
    """Return the text of a GPU's cost table."""
    return _csv([(gpu, name) for name in TABLES[gpu]])


def pool_table_csv(name: str) -> str:
    """Return the text of a table of `POOL_TABLES`: rows of several GPUs in one file."""
    gpus, backbones = POOL_TABLES[name]
    return _csv([(gpu, backbone) for gpu in gpus for backbone in backbones])


def _csv(pairs: Sequence[tuple[str, str]]) -> str:
    # the best known of an instance belongs to its table: another efficiency would void all of them
    parts = [seed_table(name, gpu, BACKBONES[name], GPUS[gpu], TABLES[gpu][name], PUBLISHED) for gpu, name in pairs]
    return pd.concat(parts, ignore_index=True).to_csv(index=False, lineterminator="\n")


def main() -> None:
    """Rewrite the tables."""
    FOLDER.mkdir(exist_ok=True)
    for gpu in TABLES:
        write_atomically(FOLDER / f"{gpu}.csv", table_csv(gpu))
    for name in POOL_TABLES:
        write_atomically(FOLDER / f"{name}.csv", pool_table_csv(name))


if __name__ == "__main__":
    main()
