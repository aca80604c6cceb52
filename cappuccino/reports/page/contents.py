"""What a page tells of: a checked plan, and what was measured of it where there is such."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica
from cappuccino.reports.prediction_error import ReplicaComparison
from cappuccino.simulator import Simulation
from cappuccino.workload import Workload


@dataclass(frozen=True)
class LossPoint:
    """A loss of an adapter, or the end of its training before its last step."""

    adapter: str
    """Name."""
    step: int
    """Optimizer step, from 0."""
    kind: Literal["train", "eval", "stop"]
    loss: float | None
    """Mean cross-entropy over loss tokens; None where it is not finite."""
    reason: str | None = None
    """Why training was stopped."""


@dataclass(frozen=True)
class PageContents:
    """Everything that a page is made of."""

    plan: Plan
    """Checked, and valid."""
    instance: Instance
    costs: Mapping[str, CostModel]
    """By GPU type."""
    simulation: Simulation
    """Of the checker."""
    measured: Sequence[ReplicaComparison] = ()
    """By replica; empty without a trace."""
    losses: Sequence[LossPoint] = ()
    """In the order in which they became known; empty without metrics."""
    done: int = 0
    """Optimizer steps that the plan takes as done, which are not in it."""
    certified: bool = False
    """Whether the checker has confirmed the plan's bound."""

    @cached_property
    def workloads(self) -> tuple[Workload, ...]:
        """By replica."""
        return tuple(Workload.of(r, self.instance, self.costs[r.gpu]) for r in self.plan.replicas)

    @cached_property
    def lengths(self) -> tuple["BatchLengths", ...]:
        """By replica."""
        return tuple(BatchLengths.of(r, self.instance) for r in self.plan.replicas)

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """Names of all adapters, in the instance's order; those that only losses name come last."""
        known = [a.name for a in self.instance.adapters]
        return tuple(dict.fromkeys([*known, *(p.adapter for p in self.losses)]))

    def memory_limit(self, replica: Replica) -> float:
        """Return the memory of its GPUs that a replica may use, GiB."""
        mine = self.costs[replica.gpu].of_recomputation(replica.recompute)
        return float(mine.memory_limit(self.instance.pool(replica.gpu).memory_gib))

    def padding(self, replica: int) -> float:
        """Return the fraction of a replica's computed tokens that are padding."""
        work = self.workloads[replica]
        computed = int(work.tokens.sum() + work.evaluations.tokens.sum())
        held = sum(sum(tokens.values()) for tokens in self.lengths[replica].tokens)
        return 1 - held / computed if computed else 0.0

    @property
    def total_padding(self) -> float:
        """Fraction of all computed tokens that are padding."""
        computed = [float(w.tokens.sum() + w.evaluations.tokens.sum()) for w in self.workloads]
        padded = [self.padding(r) * c for r, c in enumerate(computed)]
        return sum(padded) / sum(computed) if sum(computed) else 0.0

    @property
    def bubble(self) -> float:
        """Fraction of the replicas' GPU time, each from its begin to its end, in which stages do nothing."""
        lines = [run.timeline for run in self.simulation.replicas]
        return idle_fraction([(line.busy, line.makespan) for line in lines])

    @property
    def measured_bubble(self) -> float:
        """Likewise, as measured."""
        return idle_fraction([(c.measured.busy, c.measured.makespan) for c in self.measured])


def amount(value: float) -> str:
    """Return a figure with four digits, large ones in full."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def idle_fraction(runs: Sequence[tuple[np.ndarray, float]]) -> float:
    """Return the idle fraction of runs of (busy seconds by stage, makespan)."""
    total = sum(len(busy) * makespan for busy, makespan in runs)
    return max(0.0, 1 - sum(float(busy.sum()) for busy, _ in runs) / total) if total else 0.0


@dataclass(frozen=True)
class BatchLengths:
    """What the micro-batches of a replica hold, those of evaluations behind those that are trained on."""

    tokens: tuple[dict[int, int], ...]
    """By micro-batch, the tokens of its samples by adapter, which is given by its position in the instance."""
    samples: tuple[dict[int, int], ...]
    """Likewise, the number of samples."""
    steps: tuple[dict[int, tuple[int, int]], ...]
    """Likewise, the first and last optimizer step that samples are of."""

    @classmethod
    def of(cls, replica: Replica, instance: Instance) -> "BatchLengths":
        """Count them."""
        indices = [instance.adapter_index(name) for name in replica.adapters]
        members: list[list[tuple[int, int, int]]] = []  # adapter, tokens, step
        for batch in replica.micro_batches:
            found = []
            for a, number in batch.samples:
                size = instance.adapters[indices[a]].global_batch_size
                found.append((indices[a], instance.sample_length(indices[a], number), number // size))
            members.append(found)
        for evaluation in replica.evaluations:
            i = indices[evaluation.adapter]
            lengths = instance.evaluation_lengths(i)
            members.append([(i, int(lengths[n]), evaluation.step) for n in evaluation.samples])
        tokens: list[dict[int, int]] = []
        samples: list[dict[int, int]] = []
        steps: list[dict[int, tuple[int, int]]] = []
        for found in members:
            tokens.append({})
            samples.append({})
            steps.append({})
            for i, length, step in found:
                tokens[-1][i] = tokens[-1].get(i, 0) + length
                samples[-1][i] = samples[-1].get(i, 0) + 1
                first, last = steps[-1].get(i, (step, step))
                steps[-1][i] = min(first, step), max(last, step)
        return cls(tuple(tokens), tuple(samples), tuple(steps))
