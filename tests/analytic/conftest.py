from dataclasses import replace

import pandas as pd

from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import COUNTED_EAGER
from cappuccino.analytic.table import seed_table
from cappuccino.backbone import BACKBONES
from cappuccino.costs import read_cost_table

TRUTH = replace(
    COUNTED_EAGER,
    compute_share=0.6,
    bandwidth_share=0.7,
    launch_s=60e-6,
    logit_bytes=13,
    boundary_tensors=5,
    context_gib=0.4,
)
SYNTHETIC = ("Llama-2-7b-hf", "Qwen2.5-7B-Instruct", "Llama-2-13b-hf")


def synthetic_table(folder, backbones=SYNTHETIC, gpus=("h100-80gb",), **columns):
    """A table that follows `TRUTH` but says that it was measured, on 1 and 4 stages of an H100."""
    parts = [seed_table(name, gpu, BACKBONES[name], GPUS[gpu], (1, 4), TRUTH) for gpu in gpus for name in backbones]
    table = pd.concat(parts, ignore_index=True).assign(source="measured", **columns)
    table.to_csv(folder / "measured.csv", index=False)
    return read_cost_table(folder / "measured.csv")
