"""When the operations of a replica's programs run, and what they hold: compiled, and the searches' own.

The checker times plans with a simulator of its own, which no search knows: the two meet when a plan is finished.

An operation's code is k for the F of micro-batch k, ~k for its B, M + i for optimizer step i of the replica. A stage
has O of F's and B's: an F that evaluates has no B.
"""

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.kernels.arrays import BatchTable, StepTable


@compiled
def add_steps(operations: np.ndarray, steps: StepTable) -> np.ndarray:
    """Put each optimizer step just before its adapter's next F, evaluations included; others stand behind their B.

    Those of clipped adapters, which wait for the gradient norm of all stages, then stand at the end.

    Parameters
    ----------
    operations
        F's and B's by stage, shape (G, O).

    Returns
    -------
    np.ndarray
        Codes by stage, shape (G, O + K).
    """
    stages, width = operations.shape
    count, number = len(steps.evaluated), len(steps.first)
    followed = np.zeros(number, np.bool_)  # by an evaluation
    for step in steps.evaluated:
        if step >= 0:
            followed[step] = True
    programs = np.empty((stages, width + number), np.int64)
    of_step = np.zeros(number, np.int64)  # micro-batches
    for step in steps.steps:
        of_step[step] += 1
    for s in range(stages):
        left, stepped = of_step.copy(), np.zeros(number, np.bool_)
        at, waiting = 0, 0
        at_end = np.empty(number, np.int64)
        for code in operations[s]:
            k = code if code >= 0 else ~code
            mine = steps.steps[steps.begins[k] : steps.begins[k + 1]]
            if code >= 0:
                evaluated = steps.evaluated[k]
                if evaluated >= 0 and not stepped[evaluated]:
                    stepped[evaluated] = True
                    programs[s, at] = count + evaluated
                    at += 1
                for step in mine:
                    if not steps.first[step] and not stepped[step - 1]:
                        stepped[step - 1] = True
                        programs[s, at] = count + step - 1
                        at += 1
                programs[s, at] = code
                at += 1
            else:
                programs[s, at] = code
                at += 1
                for step in mine:
                    left[step] -= 1
                    if left[step] == 0 and steps.last[step] and not followed[step]:
                        if steps.clipped[step]:
                            at_end[waiting] = count + step
                            waiting += 1
                        else:
                            programs[s, at] = count + step
                            at += 1
        programs[s, at : at + waiting] = at_end[:waiting]
    return programs


@compiled
def time_programs(  # noqa: C901
    programs: np.ndarray,
    steps: StepTable,
    batches: BatchTable,
    kinds: np.ndarray,
    optimizer_s: float,
    working_gib: float,
    held_gib: float,
) -> tuple[float, np.ndarray]:
    """Run every operation in its turn as soon as its input has arrived.

    Parameters
    ----------
    programs
        Codes by stage, optimizer steps included, shape (G, O + K).
    kinds
        By stage, the kind that times are of, shape (G,).
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
    forward, backward, transfer, tokens = batches
    (stages, length), count = programs.shape, len(forward)
    # by step: when its last B is done, and how many B's on all stages are still to come
    gradient_end, missing = np.zeros(len(steps.first)), np.zeros(len(steps.first), np.int64)
    for step in steps.steps:
        missing[step] += stages
    forward_end = np.full((stages, count), -1.0)
    backward_end = np.full((stages, count), -1.0)
    free = np.zeros(stages)
    in_flight = np.zeros(stages)
    most = np.zeros(stages)
    at = np.zeros(stages, np.int64)
    moved = True
    while moved:
        moved = False
        for s in range(stages):
            while at[s] < length:
                code = programs[s, at[s]]
                start = free[s]
                if code >= count:
                    step = code - count
                    if steps.clipped[step]:
                        if missing[step] > 0:
                            break
                        start = max(start, gradient_end[step])
                    free[s] = start + optimizer_s
                elif code >= 0:
                    if s > 0:
                        end = forward_end[s - 1, code]
                        if end < 0:
                            break
                        start = max(start, end + transfer[code])
                    free[s] = start + forward[code, kinds[s]]
                    forward_end[s, code] = free[s]
                    if steps.evaluated[code] < 0:
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
                    free[s] = start + backward[k, kinds[s]]
                    backward_end[s, k] = free[s]
                    for step in steps.steps[steps.begins[k] : steps.begins[k + 1]]:
                        missing[step] -= 1
                        gradient_end[step] = max(gradient_end[step], free[s])
                    most[s] = max(most[s], working_gib * tokens[k] + held_gib * in_flight[s])
                    in_flight[s] -= tokens[k]
                at[s] += 1
                moved = True
    for s in range(stages):
        if at[s] < length:
            return np.inf, most
    return free.max(), most
