"""List scheduling of a pipeline without flush: every stage takes the earliest operation it can.

All stages run the F's in one order, and the B's in that same order, so an operation is known by its rank in the order.

Legend: G stages, M micro-batches.
"""

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import Jobs, Machine, State
from cappuccino.solvers.scheduling.kernels.costs import batch_times
from cappuccino.solvers.scheduling.kernels.packing import backward_done, peek, shape_of_next, take, wait_of_next
from cappuccino.solvers.scheduling.kernels.source import Source

INFINITY = float("inf")


@compiled
def copy_state(source: State, goal: State) -> None:
    """Copy what the scheduler reads of one state into another with at least as much room."""
    stages = len(source.free_s)
    first = source.backwards.min()  # the first stage may be past places of B's that never come
    for s in range(stages):
        goal.free_s[s] = source.free_s[s]
        goal.forwards[s] = source.forwards[s]
        goal.backwards[s] = source.backwards[s]
        goal.held_tokens[s] = source.held_tokens[s]
        for k in range(first, source.forwards[s]):
            goal.forward_end_s[s, k] = source.forward_end_s[s, k]
        for k in range(first, source.backwards[s]):
            goal.backward_end_s[s, k] = source.backward_end_s[s, k]


@compiled
def run_pipeline(  # noqa: C901, PLR0915
    machine: Machine,
    jobs: Jobs,
    count: int,
    pause: int,
    cutoff_s: float,
    state: State,
    source: Source,
) -> float:
    """Go on from a state, in place, until all is done or the first stage has done `pause` F's.

    Parameters
    ----------
    count
        Micro-batches that are known.
    source
        Where active, it forms the micro-batches; `jobs` has room for them and learns them, `count` is the room.

    Returns
    -------
    float
        The makespan; infinite when the order blocks itself, or as soon as the makespan is known to exceed `cutoff_s`.
    """
    kinds = machine.kinds
    stages, last = len(kinds), len(kinds) - 1
    working, held, room, patience = machine.working_gib, machine.held_gib, machine.room_gib, machine.patience_s
    forward, backward, transfer, tokens, needed, waits, urgency, evaluation = jobs
    free, forwards, backwards, held_tokens, forward_end, backward_end, operations = state
    limited = working > 0 or held > 0
    heaviest = INFINITY if source.active else 0.0
    for k in range(0 if source.active else count):
        heaviest = max(heaviest, working * tokens[k])
    rest = _rest(machine, jobs, 0 if source.active else count, state)
    ready = np.empty(stages)
    is_backward = np.zeros(stages, np.bool_)
    low, high = 0, stages  # stages whose candidates are stale
    while forwards[0] < pause or pause >= count:
        for s in range(low, high):
            b, f, now = backwards[s], forwards[s], free[s]
            while b < f and evaluation[b] >= 0:  # the place of a B that never comes
                operations[s, b + f] = ~b
                backward_end[s, b] = now
                b += 1
            backwards[s] = b
            backward_start = INFINITY
            forward_start = INFINITY
            if b < f:
                if s == last:
                    backward_start = now
                elif b < backwards[s + 1]:
                    backward_start = max(now, backward_end[s + 1, b] + transfer[b])
            if s == 0:
                known = _learn(source, jobs, f) if source.active else f < count
                if known and b > needed[f]:
                    forward_start = now + waits[f]
            elif f < forwards[s - 1]:
                forward_start = max(now + waits[f], forward_end[s - 1, f] + transfer[f])
            if limited and b < f and forward_start < INFINITY:
                evaluates = evaluation[f] >= 0
                held_gib = held * (held_tokens[s] + (0 if evaluates else tokens[f]))
                # the exact figure only where the heaviest micro-batch of all would not fit
                if heaviest + held_gib > room:
                    largest = tokens[f]
                    for k in range(b, 0 if evaluates else f):
                        largest = max(largest, 0 if evaluation[k] >= 0 else tokens[k])
                    if working * largest + held_gib > room:
                        forward_start = INFINITY
            prefers_backward = backward_start < INFINITY
            if prefers_backward and forward_start < INFINITY:
                prefers_backward = backward_start - urgency[b] - patience <= forward_start - urgency[f]
            if prefers_backward:
                ready[s] = backward_start
                is_backward[s] = True
            else:
                ready[s] = forward_start
                is_backward[s] = False
        s = 0
        for r in range(1, stages):
            if ready[r] < ready[s]:
                s = r
        start = ready[s]
        if start == INFINITY:
            break
        if start + rest[s] > cutoff_s:  # an active source has no rest that is known
            return INFINITY
        done = forwards[s] + backwards[s]
        if is_backward[s]:
            k = backwards[s]
            end = start + backward[k, kinds[s]]
            if source.active:
                if s == 0:
                    backward_done(source, k)
            else:
                rest[s] -= backward[k, kinds[s]]
            backward_end[s, k] = end
            backwards[s] = k + 1
            held_tokens[s] -= tokens[k]
            operations[s, done] = ~k
            low, high = max(0, s - 1), s + 1
        else:
            k = forwards[s]
            end = start + forward[k, kinds[s]]
            if source.active:
                if s == 0:
                    take(source, k)
            else:
                rest[s] -= forward[k, kinds[s]]
            forward_end[s, k] = end
            forwards[s] = k + 1
            held_tokens[s] += 0 if evaluation[k] >= 0 else tokens[k]
            operations[s, done] = k
            low, high = s, min(stages, s + 2)
        free[s] = end
        if end > cutoff_s:
            return INFINITY
    makespan = 0.0
    for s in range(stages):
        makespan = max(makespan, free[s])
    if source.active:
        for a in range(len(source.waiting)):
            if source.waiting[a] or source.evaluation_next[a] < source.evaluation_end[a]:
                return INFINITY
        return makespan
    if pause >= count and backwards[0] < count:
        return INFINITY
    return makespan


