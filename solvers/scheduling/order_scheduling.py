"""Schedules a given order of micro-batches, and the arrays that the compiled search works on."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.annealing import Scratch, copy_packed
from cappuccino.solvers.scheduling.list_schedule_kernel import empty_state, run_pipeline
from cappuccino.solvers.scheduling.list_scheduling import (
    ListSchedule,
    added_by_adapter,
    empty_jobs,
    machine_of,
    no_source,
)
from cappuccino.solvers.scheduling.packed_order import Links, PackedOrder, Window, link
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem, StepKey


@dataclass(frozen=True)
class OrderArrays:
    """Micro-batches in order, as arrays with room for changes."""

    samples: tuple[Sample, ...]
    window: Window
    packed: PackedOrder

    @classmethod
    def of(
        cls, problem: ReplicaProblem, order: Sequence[Batch], begun: Set[StepKey] = frozenset(), spare: int = 0
    ) -> "OrderArrays":
        """Lay out micro-batches.

        Parameters
        ----------
        begun
            Steps with micro-batches before this order.
        spare
            Slots for further micro-batches.
        """
        # sorted: an adapter's samples stand next to each other
        placed = sorted((sample, slot) for slot, b in enumerate(order) for sample in b.samples)
        samples = tuple(sample for sample, _ in placed)
        sizes = [x.shape[1] for x in problem.lengths]
        keys = [(a, n // sizes[a]) for a, n in samples]
        number: dict[StepKey, int] = {}
        for key in keys:
            number.setdefault(key, len(number))
        optimizer_s = problem.costs.optimizer_s
        window = Window(
            np.array([problem.lengths[a].flat[n] for a, n in samples], np.int64),
            np.array([number[key] for key in keys], np.int64),
            np.array([number.get((a, j - 1), -1) for a, j in number], np.int64),
            np.array([optimizer_s if j and (a, j) not in begun else 0.0 for a, j in number]),
            np.array([a for a, _ in number], np.int64),
            added_by_adapter(problem)[[a for a, _ in number]],
        )
        room = len(order) + spare
        packed = PackedOrder(
            batch_of=np.array([slot for _, slot in placed], np.int64),
            order=np.arange(room),
            forward_s=np.zeros(room),
            backward_s=np.zeros(room),
            transfer_s=np.zeros(room),
            tokens=np.zeros(room, np.int64),
            urgency_s=np.zeros(room),
            number=np.array([len(order)]),
        )
        for slot, batch in enumerate(order):
            packed.forward_s[slot], packed.backward_s[slot] = batch.forward_s, batch.backward_s
            packed.transfer_s[slot], packed.tokens[slot] = batch.transfer_s, batch.tokens
            packed.urgency_s[slot] = batch.urgency_s
        return cls(samples, window, packed)

    def links(self) -> Links:
        """Return room for the dependencies."""
        steps = len(self.window.previous)
        return Links(np.zeros(len(self.packed.order), np.int64), np.zeros(steps, np.int64), np.zeros(steps, np.int64))

    def scratch(self, stages: int) -> Scratch:
        """Return room for a search, the best so far being this order."""
        copies, room = [], len(self.packed.order)
        for _ in range(2):
            copies.append(PackedOrder(*(np.empty_like(x) for x in self.packed)))
            copy_packed(self.packed, copies[-1])
        return Scratch(self.links(), empty_jobs(room), empty_state(stages, room), no_source(), *copies)

    def batches(self, problem: ReplicaProblem, packed: PackedOrder) -> list[Batch]:
        """Return the micro-batches of a packing and order of the same samples."""
        groups: dict[int, list[Sample]] = {}
        for sample, slot in zip(self.samples, packed.batch_of.tolist(), strict=True):
            groups.setdefault(slot, []).append(sample)
        slots = packed.order[: packed.number[0]].tolist()
        return [problem.batch(groups[slot], float(packed.urgency_s[slot])) for slot in slots]


def schedule_order(
    problem: ReplicaProblem, order: Sequence[Batch], patience_s: float = 0.0, cutoff_s: float = float("inf")
) -> ListSchedule | None:
    """Schedule micro-batches whose F's and B's stand in this order on all stages.

    Parameters
    ----------
    patience_s
        How long a stage that could start an F waits for a B instead.
    cutoff_s
        Makespan above which the schedule is of no interest.

    Returns
    -------
    ListSchedule or None
        None when the order contradicts the steps, or `cutoff_s` is exceeded.
    """
    arrays = OrderArrays.of(problem, order)
    jobs, count = empty_jobs(len(order)), len(order)
    if not link(arrays.window, arrays.packed, arrays.links(), jobs):
        return None
    state = empty_state(problem.num_stages, count)
    makespan = run_pipeline(machine_of(problem, patience_s), jobs, count, count, cutoff_s, state, no_source())
    if makespan == float("inf"):
        return None
    return ListSchedule(tuple(order), tuple(map(tuple, state.operations.tolist())), makespan)
