"""Large-neighbourhood search: one window of the schedule at a time is given to a CP-SAT model, the rest stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cappuccino.models.job_shop import HeldMemory, JobShopWindow, Kind, WindowData, WindowOperation, order_of
from cappuccino.solvers.scheduling.replica_problem import Batch
from cappuccino.solvers.scheduling.schedule import BlockedProgramsError, ReplicaSchedule, build_schedule

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


def improve_order(
    schedule: ReplicaSchedule,
    num_operations: int,
    rng: np.random.Generator,
    *,
    time_limit_s: float | None,
    deterministic_limit: float = 2.0,
) -> ReplicaSchedule | None:
    """Reorder the operations of a random window optimally; None when that gains nothing.

    Parameters
    ----------
    num_operations
        Operations in the window, over all stages.
    """
    graph = schedule_graph(schedule)
    window = _random_window(schedule, graph, num_operations, rng)
    data, nodes = _window_data(schedule, graph, window)
    seed = int(rng.integers(2**31 - 1))
    solved = JobShopWindow(data).solve(time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed)
    if solved is None:
        return None
    _, starts = solved
    operations = []
    for s, (low, high) in enumerate(window):
        old = schedule.operations[s]
        mine = [i for i, (stage, _) in enumerate(nodes) if stage == s]
        inside = [old[nodes[i][1]] for i in order_of(starts, mine)]
        operations.append([*old[:low], *inside, *old[high:]])
    try:
        new = build_schedule(schedule.problem, *renumbered(schedule.order, operations))
    except BlockedProgramsError:  # operations that tie on the grid can be sorted into a circle: nothing gained
        return None
    return new if is_better(new, schedule) else None


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
                pred = _job_predecessor(stage[i], s, len(operations))
                ready = starts[s][i - 1] + durations[s][i - 1] if i else 0
                if pred is not None:
                    r, op = pred
                    p = at[r][op]
                    if p >= done[r]:
                        break
                    lag = lags[_rank(stage[i])] if r != s else 0
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
        pred = _job_predecessor(operations[s][i], s, len(operations))
        if pred is not None:
            r, op = pred
            p = at[r][op]
            lag = lags[_rank(op)] if r != s else 0
            tails[r][p] = max(tails[r][p], below + lag)
    makespan = max(starts[s][-1] + durations[s][-1] for s in range(len(operations)))
    return ScheduleGraph(durations, lags, starts, tails, makespan)


def _rank(operation: int) -> int:
    return operation if operation >= 0 else ~operation


def _job_predecessor(operation: int, stage: int, stages: int) -> tuple[int, int] | None:
    """Return stage and operation that provide the input of an operation."""
    if operation >= 0:
        return (stage - 1, operation) if stage else None
    return (stage, ~operation) if stage == stages - 1 else (stage + 1, operation)


def _random_window(
    schedule: ReplicaSchedule, graph: ScheduleGraph, num_operations: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return by stage the half-open range of operations that start in a random interval of time."""
    starts = np.sort(np.concatenate([np.array(s) for s in graph.starts]))
    first = int(rng.integers(max(1, len(starts) - num_operations // 2)))
    begin, end = starts[first], starts[min(first + num_operations, len(starts) - 1)]
    if first + num_operations >= len(starts):
        end += 1
    return [(int(np.searchsorted(s, begin)), int(np.searchsorted(s, end))) for s in graph.starts]


def _window_data(
    schedule: ReplicaSchedule, graph: ScheduleGraph, window: list[tuple[int, int]]
) -> tuple[WindowData, list[Node]]:
    operations, stages = schedule.operations, len(schedule.operations)
    nodes = [(s, i) for s, (low, high) in enumerate(window) for i in range(low, high)]
    index = {node: n for n, node in enumerate(nodes)}
    at = [{op: i for i, op in enumerate(stage)} for stage in operations]
    items: list[WindowOperation] = []
    precedences: list[tuple[int, int, int]] = []
    for s, i in nodes:
        low, high = window[s]
        op, duration = operations[s][i], graph.durations[s][i]
        earliest = graph.starts[s][low - 1] + graph.durations[s][low - 1] if low else 0
        pred = _job_predecessor(op, s, stages)
        if pred is not None:
            r, other = pred
            node = (r, at[r][other])
            lag = graph.lags[_rank(op)] if r != s else 0
            if node in index:
                precedences.append((index[node], index[s, i], lag))
            else:
                earliest = max(earliest, graph.starts[r][node[1]] + graph.durations[r][node[1]] + lag)
        tail = graph.durations[s][high] + graph.tails[s][high] if high < len(operations[s]) else 0
        for r, other in _job_successors(op, s, stages):
            node = (r, at[r].get(other, -1))
            if node not in index and node[1] >= 0:  # no B follows what is evaluated
                lag = graph.lags[_rank(op)] if r != s else 0
                tail = max(tail, lag + graph.durations[r][node[1]] + graph.tails[r][node[1]])
        kind: Kind = "F" if op >= 0 else "B"
        items.append(WindowOperation(_rank(op), kind, s, duration, earliest, tail, graph.starts[s][i]))
    precedences += _step_precedences(schedule, window, index, at)
    data = WindowData(
        tuple(items),
        tuple(precedences),
        tuple(_fixed_pairs(operations, window)),
        tuple(_held_memory(schedule, window)),
        graph.makespan,
    )
    return data, nodes


def _job_successors(operation: int, stage: int, stages: int) -> list[tuple[int, int]]:
    if operation >= 0:
        return [(stage + 1, operation)] if stage < stages - 1 else [(stage, ~operation)]
    return [(stage - 1, operation)] if stage else []


def _step_precedences(
    schedule: ReplicaSchedule, window: list[tuple[int, int]], index: dict[Node, int], at: list[dict[int, int]]
) -> list[tuple[int, int, int]]:
    """On the first stage, F's of a step come after the B's of the step before; on the others that follows.

    An evaluation comes after the B's of its step, and before the F's of the next.
    """
    low, high = window[0]
    inside = schedule.operations[0][low:high]
    result = []
    for op in inside:
        if op < 0:
            continue
        what = schedule.order[op].evaluation
        needed = {(a, j - 1) for a, j in schedule.order[op].steps} if what is None else {what[:2]}
        for other in inside:
            before = schedule.order[_rank(other)]
            evaluates = before.evaluation is not None and what is None and before.evaluation[:2] in needed
            if evaluates or (other < 0 and needed & set(before.steps)):
                result.append((index[0, at[0][other]], index[0, at[0][op]], 0))
    return result


def _fixed_pairs(operations: Sequence[Sequence[int]], window: list[tuple[int, int]]) -> list[tuple[Kind, int, int]]:
    """Pairs of jobs whose order is settled because on some stage not both of them run inside the window."""
    inside: dict[Kind, list[set[int]]] = {"F": [], "B": []}
    for s, (low, high) in enumerate(window):
        part = operations[s][low:high]
        inside["F"].append({op for op in part if op >= 0})
        inside["B"].append({~op for op in part if op < 0})
    result: list[tuple[Kind, int, int]] = []
    kinds: tuple[Kind, ...] = ("F", "B")
    for kind in kinds:
        sets = inside[kind]
        sequence = [op if kind == "F" else ~op for op in operations[0] if (op >= 0) == (kind == "F")]
        place = {k: i for i, k in enumerate(sequence)}
        jobs = sorted(set().union(*sets), key=place.__getitem__)
        result += [(kind, *pair) for pair in combinations(jobs, 2) if not all(x.issuperset(pair) for x in sets)]
    return result


def _held_memory(schedule: ReplicaSchedule, window: list[tuple[int, int]]) -> list[HeldMemory]:
    """Stages where the tokens in flight can exceed the memory, counted with the largest micro-batch running."""
    problem, order = schedule.problem, schedule.order
    result = []
    for s, (low, high) in enumerate(window):
        part = schedule.operations[s][low:high]
        if problem.memory.held_gib == 0 or not part:
            continue
        now: set[int] = set()
        for op in schedule.operations[s][:low]:
            if order[_rank(op)].evaluation is None:
                now.symmetric_difference_update({_rank(op)})
        forwarded = {op for op in part if op >= 0 and order[op].evaluation is None}
        backwarded = {~op for op in part if op < 0}
        throughout = sum(order[k].tokens for k in now - backwarded)
        largest = max(order[_rank(op)].tokens for op in part)
        room = problem.held_room_gib * (1 + 1e-9) - problem.memory.working_gib * largest
        capacity = int(room / problem.memory.held_gib)
        held, most = throughout + sum(order[k].tokens for k in now & backwarded), 0
        for op in part:  # the schedule at hand is valid, moment by moment, where counting the largest may be too strict
            held += order[op].tokens if op in forwarded else 0
            most = max(most, held)
            held -= order[~op].tokens if op < 0 else 0
        capacity = max(capacity, most) - throughout
        groups = (now & backwarded, forwarded & backwarded, forwarded - backwarded)
        if sum(order[k].tokens for g in groups for k in g) > capacity:
            jobs = [tuple((k, order[k].tokens) for k in sorted(g)) for g in groups]
            result.append(HeldMemory(s, capacity, *jobs))
    return result


def renumbered(order: Sequence[Batch], operations: Sequence[Sequence[int]]) -> tuple[list[Batch], list[list[int]]]:
    """Rank micro-batches anew by the order of their F's on the first stage."""
    sequence = [op for op in operations[0] if op >= 0]
    rank = {old: new for new, old in enumerate(sequence)}
    renamed = [[rank[op] if op >= 0 else ~rank[~op] for op in stage] for stage in operations]
    return [order[k] for k in sequence], renamed
