"""Runs the programs of a plan on the cost model: times, bubble and memory of every stage.

Independent of the solvers: it knows programs and costs only, and repairs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.costs import CostModel, MemoryModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Operation, Plan
from cappuccino.timeline import Timeline
from cappuccino.workload import Workload


class DeadlockError(InvalidPlanError):
    """The programs wait for each other."""


@dataclass(frozen=True)
class ReplicaSimulation:
    """What running one replica's programs gives."""

    timeline: Timeline
    peak_memory_gib: tuple[float, ...]
    """By stage."""


@dataclass(frozen=True)
class Simulation:
    """What running a plan gives."""

    replicas: tuple[ReplicaSimulation, ...]
    gpu_time_s: float
    makespan_s: float
    cost: float | None
    """Money, where every pool used has a price."""


def simulate(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Simulation:
    """Run all replicas of a plan.

    Parameters
    ----------
    costs
        Cost model by GPU type.

    Raises
    ------
    DeadlockError
        When programs wait for each other; the message names the waiting operations.
    InvalidPlanError
        When the costs are of other recomputation or layers than a replica's.
    """
    replicas = []
    gpu_time, cost, priced = 0.0, 0.0, True
    for replica in plan.replicas:
        workload = Workload.of(replica, instance, costs[replica.gpu])
        timeline = run_programs(replica.programs, workload, replica.id)
        peaks = peak_memory(replica.programs, workload.tokens, workload.memory)
        replicas.append(ReplicaSimulation(timeline, peaks))
        used = replica.num_stages * timeline.makespan
        gpu_time += used
        price = instance.pool(replica.gpu).price_per_hour
        priced = priced and price is not None
        cost += used * (price or 0.0) / 3600
    makespan = max(r.timeline.makespan for r in replicas)
    return Simulation(tuple(replicas), gpu_time, makespan, cost if priced else None)


def run_programs(
    programs: Sequence[Sequence[Operation]],
    workload: Workload,
    replica: int = 0,
    durations: Sequence[np.ndarray] | None = None,
) -> Timeline:
    """Run one program per stage, every operation in its turn as soon as its input has arrived.

    An F needs the F of the stage before, a B the F of its own stage and the B of the stage behind, each a transfer
    earlier; the S of an adapter with gradient clipping needs all stages' B's of its step.

    Parameters
    ----------
    durations
        How long the operations take, by stage in the order of the program, seconds; by default what the workload says.

    Raises
    ------
    DeadlockError
        When no stage can go on.
    """
    count, stages = len(workload.tokens), len(programs)
    last = stages - 1
    forward, backward, transfer = (x.tolist() for x in (workload.forward_s, workload.backward_s, workload.transfer_s))
    # ends by micro-batch, None while there is none
    forward_end: list[list[float | None]] = [[None] * count for _ in programs]
    backward_end: list[list[float | None]] = [[None] * count for _ in programs]
    batches_of = _clipped_batches(workload)
    starts: list[list[float]] = [[] for _ in programs]
    ends: list[list[float]] = [[] for _ in programs]
    given = None if durations is None else [d.tolist() for d in durations]
    waiting = set(range(stages))
    while waiting:
        progressed = False
        for s in sorted(waiting):
            program, own, done = programs[s], forward_end[s], backward_end[s]
            above = forward_end[s - 1] if s else None
            below = backward_end[s + 1] if s < last else None
            my_starts, my_ends = starts[s], ends[s]
            free = my_ends[-1] if my_ends else 0.0
            first = len(my_ends)
            for position in range(first, len(program)):
                operation = program[position]
                start = free
                if operation[0] == "F":
                    m = operation[1]
                    if above is not None:
                        end = above[m]
                        if end is None:
                            break
                        start = max(start, end + transfer[m])
                    free = start + (given[s][position] if given else forward[s][m])
                    own[m] = free
                elif operation[0] == "B":
                    m = operation[1]
                    end = own[m]
                    if end is None:
                        break
                    start = max(start, end)
                    if below is not None:
                        end = below[m]
                        if end is None:
                            break
                        start = max(start, end + transfer[m])
                    free = start + (given[s][position] if given else backward[s][m])
                    done[m] = free
                else:
                    batches = batches_of.get((operation[1], operation[2]), ())
                    needed = [row[k] for row in backward_end for k in batches]
                    if None in needed:
                        break
                    start = max([start, *(e for e in needed if e is not None)])
                    free = start + (given[s][position] if given else workload.optimizer_s)
                my_starts.append(start)
                my_ends.append(free)
            progressed = progressed or len(my_ends) > first
            if len(my_ends) == len(program):
                waiting.discard(s)
        if waiting and not progressed:
            stuck = ", ".join(f"stage {s} at {list(programs[s][len(ends[s])])}" for s in sorted(waiting))
            raise DeadlockError(f"replica {replica}: the programs deadlock: {stuck}")
    arrays = (tuple(np.array(x) for x in values) for values in (starts, ends))
    return Timeline(replica, tuple(tuple(p) for p in programs), *arrays)


def _clipped_batches(workload: Workload) -> dict[tuple[int, int], list[int]]:
    """Return by step the micro-batches of the adapters with gradient clipping."""
    batches_of: dict[tuple[int, int], list[int]] = {}
    for m, steps in enumerate(workload.steps):
        for step in steps:
            if step[0] in workload.clipped:
                batches_of.setdefault(step, []).append(m)
    return batches_of


def peak_memory(programs: Sequence[Sequence[Operation]], tokens: np.ndarray, memory: MemoryModel) -> tuple[float, ...]:
    """Return the peak memory of every stage, GiB: that of its fullest moment.

    A micro-batch is held from its F to its B, both included.
    """
    peaks = []
    for program in programs:
        running = np.array([tokens[op[1]] if op[0] != "S" else 0 for op in program], dtype=float)
        sign = np.array([{"F": 1.0, "B": -1.0, "S": 0.0}[op[0]] for op in program])
        held_after = np.cumsum(sign * running)
        held = np.where(sign < 0, held_after + running, held_after)
        peaks.append(float(memory.peak(running, held).max(initial=memory.static_gib)))
    return tuple(peaks)
