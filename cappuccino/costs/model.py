"""The cost model: times and memory of micro-batches as functions of their tokens.

Legend: T tokens of a micro-batch, Q its sum of squared sequence lengths, g pipeline stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from cappuccino.backbone import LayerShape
from cappuccino.costs.adapter_costs import AdapterCosts
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.curves import SmoothMaximum
from cappuccino.costs.memory import MOST_TOKENS, Floats, KeptMemory, MemoryModel, adapter_memory_gib, mask_memory_gib
from cappuccino.costs.stages import PipelineCosts, StageParts
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Adapter
from cappuccino.plan import Recompute, Replica, even_layers

EXTRAPOLATION_MEMORY_MARGIN = 1.1
"""Factor on the memory of stage counts that nobody profiled."""

RESERVED_MEMORY = 0.05
"""Part of a GPU's memory that plans never fill."""


@dataclass(frozen=True)
class CostModel:
    """Costs of one backbone on one GPU type, for every number of pipeline stages.

    Stage counts in `profiled` have curves and memory of their own; others are derived from them (`extrapolated`).
    """

    backbone: str
    gpu: str
    forward: SmoothMaximum
    """Forward of the whole backbone; a stage takes 1/g of it."""
    backward: SmoothMaximum
    """Backward of the whole backbone; a stage takes 1/g of it."""
    memory: Mapping[int, MemoryModel]
    """By profiled stage count."""
    stage_forward: Mapping[int, SmoothMaximum] = field(default_factory=dict)
    """Measured per stage count, where the table has forward times; takes precedence over `forward` / g."""
    stage_backward: Mapping[int, SmoothMaximum] = field(default_factory=dict)
    """Likewise for the backward."""
    parts: Mapping[int, StageParts] = field(default_factory=dict)
    """By measured stage count, where the table has the times of parts; takes precedence over all curves above."""
    reference_s: Mapping[int, float] = field(default_factory=dict)
    """By measured stage count, what the reference kernel took while the table was measured, where it says so."""
    mixed: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """By stage count, factors in forward and backward curves: times among other micro-batches over those alike."""
    optimizer_s: float = 0.0
    """One optimizer step of one adapter on one stage, where it is not part of the other times."""
    transfer: tuple[float, float] = (0.0, 0.0)
    """Latency (seconds) and seconds per token between neighbouring stages, likewise."""
    bubble: float = 1.0
    """Slots of one micro-batch that a flush takes per stage behind the first, in the step times of the table."""
    num_layers: int | None = None
    """Decoder layers of the backbone, where known."""
    splits: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Decoder layers by stage of a stage count, where they are not even."""
    measured_splits: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Decoder layers by stage that the memory of a stage count is of, where the table says so."""
    kept: Mapping[int, KeptMemory] = field(default_factory=dict)
    """By measured stage count, what parts take of the memory, where the table says so."""
    layer_shape: LayerShape | None = None
    """Where known; without it all adapters cost alike."""
    weights_gib: float | None = None
    """Backbone weights in 16 bit, where the backbone is catalogued: a floor under extrapolated memory."""
    usable_memory_gib: float | None = None
    """What the rows that failed say can really be used of a GPU's memory; None when none failed."""
    profiled_tokens: tuple[int, int] = (1, 1)
    """Smallest and largest micro-batch of the table, tokens."""
    largest_tokens: int = MOST_TOKENS
    """Largest micro-batch to plan, whatever memory would hold."""
    analytic: bool = False
    """Whether the table was computed from specifications instead of measured."""
    device: str | None = None
    """Kind of device that was measured, where the table says so."""
    dtype: str | None = None
    """Type of the backbone's weights, where the table says so."""
    engine: str | None = None
    """Software whose times these are, where the table says so; `ENGINE` is this project's runtime."""
    recompute: Recompute | None = None
    """Activation recomputation that times and memory are of; None where nobody knows."""
    alternatives: tuple["CostModel", ...] = ()
    """The same backbone on the same GPU with other recomputation, where the table has it."""
    _pipelines: dict[int, PipelineCosts] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def choices(self) -> tuple["CostModel", ...]:
        """The model and its alternatives, among which a plan chooses replica by replica."""
        return (self, *self.alternatives)

    def of_recomputation(self, mode: Recompute | None) -> "CostModel":
        """Return the costs with this recomputation; those that there are for None.

        Raises
        ------
        InvalidPlanError
            When the cost table has none of this kind.
        """
        if mode is None:
            return self
        for model in self.choices:
            if model.recompute is mode:
                return model
        known = " and ".join(f"recompute {model.recompute}" for model in self.choices if model.recompute)
        stated = f"the costs on {self.gpu} are of {known or 'unknown recomputation'}"
        raise InvalidPlanError(f"recompute is {mode}, {stated}")

    @property
    def profiled(self) -> tuple[int, ...]:
        """Profiled stage counts, ascending."""
        return tuple(sorted(self.memory))

    def extrapolated(self, num_stages: int) -> bool:
        """Return whether nobody profiled this stage count."""
        return num_stages not in self.memory

    def stage_counts(self, limit: int, profiled_only: bool = False) -> tuple[int, ...]:
        """Return the stage counts worth considering on at most `limit` GPUs.

        Those profiled, and, unless forbidden, 1 to twice the largest profiled one; never more than layers.
        """
        most = min(limit, self.num_layers or limit)
        counts = set(self.profiled)
        if not profiled_only:
            counts |= set(range(1, 2 * max(counts) + 1))
        return tuple(sorted(g for g in counts if g <= most))

    def pipeline(self, num_stages: int) -> PipelineCosts:
        """Return the times of micro-batches on each of `num_stages` stages."""
        if num_stages not in self._pipelines:
            self._pipelines[num_stages] = self._pipeline(num_stages)
        return self._pipelines[num_stages]

    def _pipeline(self, num_stages: int) -> PipelineCosts:
        layers = self.layers_per_stage(num_stages)
        if self.parts and layers is not None:
            return self.parts.get(num_stages, self.parts[max(self.parts)]).pipeline(layers)
        curves = (
            by_count.get(num_stages) or whole.scaled(1 / num_stages)
            for by_count, whole in ((self.stage_forward, self.forward), (self.stage_backward, self.backward))
        )
        return PipelineCosts.alike((next(curves), next(curves)), num_stages)

    def alike_times(
        self, num_stages: int, tokens: float, squares: float, size: AdapterSize | None, number: int = 1
    ) -> Floats:
        """Return how long a micro-batch of `number` adapters of one size takes among others like it, seconds.

        Shape (2, num_stages): forward and backward by stage.
        """
        pipeline, added = self.pipeline(num_stages), np.zeros(4)
        if size is not None:
            for k, (first, *_) in enumerate(pipeline.curves):
                added[2 * k : 2 * k + 2] = number * first.adapter_floor(size), tokens * first.adapter_work(size)
        factors = np.array(self.mixed.get(num_stages, (1.0, 1.0)))
        return np.asarray(pipeline.times(tokens, squares, added) / factors[:, None])

    def adapter_costs(self, num_stages: int, adapters: Sequence[Adapter]) -> AdapterCosts:
        """Return what costs depend on of each of these adapters on `num_stages` stages.

        Without the widths of a layer all adapters cost alike, in time and memory as those that were profiled.
        """
        curves = [first for first, *_ in self.pipeline(num_stages).curves]
        clipped = np.array([a.max_grad_norm is not None for a in adapters], dtype=bool)
        if self.layer_shape is None:
            nothing = np.zeros(len(adapters))
            return AdapterCosts(nothing, nothing, nothing, nothing, clipped, nothing, nothing)
        sizes = [AdapterSize.of(self.layer_shape, a.rank, a.target_modules, a.dropout) for a in adapters]
        forward, backward = (
            (np.array([c.adapter_floor(x) for x in sizes]), np.array([c.adapter_work(x) for x in sizes]))
            for c in curves
        )
        split = self.layers_per_stage(num_stages)
        layers = max(split) if split else 0
        memory = np.array([adapter_memory_gib(x, layers, self.dtype) for x in sizes])
        masks = np.array([mask_memory_gib(x, layers, self.recompute) for x in sizes])
        return AdapterCosts(*forward, *backward, clipped, memory, masks)

    def layers_per_stage(self, num_stages: int) -> tuple[int, ...] | None:
        """Return the decoder layers by stage that the costs are of; None where nobody knows how many there are."""
        if num_stages in self.splits:
            return self.splits[num_stages]
        return None if self.num_layers is None else even_layers(self.num_layers, num_stages)

    def of_layers(self, num_stages: int, layers: Sequence[int] | None) -> "CostModel":
        """Return the costs with so many decoder layers by stage; split evenly for None.

        Raises
        ------
        InvalidPlanError
            When the cost table does not tell what stages with these layers take.
        """
        known = self.layers_per_stage(num_stages)
        asked = tuple(layers) if layers is not None else known and even_layers(sum(known), num_stages)
        if asked is None or asked == known:
            return self
        if self.parts and sum(asked) == self.num_layers:
            return replace(self, splits={**self.splits, num_stages: asked})
        if any(max(split) - min(split) > 1 for split in (asked, known) if split is not None):
            raise InvalidPlanError(f"the costs are not those of layers {layers or 'split evenly'}")
        return self

    def of_replica(self, replica: Replica) -> "CostModel":
        """Return the costs of a replica: with its recomputation, and its layers by stage.

        Raises
        ------
        InvalidPlanError
            When the cost table has none of this kind.
        """
        return self.of_recomputation(replica.recompute).of_layers(replica.num_stages, replica.layers_per_stage)

    def transfer_time(self, tokens: ArrayLike) -> Floats:
        """Return the time from the end of a micro-batch on a stage until its neighbour can start, seconds."""
        return self.transfer[0] + self.transfer[1] * np.asarray(tokens, dtype=float)

    def kept_to(self, longest: int) -> "CostModel":
        """Return the model whose plans have no micro-batch larger than the largest profiled, or than one long sample.

        What curves say beyond the points that they were fitted to is a guess.

        Parameters
        ----------
        longest
            Tokens of the longest sample.
        """
        most = max(self.profiled_tokens[1], longest)
        return replace(self, largest_tokens=most, alternatives=tuple(m.kept_to(longest) for m in self.alternatives))

    def memory_model(self, num_stages: int) -> MemoryModel:
        """Return the memory of the fullest stage, and the largest micro-batch that may be planned.

        It is extrapolated with a margin where the stage count was not profiled. Where it was profiled with other layers
        by stage, those that the fullest stage has more weigh and keep what a layer does, those that it has less nothing
        less.
        """
        return replace(self._memory_model(num_stages), most=self.largest_tokens)

    def _memory_model(self, num_stages: int) -> MemoryModel:
        if num_stages in self.memory:
            profiled, layers = self.measured_splits.get(num_stages), self.layers_per_stage(num_stages)
            if profiled is None or layers is None or layers == profiled:
                return self.memory[num_stages]
            return self.kept[num_stages].moved(self.memory[num_stages], profiled, layers)
        margin = EXTRAPOLATION_MEMORY_MARGIN
        static = self._extrapolated_static(num_stages)
        working = max(m.working_gib for m in self.memory.values())
        total = max(m.working_gib + m.held_gib for m in self.memory.values())
        return MemoryModel(static * margin, working * margin, (total - working) * margin)

    def _extrapolated_static(self, num_stages: int) -> float:
        counts = np.array(self.profiled, dtype=float)
        static = np.array([self.memory[g].static_gib for g in self.profiled])
        if len(counts) > 1:
            slope, base = np.polyfit(1 / counts, static, 1)
            value = float(base + slope / num_stages)
        else:  # one point cannot tell weights from the rest: all shrinks as weights do, nothing grows thinner for free
            value = float(static[0] * max(1.0, counts[0] / num_stages))
        return max(value, (self.weights_gib or 0.0) / num_stages, 0.0)

    def memory_limit(self, pool_memory_gib: float) -> float:
        """Return the memory that plans may fill of a GPU that has `pool_memory_gib`, GiB.

        Fragmentation and the driver take their share; rows that failed show how much, otherwise a part is reserved.
        """
        most = pool_memory_gib * (1 - RESERVED_MEMORY)
        return most if self.usable_memory_gib is None else min(most, self.usable_memory_gib)

    def max_tokens(self, num_stages: int, pool_memory_gib: float) -> int:
        """Return the largest micro-batch that fits a stage without adapters, tokens; 0 when an empty stage does not."""
        return self.memory_model(num_stages).max_tokens(self.memory_limit(pool_memory_gib))
