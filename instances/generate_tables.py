"""Analytic cost tables of the shipped instances; `python -m cappuccino.instances.generate_tables` rewrites them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cappuccino.catalogue import BACKBONES, GPUS
from cappuccino.files import write_atomically
from cappuccino.roofline import analytic_table

TABLES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "a100-40gb": {
        "Llama-2-7b-hf": range(1, 3),
        "Qwen2.5-32B-Instruct": range(2, 7),
        "Qwen2.5-7B-Instruct": range(1, 5),
        "Llama-3.1-8B": range(1, 5),
    },
    "h100-80gb": {
        "Llama-3.1-70B": range(2, 9),
        "Qwen2.5-32B-Instruct": range(1, 5),
        "Llama-3.1-8B": range(1, 3),
    },
}
"""Pipeline sizes by GPU and backbone."""
FOLDER = Path(__file__).parent / "tables"


def table_csv(gpu: str) -> str:
    """Return the text of a GPU's cost table."""
    parts = [analytic_table(name, gpu, BACKBONES[name], GPUS[gpu], sizes) for name, sizes in TABLES[gpu].items()]
    return pd.concat(parts, ignore_index=True).to_csv(index=False, lineterminator="\n")


def main() -> None:
    """Rewrite the tables."""
    FOLDER.mkdir(exist_ok=True)
    for gpu in TABLES:
        write_atomically(FOLDER / f"{gpu}.csv", table_csv(gpu))


if __name__ == "__main__":
    main()
