"""One replica to be scheduled: its adapters' samples and what micro-batches of them cost on its stages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.costs import AdapterCosts, CostModel, MemoryModel, PipelineCosts, micro_batch_shape
from cappuccino.instance import Instance
from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.kernels.arrays import BusiestStage, Machine, StageCosts, StepTable
from cappuccino.solvers.scheduling.kernels.costs import batch_table, time_of_work

EVALUATED_WORK = 4.0
"""Work of an evaluation micro-batch, in multiples of that at which one leaves the launch-bound floor."""
StepKey = tuple[int, int]
"""Position of the adapter in the replica, optimizer step."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A micro-batch with its costs. Compared by identity: two equal ones are still two."""

    samples: tuple[Sample, ...]
    steps: tuple[StepKey, ...]
    tokens: int
    forward_s: tuple[float, ...]
    """By kind of stage, as `ReplicaProblem.pipeline` tells them apart."""
    backward_s: tuple[float, ...]
    """Likewise."""
    transfer_s: float
    urgency_s: float = 0.0
    """How long a stage that could start something else waits for it."""
    evaluation: "Evaluation | None" = None
    """What is evaluated, instead of trained: no backward follows."""


class Evaluation(NamedTuple):
    """Samples of evaluation data."""

    adapter: int
    """Position in the replica."""
    step: int
    """Optimizer step behind which they are evaluated."""
    samples: tuple[int, ...]
    """Numbers in the adapter's evaluation data."""


