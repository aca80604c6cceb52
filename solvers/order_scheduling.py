"""List scheduling of a given order of micro-batches: the inner loop of the searches.

The rules are those of `list_scheduling`; knowing the whole order beforehand makes it about twice as fast.
"""

from collections.abc import Sequence

from cappuccino.solvers.list_scheduling import ListSchedule
from cappuccino.solvers.replica_problem import Batch, ReplicaProblem, StepKey

_INFINITY = float("inf")


def respects_steps(order: Sequence[Batch]) -> bool:
    """Return whether every adapter's steps follow each other in this order."""
    reached: dict[int, int] = {}
    for batch in order:
        for a, j in batch.steps:
            if j < reached.get(a, 0):
                return False
            reached[a] = j
    return True


def schedule_order(
    problem: ReplicaProblem, order: Sequence[Batch], patience_s: float = 0.0, cutoff_s: float = _INFINITY
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
        None when the order contradicts the steps, or as soon as `cutoff_s` is exceeded.
    """
    if not respects_steps(order):
        return None
    count, stages = len(order), problem.num_stages
    last = stages - 1
    working, held = problem.memory.working_gib, problem.memory.held_gib
    room = problem.held_room_gib * (1 + 1e-9)
    needed, waits = _dependencies(order, problem.costs.optimizer_s)
    forward, backward = [b.forward_s for b in order], [b.backward_s for b in order]
    transfer, tokens = [b.transfer_s for b in order], [b.tokens for b in order]
    heaviest = working * max(tokens, default=0)
    forwards, backwards = [0] * stages, [0] * stages
    free, held_tokens = [0.0] * stages, [0] * stages
    forward_end = [[0.0] * count for _ in range(stages)]
    backward_end = [[0.0] * count for _ in range(stages)]
    operations: list[list[int]] = [[] for _ in range(stages)]
    ready, is_backward = [_INFINITY] * stages, [False] * stages  # each stage's candidate
    low, high = 0, stages  # stages whose candidates are stale

    while True:
        for s in range(low, high):
            b, f, now = backwards[s], forwards[s], free[s]
            backward_start = forward_start = _INFINITY
            if b < f:
                if s == last:
                    backward_start = now
                elif b < backwards[s + 1]:
                    backward_start = max(now, backward_end[s + 1][b] + transfer[b])
            if f < count:
                if s == 0:
                    if backwards[0] > needed[f]:
                        forward_start = now + waits[f]
                elif f < forwards[s - 1]:
                    forward_start = max(now + waits[f], forward_end[s - 1][f] + transfer[f])
                if b < f and forward_start < _INFINITY:
                    held_gib = held * (held_tokens[s] + tokens[f])
                    # the exact figure only where the heaviest micro-batch of all would not fit
                    if heaviest + held_gib > room and working * max(tokens[b : f + 1]) + held_gib > room:
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
            end = backward_end[s][k] = start + backward[k]
            backwards[s] = k + 1
            held_tokens[s] -= tokens[k]
            operations[s].append(~k)
            low, high = max(0, s - 1), s + 1
        else:
            k = forwards[s]
            end = forward_end[s][k] = start + forward[k]
            forwards[s] = k + 1
            held_tokens[s] += tokens[k]
            operations[s].append(k)
            low, high = s, min(stages, s + 2)
        if end > cutoff_s:
            return None
        free[s] = end
    if backwards[0] < count:
        return None
    return ListSchedule(tuple(order), tuple(map(tuple, operations)), max(free))


def _dependencies(order: Sequence[Batch], optimizer_s: float) -> tuple[list[int], list[float]]:
    """Return by rank the last rank whose B must be done before the F, -1 for none, and the optimizer time before it."""
    last_of: dict[StepKey, int] = {}
    needed, waits = [-1] * len(order), [0.0] * len(order)
    for k, batch in enumerate(order):
        for a, j in batch.steps:
            if j:
                needed[k] = max(needed[k], last_of.get((a, j - 1), -1))
                if (a, j) not in last_of:
                    waits[k] += optimizer_s
            last_of[a, j] = k
    return needed, waits
