"""A schedule as a graph on an integer grid: longest paths from the start and to the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from cappuccino.solvers.scheduling.replica_problem import Batch
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule

GRID = 1 << 20
"""Grid points in a makespan: rounding is below half a point per operation of the longest path."""
Node = tuple[int, int]
"""Stage, position in the stage's operations."""


@dataclass(frozen=True)
class ScheduleGraph:
    """The schedule on the integer grid: longest paths from the start and to the end."""

    durations: list[list[int]]
    lags: list[int]
    """Transfer by micro-batch."""
    starts: list[list[int]]
    tails: list[list[int]]
    """From the end of an operation to the end of the schedule."""
    makespan: int


def is_better(new: ReplicaSchedule, old: ReplicaSchedule) -> bool:
    """Return whether a schedule fits the memory and beats another by more than rounding."""
    limit = old.problem.costs.memory_limit(old.problem.memory_gib)
    return max(new.peak_memory_gib) <= limit * (1 + 1e-9) and new.makespan_s < old.makespan_s * (1 - 1e-9)


def schedule_graph(schedule: ReplicaSchedule) -> ScheduleGraph:
    """Put the schedule on the grid; optimizer steps count into the F behind them or the B before them."""
    order, operations = schedule.order, schedule.operations
    numbered = {
        "F": [b for b in order if b.evaluation is None],
        "E": [b for b in order if b.evaluation is not None],
    }
    scale = GRID / schedule.makespan_s
    durations: list[list[int]] = []
    step_s = schedule.problem.costs.optimizer_s
    for kind, program in zip(schedule.problem.kinds.tolist(), schedule.programs, strict=True):
        seconds: list[float] = []
        pending = 0.0
        for operation in program:
            if operation[0] == "S":
                last = operation[2] == schedule.problem.num_steps[operation[1]] - 1
                if seconds and last and operation[1:] not in schedule.problem.evaluated:
                    seconds[-1] += step_s
                else:
                    pending += step_s
            else:
                batch = numbered["E" if operation[0] == "E" else "F"][operation[1]]
                times = batch.backward_s if operation[0] == "B" else batch.forward_s
                seconds.append(times[kind] + pending)
                pending = 0.0
        durations.append([round(x * scale) for x in seconds])
    lags = [round(b.transfer_s * scale) for b in order]
    at = [{op: i for i, op in enumerate(stage)} for stage in operations]
    starts = [[0] * len(stage) for stage in operations]
    done = [0] * len(operations)
    topological: list[Node] = []
    moved = True
    while moved:
        moved = False
        for s, stage in enumerate(operations):
            while done[s] < len(stage):
                i = done[s]
                pred = job_predecessor(stage[i], s, len(operations))
                ready = starts[s][i - 1] + durations[s][i - 1] if i else 0
                if pred is not None:
                    r, op = pred
                    p = at[r][op]
                    if p >= done[r]:
                        break
                    lag = lags[rank_of(stage[i])] if r != s else 0
                    ready = max(ready, starts[r][p] + durations[r][p] + lag)
                starts[s][i] = ready
                done[s] += 1
                topological.append((s, i))
                moved = True
    tails = [[0] * len(stage) for stage in operations]
    for s, i in reversed(topological):
        below = durations[s][i] + tails[s][i]
        if i:
            tails[s][i - 1] = max(tails[s][i - 1], below)
        pred = job_predecessor(operations[s][i], s, len(operations))
        if pred is not None:
            r, op = pred
            p = at[r][op]
            lag = lags[rank_of(op)] if r != s else 0
            tails[r][p] = max(tails[r][p], below + lag)
    makespan = max(starts[s][-1] + durations[s][-1] for s in range(len(operations)))
    return ScheduleGraph(durations, lags, starts, tails, makespan)


def rank_of(operation: int) -> int:
    """Return the rank of the micro-batch that an operation is of."""
    return operation if operation >= 0 else ~operation


def job_predecessor(operation: int, stage: int, stages: int) -> tuple[int, int] | None:
    """Return stage and operation that provide the input of an operation."""
    if operation >= 0:
        return (stage - 1, operation) if stage else None
    return (stage, ~operation) if stage == stages - 1 else (stage + 1, operation)


def job_successors(operation: int, stage: int, stages: int) -> list[tuple[int, int]]:
    """Return stage and operation of those that an operation provides the input of."""
    if operation >= 0:
        return [(stage + 1, operation)] if stage < stages - 1 else [(stage, ~operation)]
    return [(stage - 1, operation)] if stage else []


def renumbered(order: Sequence[Batch], operations: Sequence[Sequence[int]]) -> tuple[list[Batch], list[list[int]]]:
    """Rank micro-batches anew by the order of their F's on the first stage."""
    sequence = [op for op in operations[0] if op >= 0]
    rank = {old: new for new, old in enumerate(sequence)}
    renamed = [[rank[op] if op >= 0 else ~rank[~op] for op in stage] for stage in operations]
    return [order[k] for k in sequence], renamed
