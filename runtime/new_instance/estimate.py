"""A cost table of a new instance, before anything was measured."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import FUSED
from cappuccino.analytic.table import estimated_table, stage_counts
from cappuccino.backbone import BackboneShape
from cappuccino.errors import InputError
from cappuccino.files import require_writable
from cappuccino.plan import Recompute
from cappuccino.runtime.new_instance.pools import FoundPool

_OPTION = "--estimate"
DTYPE = "bfloat16"
"""Type of computation that is estimated."""


def estimated_costs(table: Path, backbone: str, shape: BackboneShape, pools: Sequence[FoundPool]) -> str:
    """Return a cost table of all pools as CSV, computed from specifications as `cappuccino estimate` does.

    Parameters
    ----------
    table
        Where it will be written; measurements that are there are not replaced.
    backbone
        Its name in the table.

    Raises
    ------
    InputError
        When a pool is of no catalogued type, nothing fits, or there is a file already.
    """
    require_writable(table)
    if table.exists():
        raise InputError(table, "", "is there already", f"leave out {_OPTION}, or name another --cost-table")
    for found in pools:
        if found.pool.gpu not in GPUS:
            problem = f'"{found.pool.gpu}" has no data sheet here'
            raise InputError(_OPTION, "", problem, f"give --gpu with one of {', '.join(GPUS)}, or profile instead")
    counts, modes = stage_counts(shape), tuple(Recompute)
    tables = [estimated_table(backbone, found.pool.gpu, shape, counts, modes, FUSED, DTYPE) for found in pools]
    joined = pd.concat(tables, ignore_index=True)
    joined["tasknum"] = joined.index + 1
    return joined.to_csv(index=False, lineterminator="\n")