@compiled
def _rest(machine: Machine, jobs: Jobs, count: int, state: State) -> np.ndarray:
    """Return what each stage has still to do, and the way of the last B up to the first stage at least, shape (G,)."""
    rest = np.zeros(len(machine.kinds))
    up = 0.0
    for s in range(len(rest) if count > 0 else 0):
        kind = machine.kinds[s]
        rest[s] = up
        quickest = INFINITY
        for k in range(count):
            rest[s] += jobs.forward_s[k, kind] + jobs.backward_s[k, kind]
            # behind the last B there may still be evaluations
            quickest = min(quickest, jobs.backward_s[k, kind] if jobs.evaluation[k] < 0 else 0.0)
        for k in range(state.forwards[s]):
            rest[s] -= jobs.forward_s[k, kind]
        for k in range(state.backwards[s]):
            rest[s] -= jobs.backward_s[k, kind]
        up += quickest
    return rest


@compiled
def _learn(source: Source, jobs: Jobs, rank: int) -> bool:
    """Write the micro-batch that the source would hand out next; return whether there is one."""
    if source.formed[0]:
        return True
    if not peek(source):
        return False
    e = source.chosen_evaluation[0]
    jobs.evaluation[rank] = e
    jobs.waits_s[rank] = wait_of_next(source)
    if e >= 0:
        jobs.forward_s[rank, :], jobs.backward_s[rank, :] = source.evaluation_s[e], 0.0
        jobs.tokens[rank], jobs.transfer_s[rank] = source.evaluation_tokens[e], source.evaluation_transfer_s[e]
        jobs.needed[rank], jobs.urgency_s[rank] = -1, 0.0
        return True
    times = batch_times(source.costs, shape_of_next(source), jobs.forward_s[rank], jobs.backward_s[rank])
    jobs.tokens[rank], jobs.transfer_s[rank] = times
    jobs.needed[rank] = -1  # only open steps are handed out
    critical = source.chosen[source.critical[0]] >= 0
    jobs.urgency_s[rank] = source.rule.critical_urgency_s if critical else 0.0
    return True
