"""An order of micro-batches as arrays: list-scheduled as a whole, and cut into stretches that a search changes."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Sample
from cappuccino.solvers.scheduling.kernels.arrays import (
    Jobs,
    Links,
    Machine,
    PackedOrder,
    State,
    Window,
    empty_jobs,
    empty_state,
)
from cappuccino.solvers.scheduling.kernels.list_schedule import run_pipeline
from cappuccino.solvers.scheduling.kernels.moves import Scratch, copy_packed, evaluate, link
from cappuccino.solvers.scheduling.kernels.source import NO_SOURCE
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem, StepKey
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule, build_schedule

INFINITY = float("inf")


@dataclass(frozen=True)
class OrderArrays:
    """Micro-batches in order, as arrays with room for changes."""

    samples: tuple[Sample, ...]
    window: Window
    packed: PackedOrder
    evaluations: Mapping[int, Batch]
    """Micro-batches that are evaluated, by slot."""

    @classmethod
    def of(
        cls,
        problem: ReplicaProblem,
        order: Sequence[Batch],
        begun: Set[StepKey] = frozenset(),
        spare: int = 0,
        begun_evaluations: Set[StepKey] = frozenset(),
    ) -> "OrderArrays":
        """Lay out micro-batches.

        Parameters
        ----------
        begun
            Steps with micro-batches before this order.
        spare
            Slots for further micro-batches.
        begun_evaluations
            Steps with evaluation micro-batches before this order.
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
        room, kinds = len(order) + spare, len(problem.pipeline.kind_shares)
        group, evaluated = np.full(room, -1), dict[StepKey, int]()
        for slot, b in enumerate(order):
            if b.evaluation is not None:
                group[slot] = evaluated.setdefault(b.evaluation[:2], len(evaluated))

        def waits(a: int, j: int) -> bool:
            return (a, j) not in begun and (a, j - 1) not in problem.evaluated  # else it is behind the step already

        window = Window(
            np.array([problem.lengths[a].flat[n] for a, n in samples], np.int64),
            np.array([number[key] for key in keys], np.int64),
            np.array([number.get((a, j - 1), -1) for a, j in number], np.int64),
            np.array([optimizer_s if j and waits(a, j) else 0.0 for a, j in number]),
            np.array([a for a, _ in number], np.int64),
            problem.added[[a for a, _ in number]],
            group,
            np.array([number.get(key, -1) for key in evaluated], np.int64),
            np.array([number.get((a, j + 1), -1) for a, j in evaluated], np.int64),
            np.array([0.0 if key in begun_evaluations else optimizer_s for key in evaluated]),
        )
        packed = PackedOrder(
            batch_of=np.array([slot for _, slot in placed], np.int64),
            order=np.arange(room),
            forward_s=np.zeros((room, kinds)),
            backward_s=np.zeros((room, kinds)),
            transfer_s=np.zeros(room),
            tokens=np.zeros(room, np.int64),
            urgency_s=np.zeros(room),
            number=np.array([len(order)]),
        )
        for slot, batch in enumerate(order):
            packed.forward_s[slot], packed.backward_s[slot] = batch.forward_s, batch.backward_s
            packed.transfer_s[slot], packed.tokens[slot] = batch.transfer_s, batch.tokens
            packed.urgency_s[slot] = batch.urgency_s
        evaluations = {slot: b for slot, b in enumerate(order) if b.evaluation is not None}
        return cls(samples, window, packed, evaluations)

    def links(self) -> Links:
        """Return room for the dependencies."""
        steps = len(self.window.previous)
        sizes = len(self.packed.order), steps, steps, len(self.window.behind)
        return Links(*(np.zeros(n, np.int64) for n in sizes))

    def scratch(self, stages: int) -> Scratch:
        """Return room for a search, the best so far being this order."""
        copies, room = [], len(self.packed.order)
        for _ in range(2):
            copies.append(PackedOrder(*(np.empty_like(x) for x in self.packed)))
            copy_packed(self.packed, copies[-1])
        return Scratch(
            self.links(),
            empty_jobs(room, self.packed.forward_s.shape[1]),
            empty_state(stages, room),
            NO_SOURCE,
            *copies,
        )

    def batches(self, problem: ReplicaProblem, packed: PackedOrder) -> list[Batch]:
        """Return the micro-batches of a packing and order of the same samples."""
        groups: dict[int, list[Sample]] = {}
        for sample, slot in zip(self.samples, packed.batch_of.tolist(), strict=True):
            groups.setdefault(slot, []).append(sample)
        slots = packed.order[: packed.number[0]].tolist()
        trained = [slot for slot in slots if slot not in self.evaluations]
        made = problem.batches([groups[slot] for slot in trained], packed.urgency_s[trained].tolist())
        found = {**self.evaluations, **dict(zip(trained, made, strict=True))}
        return [found[slot] for slot in slots]


@dataclass(frozen=True)
class Stretch:
    """Successive micro-batches as arrays, after what the stages have done before."""

    arrays: OrderArrays
    scratch: Scratch
    begin: State
    first: int
    """Rank of the first micro-batch in the schedule."""
    length: int
    """Micro-batches before any change."""
    low: int
    """So many at the beginning have begun and stay as they are."""
    tail: int
    """So many at the end stay as they are."""

    def value(self, machine: Machine) -> float:
        """Return when the micro-batches are done as they stand, seconds."""
        return float(evaluate(machine, self.arrays.window, self.arrays.packed, self.scratch, self.begin, INFINITY))


