"""The cost model: times and memory of micro-batches as functions of their tokens.

Legend: T tokens of a micro-batch, Q its sum of squared sequence lengths, g pipeline stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cappuccino.backbone import LayerShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.memory import Floats, MemoryModel, adapter_memory_gib, mask_memory_gib
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Adapter
from cappuccino.plan import Recompute, even_layers

EXTRAPOLATION_MEMORY_MARGIN = 1.1
"""Factor on the memory of stage counts that nobody profiled."""

RESERVED_MEMORY = 0.05
"""Part of a GPU's memory that plans never fill."""


@dataclass(frozen=True)
class SmoothMaximum:
    """`(floor^p + work^p)^(1/p)` with the work `a T + q Q`: flat while launch-bound, then linear; convex in the work.

    Every adapter in the micro-batch adds to the floor by its modules, and to the work by its tokens, the widths of its
    modules, its parameters and its dropout (per decoder layer, `AdapterSize`).
    """

    floor_s: float
    per_token_s: float
    per_square_s: float
    power: float
    per_module_s: float = 0.0
    """Floor per module of an adapter in the micro-batch."""
    per_width_s: float = 0.0
    """Work per token of an adapter and unit of its modules' widths."""
    per_parameter_s: float = 0.0
    """Work per token of an adapter and parameter of it."""
    per_dropped_s: float = 0.0
    """Work per token of an adapter with dropout and unit of its modules' input widths."""

    def adapter_floor(self, size: AdapterSize) -> float:
        """Return what an adapter adds to the floor of the micro-batches that it is in, seconds."""
        return self.per_module_s * size.modules

    def adapter_work(self, size: AdapterSize) -> float:
        """Return what an adapter adds to the work of each of its tokens, seconds."""
        of_size = self.per_width_s * size.widths + self.per_parameter_s * size.parameters
        return of_size + self.per_dropped_s * size.dropped

    def work(self, tokens: ArrayLike, squares: ArrayLike) -> Floats:
        """Return the asymptotic cost `a T + q Q`, seconds: additive over samples, never above the time."""
        return self.per_token_s * np.asarray(tokens, dtype=float) + self.per_square_s * np.asarray(squares, dtype=float)

    def of_work(self, work: ArrayLike, more_floor: ArrayLike = 0.0) -> Floats:
        """Return the time of a micro-batch with this work, seconds.

        Parameters
        ----------
        more_floor
            What its adapters add to the floor.
        """
        work, floor = np.broadcast_arrays(np.asarray(work, dtype=float), self.floor_s + np.asarray(more_floor))
        high, low = np.maximum(work, floor), np.minimum(work, floor)
        part = np.divide(low, high, out=np.zeros(work.shape), where=high > 0)
        return np.asarray(high * (1 + part**self.power) ** (1 / self.power))

    def __call__(
        self, tokens: ArrayLike, squares: ArrayLike, more_floor: ArrayLike = 0.0, more_work: ArrayLike = 0.0
    ) -> Floats:
        """Return the time, seconds; the last two are what the adapters in the micro-batch add."""
        return self.of_work(self.work(tokens, squares) + np.asarray(more_work), more_floor)

    def raised(self, floor_s: float) -> "SmoothMaximum":
        """Return the curve with a floor that is higher by `floor_s`."""
        return replace(self, floor_s=self.floor_s + floor_s)

    def scaled(self, factor: float) -> "SmoothMaximum":
        """Return the curve with every time multiplied by `factor`."""
        values = {field.name: getattr(self, field.name) * factor for field in fields(self) if field.name != "power"}
        return SmoothMaximum(power=self.power, **values)


