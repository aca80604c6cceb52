"""List scheduling of a pipeline without flush: every stage takes the earliest operation it can, memory permitting.

Micro-batches come from a source that forms them as the schedule grows; `order_scheduling` schedules a given order.

All stages run the F's in one order, and the B's in that same order, so an operation is known by its rank in the order.
"""

from dataclasses import dataclass
from typing import Protocol

from cappuccino.solvers.replica_problem import Batch, ReplicaProblem, StepKey

_INFINITY = float("inf")


class BatchSource(Protocol):
    """Decides which micro-batch the first stage forwards next."""

    def peek(self) -> Batch | None:
        """Return the next micro-batch, None while none may start; repeated calls may change their mind."""

    def take(self) -> None:
        """Commit to the micro-batch last returned by `peek`."""

    def backward_done(self, batch: Batch) -> None:
        """Learn that the first stage has finished the backward of a micro-batch."""

    @property
    def exhausted(self) -> bool:
        """Whether every sample has been handed out."""


@dataclass(frozen=True)
class ListSchedule:
    """A schedule: micro-batches in the order of their F's, and what every stage does in which order."""

    order: tuple[Batch, ...]
    operations: tuple[tuple[int, ...], ...]
    """By stage: rank k for the F of the k-th micro-batch, ~k for its B."""
    makespan_s: float
    """Without the optimizer steps that end the adapters."""


def list_schedule(
    problem: ReplicaProblem, source: BatchSource, patience_s: float = 0.0, cutoff_s: float = _INFINITY
) -> ListSchedule | None:
    """Schedule the micro-batches of a source.

    A stage that could start an F waits up to `patience_s` for a B instead: B's free memory and open the next steps.

    Returns
    -------
    ListSchedule or None
        None when the source's order contradicts the steps, or as soon as `cutoff_s` is exceeded.
    """
    stages = problem.num_stages
    last = stages - 1
    working, held, room = problem.memory.working_gib, problem.memory.held_gib, problem.held_room_gib * (1 + 1e-9)
    optimizer_s = problem.costs.optimizer_s
    track_steps = optimizer_s > 0
    order: list[Batch] = []
    fresh: list[float] = []  # optimizer time before the F of rank k
    stepped: set[StepKey] = set()
    operations: list[list[int]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    forwards, backwards = [0] * stages, [0] * stages
    forward_end: list[list[float]] = [[] for _ in range(stages)]
    backward_end: list[list[float]] = [[] for _ in range(stages)]
    held_tokens = [0] * stages
    ready = [_INFINITY] * stages  # start of each stage's candidate
    is_backward = [False] * stages
    stale = list(range(stages))
    limited = held > 0 or working > 0

    while True:
        for s in stale:
            backward_start = forward_start = _INFINITY
            k = backwards[s]
            if k < forwards[s]:
                if s == last:
                    backward_start = free[s]
                elif k < backwards[s + 1]:
                    backward_start = max(free[s], backward_end[s + 1][k] + order[k].transfer_s)
            k = forwards[s]
            if s == 0:
                batch = None if source.exhausted else source.peek()
                if batch is not None:
                    wait = 0.0
                    if track_steps:
                        wait = optimizer_s * sum(j > 0 and (a, j) not in stepped for a, j in batch.steps)
                    forward_start = free[0] + wait
            elif k < forwards[s - 1]:
                batch = order[k]
                forward_start = max(free[s] + fresh[k], forward_end[s - 1][k] + batch.transfer_s)
            else:
                batch = None
            if batch is not None and limited and held_tokens[s]:
                largest = max(batch.tokens, *(b.tokens for b in order[backwards[s] : k]))
                if working * largest + held * (held_tokens[s] + batch.tokens) > room:
                    forward_start = _INFINITY
            if backward_start <= forward_start + patience_s:
                ready[s], is_backward[s] = backward_start, True
            else:
                ready[s], is_backward[s] = forward_start, False
        start = min(ready)
        if start == _INFINITY:
            break
        s = ready.index(start)
        if is_backward[s]:
            k = backwards[s]
            batch = order[k]
            end = start + batch.backward_s
            backward_end[s].append(end)
            backwards[s] = k + 1
            held_tokens[s] -= batch.tokens
            operations[s].append(~k)
            if s == 0:
                source.backward_done(batch)
            stale = [s - 1, s] if s else [s]
        else:
            k = forwards[s]
            if s == 0:
                taken = source.peek()
                assert taken is not None  # it was the candidate
                batch = taken
                source.take()
                order.append(batch)
                count = 0
                for a, j in batch.steps:
                    if j and (a, j) not in stepped:
                        stepped.add((a, j))
                        count += 1
                fresh.append(count * optimizer_s)
            else:
                batch = order[k]
            end = start + batch.forward_s
            forward_end[s].append(end)
            forwards[s] = k + 1
            held_tokens[s] += batch.tokens
            operations[s].append(k)
            stale = [s, s + 1] if s < last else [s]
        if end > cutoff_s:
            return None
        free[s] = end
    if not source.exhausted:
        return None
    return ListSchedule(tuple(order), tuple(map(tuple, operations)), max(free))
