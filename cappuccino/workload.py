"""The micro-batches of a replica as arrays: what they hold and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.costs import CostModel, MemoryModel, micro_batch_shape
from cappuccino.instance import Instance
from cappuccino.plan import Replica, Sample


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
        return cls.of_samples(samples, indices, replica.num_stages, instance, costs.of_replica(replica))

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