@dataclass(frozen=True)
class ReplicaProblem:
    """Adapters of an instance on one pipeline."""

    instance: Instance
    costs: CostModel
    adapters: tuple[int, ...]
    """Indices in the instance; a position in this tuple names the adapter inside the replica."""
    num_stages: int
    memory_gib: float
    """Memory of one GPU of the pool, GiB."""
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
        """Memory of a stage that holds the adapters."""
        return self.adapter_costs.beside(self.costs.memory_model(self.num_stages))

    @cached_property
    def held_room_gib(self) -> float:
        """What a stage can give to working and held memory."""
        return self.costs.memory_limit(self.memory_gib) - self.memory.static_gib

    @cached_property
    def max_tokens(self) -> int:
        """Largest micro-batch that fits, tokens."""
        return self.memory.max_tokens(self.costs.memory_limit(self.memory_gib))

    def largest_micro_batch(self, adapter: int, places: np.ndarray) -> int:
        """Return the tokens of the largest micro-batch of an adapter's first steps, packed as given.

        Parameters
        ----------
        adapter
            Position in the replica.
        places
            Micro-batch of every sample, shape (steps, global_batch_size).
        """
        held = places[None] == np.arange(places.max() + 1)[:, None, None]
        lengths = np.where(held, self.lengths[adapter][: len(places)], 0)
        if self.instance.layout == "padded":
            return int((held.sum(axis=2) * lengths.max(axis=2)).max())
        return int(lengths.sum(axis=2).max())

    @cached_property
    def num_steps(self) -> tuple[int, ...]:
        """Optimizer steps by position."""
        return tuple(len(x) for x in self.lengths)

    @cached_property
    def first_steps(self) -> tuple[int, ...]:
        """Number of each position's first optimizer step among those of all, and how many there are in all."""
        return tuple(accumulate(self.num_steps, initial=0))

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
        return self.batches([samples], [urgency_s])[0]

    def batches(self, groups: Sequence[Iterable[Sample]], urgencies_s: Sequence[float] | None = None) -> list[Batch]:
        """Return the micro-batches of several groups of samples."""
        ordered = [tuple(sorted(group)) for group in groups]
        begins = np.array([0, *accumulate(map(len, ordered))])
        adapters = np.array([a for samples in ordered for a, _ in samples], np.int64)
        lengths = np.array([self._length(s) for samples in ordered for s in samples], np.int64)
        table = batch_table(self.stage_costs, self.added, begins, adapters, lengths)
        forward, backward, transfer, tokens = (column.tolist() for column in table)
        sizes = [x.shape[1] for x in self.lengths]
        return [
            Batch(
                samples=samples,
                steps=tuple(dict.fromkeys((a, n // sizes[a]) for a, n in samples)),
                tokens=tokens[k],
                forward_s=tuple(forward[k]),
                backward_s=tuple(backward[k]),
                transfer_s=transfer[k],
                urgency_s=0.0 if urgencies_s is None else urgencies_s[k],
            )
            for k, samples in enumerate(ordered)
        ]

    def evaluation(self, what: Evaluation) -> Batch:
        """Return the micro-batch that evaluates these samples."""
        lengths = self.instance.evaluation_lengths(self.adapters[what.adapter])[list(what.samples)].astype(np.int64)
        begins, adapters = np.array([0, len(lengths)]), np.full(len(lengths), what.adapter)
        table = batch_table(self.stage_costs, self.added, begins, adapters, lengths)
        forward = tuple(table.forward_s[0].tolist())
        nothing, transfer = (0.0,) * len(forward), table.transfer_s.item()
        return Batch((), (), table.tokens.item(), forward, nothing, transfer, evaluation=what)

    @cached_property
    def evaluations(self) -> tuple[Batch, ...]:
        """Micro-batches of all evaluations, adapter by adapter and step by step.

        They are packed for the fewest, by first fit of falling lengths, up to a work that is above the launch-bound
        floor and not so large that others wait for long.
        """
        result = []
        for a, i in enumerate(self.adapters):
            parts = self._evaluation_parts(a) if self.instance.evaluated_steps(i) else []
            for step in self.instance.evaluated_steps(i):
                result += [self.evaluation(Evaluation(a, step, part)) for part in parts]
        return tuple(result)

    @cached_property
    def evaluated(self) -> frozenset[StepKey]:
        """Steps behind which there is an evaluation."""
        return frozenset((a, j) for a, i in enumerate(self.adapters) for j in self.instance.evaluated_steps(i))

    def _evaluation_parts(self, a: int) -> list[tuple[int, ...]]:
        lengths = self.instance.evaluation_lengths(self.adapters[a])
        work = float(self.sample_work[a].sum() / self.lengths[a].sum())  # of a token
        most = min(self.max_tokens, EVALUATED_WORK * self.launch_bound_work / work if work > 0 else self.max_tokens)
        parts: list[list[int]] = []
        for n in np.argsort(-lengths, kind="stable").tolist():
            for part in parts:
                if micro_batch_shape([*lengths[part].tolist(), int(lengths[n])], self.instance.layout)[0] <= most:
                    part.append(n)
                    break
            else:
                parts.append([n])
        return [tuple(sorted(part)) for part in parts]

    @cached_property
    def adapter_costs(self) -> AdapterCosts:
        """What costs depend on of each adapter, by position."""
        return self.costs.adapter_costs(self.num_stages, [self.instance.adapters[i] for i in self.adapters])

    @cached_property
    def added(self) -> np.ndarray:
        """What each adapter adds to micro-batches and tokens, seconds, as the kernels read it, shape (A, 4)."""
        found = self.adapter_costs
        return np.stack([found.forward_floor, found.forward_work, found.backward_floor, found.backward_work], axis=1)

    @cached_property
    def stage_costs(self) -> StageCosts:
        """What micro-batches cost on the stages, as the kernels read it."""
        pipeline, limits = self.pipeline, (self.max_tokens, self.instance.layout == "padded")
        curves = np.array(
            [[(c.floor_s, c.per_token_s, c.per_square_s, c.power) for c in way] for way in pipeline.curves]
        )
        return StageCosts(curves, pipeline.kind_shares, *self.costs.transfer, *limits)

    @cached_property
    def busiest(self) -> BusiestStage:
        """The stage that a token of a large micro-batch keeps busy longest, as the kernels read it."""
        shares = self._busiest_shares
        floors, works = (
            [sum(n * getattr(c, name) for n, c in zip(shares, way, strict=True)) for way in self.pipeline.curves]
            for name in ("floor_s", "per_token_s")
        )
        powers = [way[0].power for way in self.pipeline.curves]
        part = works[0] / sum(works) if sum(works) > 0 else 0.5
        return BusiestStage(floors[0], powers[0], part, floors[1], powers[1])

    @cached_property
    def _busiest_shares(self) -> list[float]:
        return [float(x) for x in self.pipeline.shares[self.pipeline.busiest]]

    @property
    def pipeline(self) -> PipelineCosts:
        """Times of micro-batches on the stages."""
        return self.costs.pipeline(self.num_stages)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kind of every stage, shape (num_stages,)."""
        return np.array(self.pipeline.kinds)

    def machine(self, patience_s: float) -> Machine:
        """Return the stages as the kernels read them.

        Parameters
        ----------
        patience_s
            How long a stage that could start an F waits for a B instead.
        """
        memory = self.memory
        room = self.held_room_gib * (1 + 1e-9)
        return Machine(self.kinds, memory.working_gib, memory.held_gib, room, patience_s)

    def step_table(self, order: Sequence[Batch]) -> StepTable:
        """Return which steps micro-batches are of, as the kernels read it."""
        numbers = [self.first_steps[a] + j for b in order for a, j in b.steps]
        begins = np.cumsum([0, *(len(b.steps) for b in order)])
        whats = [b.evaluation for b in order]
        evaluated = [-1 if e is None else self.first_steps[e.adapter] + e.step for e in whats]
        return StepTable(begins, np.array(numbers, np.int64), *self.step_traits, np.array(evaluated, np.int64))

    @cached_property
    def step_traits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether a step is its adapter's first, the last, and clipped, bool, each of shape (steps,)."""
        limits = np.array(self.first_steps)
        first, last = np.zeros((2, limits[-1]), dtype=bool)
        first[limits[:-1]] = last[limits[1:] - 1] = True
        return first, last, np.repeat(self.adapter_costs.clipped, self.num_steps)

    def time_of_work(self, work: float) -> float:
        """Return about the forward plus backward time of a micro-batch with this work, seconds."""
        return float(time_of_work(self.busiest, work))

    @cached_property
    def sample_work(self) -> tuple[np.ndarray, ...]:
        """Work (asymptotic forward plus backward seconds) of every sample on the busiest stage, by position."""
        shares = self._busiest_shares
        added = shares[0] * (self.adapter_costs.forward_work + self.adapter_costs.backward_work)
        weighted = [(n, c) for way in self.pipeline.curves for n, c in zip(shares, way, strict=True)]
        return tuple(
            sum((n * c.work(x, x.astype(float) ** 2) for n, c in weighted), more * x)
            for x, more in zip(self.lengths, added, strict=True)
        )

    @cached_property
    def launch_bound_work(self) -> float:
        """Work at which a micro-batch of one adapter leaves the launch-bound floor on the busiest stage."""
        adapter = float((self.adapter_costs.forward_floor + self.adapter_costs.backward_floor).mean())
        floors = self.busiest.forward_floor_s + self.busiest.backward_floor_s
        return float(max(floors + self._busiest_shares[0] * adapter, 1e-12))

    def _length(self, sample: Sample) -> int:
        lengths = self.lengths[sample[0]]
        return int(lengths[divmod(sample[1], lengths.shape[1])])
