"""mLoRA's own executor: a stage takes the B that has arrived, else the F that has, whatever is in flight.

Every adapter has one micro-batch in flight at most; when its backward has returned, its next one may enter. Adapters
take turns in entering. Only the memory limits how many adapters are in flight.

Legend: M micro-batches, numbered adapter by adapter; A adapters; G stages.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.baselines.replica import BaselineReplica, added_by_rank, micro_batch_shapes, ranks_of
from cappuccino.solvers.baselines.samples import Samples
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


@dataclass(frozen=True)
class EagerReplica(BaselineReplica):
    """Adapters that take turns, one micro-batch of each in flight."""

    program: np.ndarray
    """Rank k for an F, ~k for a B, shape (G, 2 M)."""
    simulated_s: float
    """Makespan."""

    @property
    def makespan_s(self) -> float:
        """Makespan of the schedule, seconds."""
        return self.simulated_s

    def operations(self) -> list[list[int]]:
        """Return rank k for the F of a micro-batch and ~k for its B, by stage in the order of its program."""
        return [stage.tolist() for stage in self.program]


def eager_turns(problem: ReplicaProblem, samples: Samples, own: np.ndarray) -> EagerReplica:
    """Return the replica that mLoRA's executor makes of micro-batches of one adapter each.

    Parameters
    ----------
    own
        Number of each sample's micro-batch within its adapter, shape (N,).
    """
    number = ranks_of(samples.position, own)
    count = int(number.max()) + 1
    tokens, squares = micro_batch_shapes(problem, samples.length, number, count)
    costs, stages, memory = problem.costs, problem.num_stages, problem.memory
    more = added_by_rank(problem, samples, number, count)
    first = np.unique(number, return_index=True)[1]
    position, step = samples.position[first], samples.step[first]
    opens_step = np.concatenate([[False], (step[1:] != step[:-1]) & (position[1:] == position[:-1])])
    ends = np.searchsorted(position, np.arange(len(problem.adapters)), side="right")
    clipped = np.array([a in problem.clipped for a in range(len(problem.adapters))])
    after = np.zeros(count)
    after[ends[~clipped] - 1] = costs.optimizer_s
    entered, program, makespan = _run(
        stages,
        ends,
        costs.forward_curve(stages)(tokens, squares, *more[:2]),
        costs.backward_curve(stages)(tokens, squares, *more[2:]),
        np.ascontiguousarray(costs.transfer_time(tokens)),
        tokens,
        opens_step * costs.optimizer_s,
        after,
        float(clipped.sum()) * costs.optimizer_s,
        memory.working_gib,
        memory.held_gib,
        problem.held_room_gib * (1 + 1e-9),
    )
    rank = np.empty(count, np.int64)
    rank[entered] = np.arange(count)
    return EagerReplica(problem, samples, rank[number], program, makespan)


@compiled
def _run(  # noqa: C901, PLR0915
    stages: int,
    ends: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
    transfer: np.ndarray,
    tokens: np.ndarray,
    before_s: np.ndarray,
    after_s: np.ndarray,
    end_s: float,
    working: float,
    held: float,
    room: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the micro-batches in the order in which they enter, the programs and the makespan.

    Operations are committed in the order of their starts; of two that a stage could start together, the B goes first.
    """
    count, adapters, last = len(forward), len(ends), stages - 1
    following = np.zeros(adapters, np.int64)  # next micro-batch by adapter
    following[1:] = ends[:-1]
    locked = np.zeros(adapters, np.bool_)
    owner = np.zeros(count, np.int64)
    for a in range(adapters):
        owner[following[a] : ends[a]] = a
    turn = 0
    entered = np.zeros(count, np.int64)
    program = np.zeros((stages, 2 * count), np.int64)
    free = np.zeros(stages)
    forwards = np.zeros(stages, np.int64)
    backwards = np.zeros(stages, np.int64)
    held_tokens = np.zeros(stages, np.int64)
    forward_end = np.zeros((stages, count))
    backward_end = np.zeros((stages, count))
    heaviest = tokens.max()
    while backwards[0] < count:
        best_start, best_stage, best_backward, best_turn = np.inf, -1, False, -1
        for s in range(stages):
            k = backwards[s]
            if k < forwards[s] and (s == last or k < backwards[s + 1]):
                start = free[s]
                if s < last:
                    start = max(start, backward_end[s + 1, k] + transfer[entered[k]])
                if start < best_start:
                    best_start, best_stage, best_backward = start, s, True
            k = forwards[s]
            chosen = -1
            if s > 0:
                if k == forwards[s - 1]:
                    continue
                m = entered[k]
                start = max(free[s] + before_s[m], forward_end[s - 1, k] + transfer[m])
            else:
                for i in range(adapters):
                    a = (turn + i) % adapters
                    if not locked[a] and following[a] < ends[a]:
                        chosen = a
                        break
                if chosen < 0:
                    continue
                m = following[chosen]
                start = free[0] + before_s[m]
            if start >= best_start:
                continue
            grown = held * (held_tokens[s] + tokens[m])
            if held_tokens[s] > 0 and working * heaviest + grown > room:
                largest = tokens[m]
                for i in range(backwards[s], k):
                    largest = max(largest, tokens[entered[i]])
                if working * largest + grown > room:
                    continue
            best_start, best_stage, best_backward, best_turn = start, s, False, chosen
        s = best_stage
        done = forwards[s] + backwards[s]
        if best_backward:
            k = backwards[s]
            m = entered[k]
            backward_end[s, k] = best_start + backward[m]
            free[s] = backward_end[s, k] + after_s[m]
            backwards[s] += 1
            held_tokens[s] -= tokens[m]
            program[s, done] = ~k
            if s == 0:
                locked[owner[m]] = False
        else:
            k = forwards[s]
            if s == 0:
                m = following[best_turn]
                following[best_turn] += 1
                locked[best_turn] = True
                turn = (best_turn + 1) % adapters
                entered[k] = m
            m = entered[k]
            free[s] = best_start + forward[m]
            forward_end[s, k] = free[s]
            forwards[s] += 1
            held_tokens[s] += tokens[m]
            program[s, done] = k
    return entered, program, max(free.max(), free[0] + end_s)
