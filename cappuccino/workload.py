"""The micro-batches of a replica as arrays: what they hold and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cappuccino.costs import CostModel, MemoryModel, micro_batch_shape
from cappuccino.instance import Instance
from cappuccino.plan import Replica, Sample


@dataclass(frozen=True)
class EvaluationWork:
    """The evaluation micro-batches of one replica and their costs: forwards that no backward follows.

    Legend: E evaluation micro-batches, G stages.
    """

    tokens: np.ndarray
    """Shape (E,)."""
    steps: tuple[tuple[int, int], ...]
    """By evaluation micro-batch, (position of the adapter in the replica, optimizer step that it follows)."""
    forward_s: np.ndarray
    """By stage, shape (G, E)."""
    transfer_s: np.ndarray
    """Shape (E,)."""

    @classmethod
    def none(cls) -> "EvaluationWork":
        """Return the work of no evaluation."""
        return cls(np.zeros(0, np.int64), (), np.zeros((0, 0)), np.zeros(0))

    @classmethod
    def of(
        cls,
        batches: Sequence[tuple[int, int, Sequence[int]]],
        adapters: Sequence[int],
        num_stages: int,
        instance: Instance,
        costs: CostModel,
    ) -> "EvaluationWork":
        """Return the work of (position, optimizer step, sample numbers) triples of these instance adapters."""
        if not batches:
            return cls.none()
        lengths = [[int(instance.evaluation_lengths(adapters[a])[n]) for n in numbers] for a, _, numbers in batches]
        shapes = [micro_batch_shape(mine, instance.layout) for mine in lengths]
        tokens, squares = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
        found = costs.adapter_costs(num_stages, [instance.adapters[i] for i in adapters])
        padded = instance.layout == "padded"
        more = [
            found.of_micro_batch([a] * len(mine), mine, padded=padded)
            for (a, *_), mine in zip(batches, lengths, strict=True)
        ]
        return cls(
            tokens=tokens,
            steps=tuple((a, j) for a, j, _ in batches),
            forward_s=costs.pipeline(num_stages).times(tokens, squares, np.array(more).T)[0],
            transfer_s=costs.transfer_time(tokens),
        )


@dataclass(frozen=True)
class Workload:
    """The micro-batches of one replica and their costs on its stages.

    Legend: M micro-batches, G stages.
    """

    tokens: np.ndarray
    """Shape (M,)."""
    steps: tuple[frozenset[tuple[int, int]], ...]
    """By micro-batch, the (position of the adapter in the replica, optimizer step) pairs it has samples of."""
    forward_s: np.ndarray
    """By stage, shape (G, M)."""
    backward_s: np.ndarray
    """Likewise."""
    transfer_s: np.ndarray
    """Between neighbouring stages, shape (M,)."""
    optimizer_s: float
    """One optimizer step of one adapter on one stage."""
    clipped: frozenset[int]
    """Positions of the adapters whose optimizer step waits for the gradient norm of all stages."""
    memory: MemoryModel
    """Of the fullest stage, with the adapters."""
    evaluations: EvaluationWork = field(default_factory=EvaluationWork.none)

    @classmethod
    def of(cls, replica: Replica, instance: Instance, costs: CostModel) -> "Workload":
        """Build the workload of a replica whose samples exist in the instance.

        Raises
        ------
        InvalidPlanError
            When the costs are of other recomputation or layers than the replica's.
        """
        indices = [instance.adapter_index(name) for name in replica.adapters]
        samples = [batch.samples for batch in replica.micro_batches]
        mine = costs.of_replica(replica)
        found = cls.of_samples(samples, indices, replica.num_stages, instance, mine)
        batches = [(e.adapter, e.step, e.samples) for e in replica.evaluations]
        return replace(found, evaluations=EvaluationWork.of(batches, indices, replica.num_stages, instance, mine))

    @classmethod
    def of_samples(
        cls,
        micro_batches: Sequence[Sequence[Sample]],
        adapters: Sequence[int],
        num_stages: int,
        instance: Instance,
        costs: CostModel,
    ) -> "Workload":
        """Build the workload of micro-batches of (position, sample number) pairs of these instance adapters."""
        sizes = [instance.adapters[i].global_batch_size for i in adapters]
        shapes = [
            micro_batch_shape([instance.sample_length(adapters[a], n) for a, n in batch], instance.layout)
            for batch in micro_batches
        ]
        tokens, squares = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
        found = costs.adapter_costs(num_stages, [instance.adapters[i] for i in adapters])
        more = np.zeros((4, len(micro_batches)))
        if found.differ:
            for m, batch in enumerate(micro_batches):
                members = [a for a, _ in batch]
                lengths = [instance.sample_length(adapters[a], n) for a, n in batch]
                more[:, m] = found.of_micro_batch(members, lengths, padded=instance.layout == "padded")
        forward_s, backward_s = costs.pipeline(num_stages).times(tokens, squares, more)
        return cls(
            tokens=tokens,
            steps=tuple(frozenset((a, n // sizes[a]) for a, n in batch) for batch in micro_batches),
            forward_s=forward_s,
            backward_s=backward_s,
            transfer_s=costs.transfer_time(tokens),
            optimizer_s=costs.optimizer_s,
            clipped=frozenset(np.flatnonzero(found.clipped).tolist()),
            memory=found.beside(costs.memory_model(num_stages)),
        )
