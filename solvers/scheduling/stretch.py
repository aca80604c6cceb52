"""Stretches of a schedule: windows cut out of a long one, with the state of the stages carried over."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.solvers.scheduling.annealing import Scratch, evaluate
from cappuccino.solvers.scheduling.list_schedule_kernel import Jobs, Machine, State, empty_state, run_pipeline
from cappuccino.solvers.scheduling.list_scheduling import ListSchedule, empty_jobs, machine_of, no_source
from cappuccino.solvers.scheduling.order_scheduling import OrderArrays
from cappuccino.solvers.scheduling.packed_order import link
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem

SPARE = 0.25
"""Slots for further micro-batches, relative to those there are."""
LOOKAHEAD = 5
"""Fixed micro-batches behind a window, per stage: what a window does is judged by when they are done."""


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
        infinity = float("inf")
        return float(evaluate(machine, self.arrays.window, self.arrays.packed, self.scratch, self.begin, infinity))


@dataclass(frozen=True)
class ScheduledOrder:
    """A list-scheduled order of micro-batches, from which stretches are cut."""

    problem: ReplicaProblem
    order: tuple[Batch, ...]
    machine: Machine
    jobs: Jobs
    end: State
    """After the last operation."""
    makespan_s: float

    @classmethod
    def of(cls, problem: ReplicaProblem, order: Sequence[Batch], patience_s: float) -> "ScheduledOrder | None":
        """Schedule an order; None when it contradicts the steps."""
        arrays, count = OrderArrays.of(problem, order), len(order)
        machine, jobs, state = (
            machine_of(problem, patience_s),
            empty_jobs(count),
            empty_state(problem.num_stages, count),
        )
        if not link(arrays.window, arrays.packed, arrays.links(), jobs):
            return None
        makespan = run_pipeline(machine, jobs, count, count, float("inf"), state, no_source())
        return None if makespan == float("inf") else cls(problem, tuple(order), machine, jobs, state, makespan)

    def schedule(self) -> ListSchedule:
        """Return the schedule."""
        return ListSchedule(self.order, tuple(map(tuple, self.end.operations.tolist())), self.makespan_s)

    def whole(self) -> Stretch:
        """Return everything as one stretch."""
        return self._stretch(empty_state(self.problem.num_stages, 0), 0, 0, len(self.order), len(self.order))

    def window(self, low: int, size: int) -> Stretch:
        """Return the `size` micro-batches from rank `low` on, with what is in flight then and what follows."""
        count, stages = len(self.order), self.problem.num_stages
        state = empty_state(stages, count)
        if low:
            run_pipeline(self.machine, self.jobs, count, low, float("inf"), state, no_source())
        high = min(low + size, count)
        return self._stretch(state, int(state.backwards[0]), low, high, min(high + LOOKAHEAD * stages, count))

    def _stretch(self, state: State, first: int, low: int, high: int, stop: int) -> Stretch:
        problem, stages = self.problem, self.problem.num_stages
        begun = frozenset[tuple[int, int]]()
        if problem.costs.optimizer_s > 0:
            begun = frozenset(key for b in self.order[:first] for key in b.steps)
        length = stop - first
        arrays = OrderArrays.of(problem, self.order[first:stop], begun, spare=2 + round(SPARE * length))
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
        busy = np.cumsum(self.jobs.forward_s + self.jobs.backward_s)
        return np.asarray(self.end.backward_end_s[-1] - busy)
