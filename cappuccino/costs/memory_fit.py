"""Memory models fitted to the peaks that a cost table holds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from cappuccino.backbone import ATTENTION_MODULES
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.memory import KeptMemory, MemoryModel, adapter_memory_gib, mask_memory_gib
from cappuccino.costs.model import CostModel
from cappuccino.costs.table import ADAPTERS, HELD, LAYERS, RECOMPUTE, CostTable, adapter_sizes, layer_count, layer_shape
from cappuccino.plan import even_layers

_MIB_PER_GIB = 1024
_WEIGHT_BYTES = defaultdict(lambda: 2, {"float32": 4, "float64": 8})
"""Of a weight, by type; two where the table does not say."""
_LEAST_PART = 0.01
"""Of a peak, what is left at least when its adapters are taken out: rows of other numbers do not fit."""


def fit_memory(rows: pd.DataFrame) -> dict[int, MemoryModel]:
    """Fit the peak memory for every stage count, to relative error with coefficients that are not negative.

    What the rows' own adapters take is left out where the widths of a layer are known: plans add their own.

    All micro-batches of a step count as held (`held_micro_batches` where the table says better): in the A100 table the
    peak keeps growing with `grad_acc_steps` beyond `pp_size`. What a token held takes is known where the table says
    what the forward keeps; elsewhere it is fitted, and where rows cannot tell held from working memory, because as many
    micro-batches are held throughout, all of it counts as held, which is the safe side.
    """
    result = {}
    for g, group in rows.groupby("pp_size"):
        tokens = group["tokens"].to_numpy(float)
        held = tokens * _held_micro_batches(group)
        peak = group["peak_memory_mb"].to_numpy(float) / _MIB_PER_GIB
        adapters, masks = _adapters(group)
        peak = np.maximum(peak - adapters - masks * held, _LEAST_PART * peak)
        kept = _kept_gib(group)
        if kept is not None:
            left = np.maximum(peak - kept * held, _LEAST_PART * peak)
            (static, working), _ = nnls(np.stack([np.ones_like(tokens), tokens], axis=1) / peak[:, None], left / peak)
            result[int(str(g))] = MemoryModel(float(static), float(working), kept)
            continue
        columns = [np.ones_like(tokens), held]
        separable = bool(np.any(held != tokens))
        if separable:
            columns.insert(1, tokens)
        coefficients, _ = nnls(np.stack(columns, axis=1) / peak[:, None], np.ones_like(peak))
        static, *slopes = (float(c) for c in coefficients)
        result[int(str(g))] = MemoryModel(static, slopes[0] if separable else 0.0, slopes[-1])
    return result


def kept_memory(
    rows: pd.DataFrame, splits: Mapping[int, Sequence[int]], memory: Mapping[int, MemoryModel]
) -> dict[int, KeptMemory]:
    """Return what parts of stages take of the memory, by stage count.

    Where the table does not say what the forward keeps, all of it counts as kept by layers.

    Parameters
    ----------
    splits
        Decoder layers by stage of the counts in the table.
    memory
        Fitted to it.
    """
    shape, result = layer_shape(rows), {}
    weight = _WEIGHT_BYTES[str(rows["dtype"].iloc[0]) if "dtype" in rows else ""]
    layer = 0.0 if shape is None else sum(i * o for i, o in shape.modules.values()) * weight / 2**30
    for g, layers in splits.items():
        mine = rows[rows["pp_size"] == g]
        if set(HELD) <= set(mine):
            of_layer, of_head = (float(mine[column].median()) / 2**30 for column in HELD)
        else:
            of_layer, of_head = memory[g].held_gib / max(layers), 0.0
        result[g] = KeptMemory(layer, of_layer, of_head)
    return result


def _kept_gib(rows: pd.DataFrame) -> float | None:
    """Return what the fullest stage keeps of a token between its forward and its backward, GiB; None: nobody says."""
    if not {*HELD, LAYERS} <= set(rows):
        return None
    layer, head = (float(rows[column].median()) for column in HELD)
    layers = rows[LAYERS].iloc[0]
    return float(max(max(layers) * layer, layers[-1] * layer + head)) / 2**30


def _adapters(rows: pd.DataFrame) -> np.ndarray:
    """Return what the adapters of each row take on the stage with the most layers, and their masks a token held, GiB.

    Shape (2, rows); 0 where nobody knows.

    Rows that do not say of which adapters they are, are of one on the attention projections, as the seed's tables.
    """
    shape, layers = layer_shape(rows), layer_count(rows)
    if shape is None or layers is None:
        return np.zeros((2, len(rows)))
    if set(rows) >= ADAPTERS:
        sizes, numbers = adapter_sizes(rows, shape), rows["num_adapters"].tolist()
    else:
        sizes = [AdapterSize.of(shape, int(rank), ATTENTION_MODULES) for rank in rows["rank"]]
        numbers = [1] * len(rows)
    dtypes = rows["dtype"] if "dtype" in rows else [None] * len(rows)
    splits = list(rows[LAYERS]) if LAYERS in rows else [even_layers(layers, int(g)) for g in rows["pp_size"]]
    entries = zip(sizes, numbers, splits, dtypes, strict=True)
    memory = [n * adapter_memory_gib(size, max(split), dtype) for size, n, split, dtype in entries]
    modes = rows[RECOMPUTE] if RECOMPUTE in rows else [None] * len(rows)
    masks = [mask_memory_gib(size, max(split), mode) for size, split, mode in zip(sizes, splits, modes, strict=True)]
    return np.array([memory, masks])


def _held_micro_batches(rows: pd.DataFrame) -> np.ndarray:
    if "held_micro_batches" in rows:
        return rows["held_micro_batches"].to_numpy(float)
    return np.where(rows["pp_size"] > 1, rows["grad_acc_steps"], 1).astype(float)


def _usable_memory(rows: CostTable, memory: dict[int, MemoryModel]) -> float | None:
    """Half way between the fullest GPU that ran and the emptiest that failed, as the fitted memory tells."""
    failed = rows.failed[rows.failed["pp_size"].isin(list(memory))]
    if failed.empty:
        return None
    held = failed["tokens"].to_numpy() * _held_micro_batches(failed)
    peaks = [
        float(memory[int(g)].beside(*adapters).peak(t, h))
        for g, t, h, adapters in zip(failed["pp_size"], failed["tokens"], held, _adapters(failed).T, strict=True)
    ]
    ran = float(rows.ok["peak_memory_mb"].max()) / _MIB_PER_GIB
    return max(ran, (ran + min(peaks)) / 2)


def predicted_memory_mib(model: CostModel, row: pd.Series) -> float:
    """Return what a model makes of a row's `peak_memory_mb`, MiB."""
    held = float(row["tokens"]) * float(_held_micro_batches(row.to_frame().T)[0])
    memory = model.memory_model(int(row["pp_size"])).beside(*_adapters(row.to_frame().T)[:, 0])
    return float(memory.peak(row["tokens"], held)) * _MIB_PER_GIB