@dataclass(frozen=True)
class AdapterCosts:
    """All that times, memory and bounds depend on of adapters, beside their samples; arrays by adapter.

    Whatever else comes to depend on an adapter's settings gets a field here: adapters are told apart by all of them.
    """

    forward_floor: Floats
    """Added to every micro-batch that the adapter is in, seconds on one stage."""
    forward_work: Floats
    """Added for every token of the adapter, likewise."""
    backward_floor: Floats
    backward_work: Floats
    clipped: NDArray[np.bool_]
    """Whether the adapter's optimizer step waits for the gradient norm of all stages."""
    memory_gib: Floats
    """Weights, gradients and moments on the stage with the most layers, GiB, as long as the replica runs."""
    masks_gib: Floats
    """Dropout masks there of a token in flight, GiB."""

    def beside(self, memory: MemoryModel) -> MemoryModel:
        """Return the memory of a stage with all these adapters; every token counts as one of the most dropout."""
        return memory.beside(float(self.memory_gib.sum()), float(self.masks_gib.max(initial=0.0)))

    @property
    def differ(self) -> bool:
        """Whether adapters add any time that the curves do not have in them."""
        return any(x.any() for x in (self.forward_floor, self.forward_work, self.backward_floor, self.backward_work))

    def by_adapter(self) -> Floats:
        """Return every number there is of an adapter, shape (adapters, fields): those with equal rows cost alike."""
        return np.stack([np.asarray(getattr(self, f.name), dtype=float) for f in fields(self)], axis=1)

    def of_micro_batch(self, adapters: Sequence[int], lengths: Sequence[int], *, padded: bool) -> Floats:
        """Return what the adapters of a micro-batch add: forward floor and work, backward floor and work, seconds.

        Parameters
        ----------
        adapters, lengths
            Of its samples. In the padded layout the padding of an adapter's samples counts as its own.
        """
        members, tokens = np.array(adapters), np.array(lengths, dtype=float)
        if padded:
            tokens[:] = tokens.max()
        present = np.unique(members)
        return np.array(
            [
                self.forward_floor[present].sum(),
                self.forward_work[members] @ tokens,
                self.backward_floor[present].sum(),
                self.backward_work[members] @ tokens,
            ]
        )


def micro_batch_shape(lengths: Sequence[int], layout: str) -> tuple[int, int]:
    """Return tokens and sum of squared lengths of a micro-batch of samples with these lengths.

    In the padded layout every sample counts as long as the longest.
    """
    if layout == "padded":
        longest = max(lengths)
        return len(lengths) * longest, len(lengths) * longest * longest
    return sum(lengths), sum(n * n for n in lengths)


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
    """Decoder layers by stage that the curves of a stage count are of, where they are not even."""
    layer_shape: LayerShape | None = None
    """Where known; without it all adapters cost alike."""
    weights_gib: float | None = None
    """Backbone weights in 16 bit, where the backbone is catalogued: a floor under extrapolated memory."""
    usable_memory_gib: float | None = None
    """What the rows that failed say can really be used of a GPU's memory; None when none failed."""
    profiled_tokens: tuple[int, int] = (1, 1)
    """Smallest and largest micro-batch of the table, tokens."""
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

    def forward_curve(self, num_stages: int) -> SmoothMaximum:
        """Return the forward time of one of `num_stages` stages as a function of a micro-batch."""
        return self._curve(self.stage_forward, self.forward, num_stages)

    def backward_curve(self, num_stages: int) -> SmoothMaximum:
        """Return the backward time of one of `num_stages` stages as a function of a micro-batch."""
        return self._curve(self.stage_backward, self.backward, num_stages)

    def adapter_costs(self, num_stages: int, adapters: Sequence[Adapter]) -> AdapterCosts:
        """Return what costs depend on of each of these adapters on one of `num_stages` stages.

        Without the widths of a layer all adapters cost alike, in time and memory as those that were profiled.
        """
        curves = self.forward_curve(num_stages), self.backward_curve(num_stages)
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

    @staticmethod
    def _curve(by_count: Mapping[int, SmoothMaximum], whole: SmoothMaximum, num_stages: int) -> SmoothMaximum:
        return by_count[num_stages] if num_stages in by_count else whole.scaled(1 / num_stages)

    def transfer_time(self, tokens: ArrayLike) -> Floats:
        """Return the time from the end of a micro-batch on a stage until its neighbour can start, seconds."""
        return self.transfer[0] + self.transfer[1] * np.asarray(tokens, dtype=float)

    def memory_model(self, num_stages: int) -> MemoryModel:
        """Return the memory of a stage, extrapolated with a margin where the stage count was not profiled."""
        if num_stages in self.memory:
            return self.memory[num_stages]
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
