"""When the operations of a replica's programs run, and what they hold: compiled, and the searches' own.

The checker times plans with a simulator of its own, which no search knows: the two meet when a plan is finished.
"""

from typing import NamedTuple

import numpy as np

from cappuccino.compiled import compiled


class Programs(NamedTuple):
    """The programs of all stages, one behind the other."""

    codes: np.ndarray
    """k for the F of micro-batch k, ~k for its B, M + i for optimizer step i of the replica."""
    begins: np.ndarray
    """Where each stage's program begins, and the end, shape (G + 1,)."""
    waits: np.ndarray
    """Micro-batches whose B's on all stages an optimizer step waits for, step by step."""
    wait_begins: np.ndarray
    """Where those of each step begin, and the end, shape (steps + 1,)."""


class BatchTable(NamedTuple):
    """The micro-batches of a replica; arrays of shape (M,), times in seconds on one stage."""

    forward_s: np.ndarray
    backward_s: np.ndarray
    transfer_s: np.ndarray
    tokens: np.ndarray


@compiled
def time_programs(  # noqa: C901
    programs: Programs, batches: BatchTable, optimizer_s: float, working_gib: float, held_gib: float
) -> tuple[float, np.ndarray]:
    """Run every operation in its turn as soon as its input has arrived.

    Parameters
    ----------
    optimizer_s
        One optimizer step of one adapter on one stage.
    working_gib, held_gib
        Memory per token of the running micro-batch, and per token forwarded and not yet backwarded.

    Returns
    -------
    makespan_s
        End of the last operation; infinite where operations wait for each other.
    held_gib
        Most that every stage works on and holds at a time, shape (G,).
    """
    codes, begins, waits, wait_begins = programs
    forward, backward, transfer, tokens = batches
    stages, count = len(begins) - 1, len(forward)
    forward_end = np.full((stages, count), -1.0)
    backward_end = np.full((stages, count), -1.0)
    free = np.zeros(stages)
    in_flight = np.zeros(stages)
    most = np.zeros(stages)
    at = begins[:stages].copy()
    moved = True
    while moved:
        moved = False
        for s in range(stages):
            while at[s] < begins[s + 1]:
                code = codes[at[s]]
                start = free[s]
                if code >= count:
                    step = code - count
                    ready = True
                    for i in range(wait_begins[step], wait_begins[step + 1]):
                        for r in range(stages):
                            end = backward_end[r, waits[i]]
                            ready = ready and end >= 0
                            start = max(start, end)
                    if not ready:
                        break
                    free[s] = start + optimizer_s
                elif code >= 0:
                    if s > 0:
                        end = forward_end[s - 1, code]
                        if end < 0:
                            break
                        start = max(start, end + transfer[code])
                    free[s] = start + forward[code]
                    forward_end[s, code] = free[s]
                    in_flight[s] += tokens[code]
                    most[s] = max(most[s], working_gib * tokens[code] + held_gib * in_flight[s])
                else:
                    k = ~code
                    end = forward_end[s, k]
                    if end < 0:
                        break
                    start = max(start, end)
                    if s < stages - 1:
                        end = backward_end[s + 1, k]
                        if end < 0:
                            break
                        start = max(start, end + transfer[k])
                    free[s] = start + backward[k]
                    backward_end[s, k] = free[s]
                    most[s] = max(most[s], working_gib * tokens[k] + held_gib * in_flight[s])
                    in_flight[s] -= tokens[k]
                at[s] += 1
                moved = True
    for s in range(stages):
        if at[s] < begins[s + 1]:
            return np.inf, most
    return free.max(), most
