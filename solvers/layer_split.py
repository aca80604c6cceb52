"""How many decoder layers each stage of every depth gets: those with which the busiest stage has least to do.

Where the cost table tells what a layer and the head take, any split of the layers can be costed. A split is judged by
the work bound of all adapters of the instance in one replica: what the busiest stage has to do, with micro-batches as
large as the memory of the fullest stage allows.
"""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import numpy as np

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.costs import CostModel
from cappuccino.instance import GpuPool, Instance
from cappuccino.plan import even_layers

_SIZES = (1.0, 4.0, 16.0)
"""Micro-batches that layers are balanced for, in multiples of one that leaves a layer's launch-bound floor."""


class LayerSplit(StrEnum):
    """How layers are split over stages."""

    AUTO = "auto"
    """As suits the instance, where the cost table tells what stages of other layers take; else as it was measured."""
    EVEN = "even"
    """Evenly, whatever the head takes."""


def with_layers(instance: Instance, costs: Mapping[str, CostModel], split: LayerSplit) -> dict[str, CostModel]:
    """Return cost models, by GPU type, with the layers by stage that suit the instance.

    Raises
    ------
    InvalidPlanError
        When layers are to be even and the cost table does not tell what even stages take.
    """
    result = {}
    for pool in instance.gpu_pools:
        first, *others = (_split(instance, pool, model, split) for model in costs[pool.gpu].choices)
        result[pool.gpu] = replace(first, alternatives=tuple(others))
    return result


def _split(instance: Instance, pool: GpuPool, model: CostModel, split: LayerSplit) -> CostModel:
    if split is LayerSplit.EVEN:
        for g in model.stage_counts(pool.count):
            model = model.of_layers(g, None)
        return model
    if not model.parts or model.num_layers is None:
        return model
    chosen = {g: _best(instance, pool, model, g, model.num_layers) for g in model.stage_counts(pool.count)}
    return replace(model, splits={**model.splits, **chosen})


def _best(instance: Instance, pool: GpuPool, model: CostModel, num_stages: int, num_layers: int) -> tuple[int, ...]:
    """Return the layers by stage with the least work bound of all adapters; those of the model where none is less."""
    known = model.layers_per_stage(num_stages) or even_layers(num_layers, num_stages)
    parts = model.parts.get(num_stages, model.parts[max(model.parts)])
    lengths = np.concatenate([x.ravel() for x in instance.step_lengths]).astype(float)
    length = float((lengths**2).sum() / lengths.sum())
    floor = sum(curve.floor_s for curve in parts.layer)
    work = sum(float(curve.work(1.0, length)) for curve in parts.layer)
    knee = max(floor / work, length) if work > 0 else length
    candidates = dict.fromkeys(
        [known, *(parts.balanced(num_layers, num_stages, size * knee, size * knee * length) for size in _SIZES)]
    )

    def busy_s(layers: tuple[int, ...]) -> float:
        bounds = ReplicaBounds(instance, model.of_layers(num_stages, layers), num_stages, pool.memory_gib)
        return float(bounds.shares.sum()) + bounds.ramp_s

    # a little: a split that nobody measured has to be worth it
    return min(candidates, key=lambda layers: busy_s(layers) * (1.0 if layers == known else 1.001))