@dataclass(frozen=True)
class ScheduledOrder:
    """A list-scheduled order of micro-batches: F's and B's stand in this order on all stages."""

    problem: ReplicaProblem
    order: tuple[Batch, ...]
    machine: Machine
    jobs: Jobs
    end: State
    """After the last operation."""
    makespan_s: float
    """Without the optimizer steps that end the adapters."""

    @classmethod
    def of(
        cls, problem: ReplicaProblem, order: Sequence[Batch], patience_s: float = 0.0, cutoff_s: float = INFINITY
    ) -> "ScheduledOrder | None":
        """Schedule an order; None when it contradicts the steps, or its makespan exceeds the cutoff.

        Parameters
        ----------
        patience_s
            How long a stage that could start an F waits for a B instead.
        """
        arrays, count, stages = OrderArrays.of(problem, order), len(order), problem.num_stages
        jobs = empty_jobs(count, arrays.packed.forward_s.shape[1])
        machine, state = problem.machine(patience_s), empty_state(stages, count)
        if not link(arrays.window, arrays.packed, arrays.links(), jobs):
            return None
        makespan = run_pipeline(machine, jobs, count, count, cutoff_s, state, NO_SOURCE)
        return None if makespan == INFINITY else cls(problem, tuple(order), machine, jobs, state, makespan)

    @property
    def operations(self) -> tuple[tuple[int, ...], ...]:
        """By stage: rank k for the F of a micro-batch, ~k for its B."""
        return without_empty_backwards(self.end.operations, self.jobs.evaluation)

    def schedule(self) -> ReplicaSchedule:
        """Return the schedule, with its optimizer steps."""
        return build_schedule(self.problem, self.order, self.operations)

    def whole(self, spare: float) -> Stretch:
        """Return everything as one stretch; for `spare` see `window`."""
        count = len(self.order)
        return self._stretch(empty_state(self.problem.num_stages, 0), 0, 0, count, count, spare)

    def window(self, low: int, size: int, lookahead: int, spare: float) -> Stretch:
        """Return the `size` micro-batches from rank `low` on, with what is in flight then and what follows.

        Parameters
        ----------
        lookahead
            Fixed micro-batches behind them, per stage: what they do is judged by when those are done.
        spare
            Slots for further micro-batches, relative to those there are.
        """
        count, stages = len(self.order), self.problem.num_stages
        state = empty_state(stages, count)
        if low:
            run_pipeline(self.machine, self.jobs, count, low, INFINITY, state, NO_SOURCE)
        high = min(low + size, count)
        return self._stretch(state, int(state.backwards.min()), low, high, min(high + lookahead * stages, count), spare)

    def _stretch(self, state: State, first: int, low: int, high: int, stop: int, spare: float) -> Stretch:
        problem, stages = self.problem, self.problem.num_stages
        begun = evaluated = frozenset[tuple[int, int]]()
        if problem.costs.optimizer_s > 0:
            begun = frozenset(key for b in self.order[:first] for key in b.steps)
            evaluated = frozenset(b.evaluation[:2] for b in self.order[:first] if b.evaluation is not None)
        length, room = stop - first, 2 + round(spare * (stop - first))
        arrays = OrderArrays.of(problem, self.order[first:stop], begun, room, evaluated)
        begin = empty_state(stages, len(arrays.packed.order))
        begin.free_s[:], begin.held_tokens[:] = state.free_s, state.held_tokens
        begin.forwards[:], begin.backwards[:] = state.forwards - first, state.backwards - first
        known = min(length, state.forward_end_s.shape[1])
        begin.forward_end_s[:, :known] = state.forward_end_s[:, first : first + known]
        begin.backward_end_s[:, :known] = state.backward_end_s[:, first : first + known]
        return Stretch(arrays, arrays.scratch(stages), begin, first, length, low - first, stop - high)

    def with_best_of(self, stretch: Stretch) -> "ScheduledOrder | None":
        """Return the schedule with the best found for a stretch of this one; None when it contradicts the steps."""
        new = stretch.arrays.batches(self.problem, stretch.scratch.best)
        order = [*self.order[: stretch.first], *new, *self.order[stretch.first + stretch.length :]]
        return ScheduledOrder.of(self.problem, order, self.machine.patience_s)

    def idle_time(self) -> np.ndarray:
        """Return how long the last stage has been idle until the B of each rank, seconds, shape (micro-batches,)."""
        last = self.machine.kinds[-1]
        busy = np.cumsum(self.jobs.forward_s[:, last] + self.jobs.backward_s[:, last])
        return np.asarray(self.end.backward_end_s[-1] - busy)


def without_empty_backwards(operations: np.ndarray, evaluation: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Return operations by stage without the places of B's that never come.

    Parameters
    ----------
    evaluation
        As `Jobs.evaluation`.
    """
    return tuple(tuple(op for op in stage if op >= 0 or evaluation[~op] < 0) for stage in operations.tolist())
