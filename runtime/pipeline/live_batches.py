"""Who is still in the micro-batches of a replica while adapters are stopped; needs no torch."""

from collections.abc import Sequence

from cappuccino.plan import MicroBatch, Operation, Replica
from cappuccino.runtime.data.samples import AdapterSamples
from cappuccino.runtime.pipeline.program import key


class LiveBatches:
    """What is left of a replica's program.

    Every stage makes the steps of an adapter before it runs their followers, and all agree on the step that an adapter
    is stopped at. So whatever a stage still has to run of a micro-batch has the same samples on all stages.

    Parameters
    ----------
    replica
        The plan of the replica.
    samples
        By position in the replica's adapters.
    """

    def __init__(self, replica: Replica, samples: Sequence[AdapterSamples]) -> None:
        self._replica, self._samples = replica, samples
        self._batches: list[MicroBatch | None] = list(replica.micro_batches)
        self._stopped: dict[int, int] = {}

    def __getitem__(self, micro_batch: int) -> MicroBatch:
        """Return what is left of a micro-batch that `runs`; a micro-batch that was run is as it was then."""
        batch = self._batches[micro_batch]
        if batch is None:
            raise KeyError(f"nothing is left of micro-batch {micro_batch}")
        return batch

    def stopped(self, adapter: int) -> bool:
        """Return whether an adapter was stopped."""
        return adapter in self._stopped

    def runs(self, operation: Operation) -> bool:
        """Return whether an operation is still for something."""
        if operation[0] == "S":
            return operation[1] not in self._stopped
        if operation[0] == "E":
            planned = self._replica.evaluations[operation[1]]
            return planned.adapter not in self._stopped or planned.step < self._stopped[planned.adapter]
        return self._batches[operation[1]] is not None

    def stop(self, adapter: int, step: int) -> dict[int, MicroBatch | None]:
        """Take an adapter out from a step on that is not made.

        Returns
        -------
        dict
            By `key` of a forward, what is left of micro-batches and evaluations that change; None: nothing.
        """
        self._stopped[adapter] = step
        changed: dict[int, MicroBatch | None] = {
            key(("E", e)): None
            for e, x in enumerate(self._replica.evaluations)
            if x.adapter == adapter and x.step >= step
        }
        for m, batch in enumerate(self._batches):
            if batch is None:
                continue
            left = tuple((a, n) for a, n in batch.samples if a != adapter or self._samples[a].step(n) <= step)
            if len(left) < len(batch.samples):
                self._batches[m] = changed[m] = MicroBatch(samples=left) if left else None
        return changed

    def steps_before(self, program: Sequence[Operation]) -> dict[int, int]:
        """Return by `key` how many optimizer steps of a stage's program decide on who is in a forward."""
        steps = [(operation[1], operation[2]) for operation in program if operation[0] == "S"]
        after = {step: count for count, step in enumerate(steps, 1)}
        found = {
            m: max(after.get((a, self._samples[a].step(n) - 1), 0) for a, n in batch.samples)
            for m, batch in enumerate(self._replica.micro_batches)
        }
        evaluations = enumerate(self._replica.evaluations)
        return found | {key(("E", e)): after.get((x.adapter, x.step), 0) for e, x in evaluations}
