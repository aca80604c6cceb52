"""The tiny instance for two CPU stages: three adapters on text that ships with Python.

`python -m cappuccino.instances.generate_tiny` profiles the tiny backbone on this machine and rewrites
`tables/cpu.csv` and `tiny-cpu.json`; the table's times are this machine's, the lengths this Python's.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cappuccino.instance import Adapter, GpuPool, Instance, save_instance

BACKBONE = "tiny-llama"
GPU = "cpu"
NUM_STAGES = 2
MAX_LENGTH = 512
SAMPLES = 96


def tiny_instance(lengths: Mapping[str, np.ndarray], cost_table: Path, name: str) -> Instance:
    """Return the instance: adapters that differ in rank, batch size, target modules, schedule and clipping.

    Parameters
    ----------
    lengths
        Of the three datasets of `cappuccino.runtime.backbone.tiny.build_text_datasets`, tokens by sample.
    cost_table
        Has rows of `BACKBONE` on `GPU`.
    """
    docstrings, functions, topics = lengths
    adapters = (
        Adapter(
            name="docs",
            dataset=docstrings,
            global_batch_size=16,
            micro_batch_size=4,
            num_steps=8,
            rank=4,
            alpha=8,
            target_modules=("q_proj", "v_proj"),
            learning_rate=2e-3,
        ),
        Adapter(
            name="code",
            dataset=functions,
            global_batch_size=8,
            micro_batch_size=2,
            num_steps=6,
            rank=8,
            alpha=16,
            learning_rate=2e-3,
            max_grad_norm=1.0,
        ),
        Adapter(
            name="topics",
            dataset=topics,
            global_batch_size=4,
            micro_batch_size=1,
            num_steps=6,
            rank=16,
            alpha=32,
            target_modules="all-linear",
            learning_rate=1e-3,
            lr_scheduler="linear",
            warmup_steps=2,
        ),
    )
    pool = GpuPool(gpu=GPU, count=NUM_STAGES, memory_gib=8.0)
    return Instance(name, BACKBONE, cost_table, (pool,), MAX_LENGTH, lengths, adapters, source=name)


def main() -> None:
    """Profile, and rewrite the shipped table and instance."""
    from cappuccino.runtime.backbone.tiny import build_text_datasets, build_tiny_backbone  # noqa: PLC0415
    from cappuccino.runtime.profiling.grid import ProfileGrid  # noqa: PLC0415
    from cappuccino.runtime.profiling.profiler import profile_backbone  # noqa: PLC0415

    here = Path(__file__).parent
    table = here / "tables" / "cpu.csv"
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder) / "backbone"
        build_tiny_backbone(backbone)
        lengths = build_text_datasets(Path(folder) / "data", backbone, samples=SAMPLES, max_length=MAX_LENGTH)
        tokens, sequence_lengths = (64, 128, 256, 512, 1024, 2048), (64, 256, 512)
        grid = ProfileGrid(num_stages=(1, NUM_STAGES), tokens=tokens, sequence_lengths=sequence_lengths)
        profile_backbone(backbone, table, name=BACKBONE, gpu=GPU, grid=grid, again=True)
    save_instance(tiny_instance(lengths, table, "tiny-cpu"), here / "tiny-cpu.json")


if __name__ == "__main__":
    main()
