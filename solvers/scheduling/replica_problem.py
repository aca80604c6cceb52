"""One replica to be scheduled: its adapters' samples and what micro-batches of them cost on its stages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.costs import AdapterCosts, CostModel, MemoryModel, micro_batch_shape
from cappuccino.instance import Instance
from cappuccino.plan import Sample

StepKey = tuple[int, int]
"""Position of the adapter in the replica, optimizer step."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A micro-batch with its costs on one stage. Compared by identity: two equal ones are still two."""

    samples: tuple[Sample, ...]
    steps: tuple[StepKey, ...]
    tokens: int
    forward_s: float
    backward_s: float
    transfer_s: float
    urgency_s: float = 0.0
    """How long a stage that could start something else waits for it."""


@dataclass(frozen=True)
class ReplicaProblem:
    """Adapters of an instance on one pipeline."""

    instance: Instance
    costs: CostModel
    adapters: tuple[int, ...]
    """Indices in the instance; a position in this tuple names the adapter inside the replica."""
    num_stages: int
    memory_gib: float
    """Memory of one GPU of the pool."""
    known_bound_s: float | None = field(default=None, compare=False)
    """Proven bound on the makespan where it is at hand, seconds: it takes time to work out."""
    fastest: tuple[int, np.ndarray] | None = field(default=None, compare=False)
    """Where it is at hand, the position of the adapter with the longest path, and `fastest_places` of its steps."""

    @cached_property
    def lengths(self) -> tuple[np.ndarray, ...]:
        """Sample lengths by position, each (steps, global_batch_size), tokens."""
        return tuple(self.instance.step_lengths[i] for i in self.adapters)

    @cached_property
    def memory(self) -> MemoryModel:
        """Memory of a stage."""
        return self.costs.memory_model(self.num_stages)

    @cached_property
    def held_room_gib(self) -> float:
        """What a stage can give to working and held memory."""
        return self.costs.memory_limit(self.memory_gib) - self.memory.static_gib

    @cached_property
    def max_tokens(self) -> int:
        """Largest micro-batch that fits, tokens."""
        return self.costs.max_tokens(self.num_stages, self.memory_gib)

    @cached_property
    def num_steps(self) -> tuple[int, ...]:
        """Optimizer steps by position."""
        return tuple(len(x) for x in self.lengths)

    @cached_property
    def first_steps(self) -> tuple[int, ...]:
        """Number of each position's first optimizer step among those of all, and how many there are in all."""
        return tuple(accumulate(self.num_steps, initial=0))

    @cached_property
    def clipped(self) -> frozenset[int]:
        """Positions of adapters with gradient clipping."""
        return frozenset(np.flatnonzero(self.adapter_costs.clipped).tolist())

    @cached_property
    def lower_bound_s(self) -> float:
        """Proven bound on the makespan, seconds; infinite when a sample does not fit."""
        if self.known_bound_s is not None:
            return self.known_bound_s
        mine = self.instance.subset(list(self.adapters))
        bounds = ReplicaBounds(mine, self.costs, self.num_stages, self.memory_gib)
        return float(bounds.lower_bounds(np.ones((1, len(self.adapters)), dtype=bool))[0])

    def batch_tokens(self, samples: Iterable[Sample]) -> int:
        """Return the tokens of a micro-batch of these samples in the instance's layout."""
        return micro_batch_shape([self._length(s) for s in samples], self.instance.layout)[0]

    def batch(self, samples: Iterable[Sample], urgency_s: float = 0.0) -> Batch:
        """Return the micro-batch of these samples, sorted adapter by adapter."""
        ordered = tuple(sorted(samples))
        tokens, squares = micro_batch_shape([self._length(s) for s in ordered], self.instance.layout)
        more = self.added(ordered)
        steps = dict.fromkeys((a, n // self.lengths[a].shape[1]) for a, n in ordered)
        forward, backward = self._curves
        return Batch(
            ordered,
            tuple(steps),
            tokens,
            float(forward(tokens, squares, *more[:2])),
            float(backward(tokens, squares, *more[2:])),
            float(self.costs.transfer_time(tokens)),
            urgency_s,
        )

    def added(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return what the adapters of a micro-batch add, shape (4,), as `AdapterCosts.of_micro_batch` does."""
        if not self._adapters_differ:
            return np.zeros(4)
        lengths = [self._length(s) for s in samples]
        padded = self.instance.layout == "padded"
        return self.adapter_costs.of_micro_batch([a for a, _ in samples], lengths, padded=padded)

    @cached_property
    def _adapters_differ(self) -> bool:
        return self.adapter_costs.differ

    @cached_property
    def adapter_costs(self) -> AdapterCosts:
        """What costs depend on of each adapter, by position."""
        return self.costs.adapter_costs(self.num_stages, [self.instance.adapters[i] for i in self.adapters])

    def batches(self, groups: Sequence[Iterable[Sample]]) -> list[Batch]:
        """Return the micro-batches of several groups of samples."""
        return [self.batch(group) for group in groups]

    def time_of_work(self, work: float) -> float:
        """Return forward plus backward time of a micro-batch with this work, seconds."""
        forward, backward = self._curves
        share = self._forward_share
        return float(forward.of_work(work * share) + backward.of_work(work * (1 - share)))

    @cached_property
    def sample_work(self) -> tuple[np.ndarray, ...]:
        """Work (asymptotic forward plus backward seconds on one stage) of every sample, by position, as `lengths`."""
        added = self.adapter_costs.forward_work + self.adapter_costs.backward_work
        return tuple(
            sum((c.work(x, x.astype(float) ** 2) for c in self._curves), more * x)
            for x, more in zip(self.lengths, added, strict=True)
        )

    @cached_property
    def launch_bound_work(self) -> float:
        """Work at which a micro-batch of one adapter leaves the launch-bound floor."""
        forward, backward = self._curves
        adapter = float((self.adapter_costs.forward_floor + self.adapter_costs.backward_floor).mean())
        return max(forward.floor_s + backward.floor_s + adapter, 1e-12)

    @cached_property
    def _curves(self) -> tuple:  # type: ignore[type-arg]
        return self.costs.forward_curve(self.num_stages), self.costs.backward_curve(self.num_stages)

    @cached_property
    def _forward_share(self) -> float:
        forward, backward = self._curves
        total = forward.per_token_s + backward.per_token_s
        return float(forward.per_token_s / total) if total > 0 else 0.5

    def _length(self, sample: Sample) -> int:
        lengths = self.lengths[sample[0]]
        return int(lengths[divmod(sample[1], lengths.shape[1])])
