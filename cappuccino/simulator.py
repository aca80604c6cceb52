"""Runs the programs of a plan on the cost model: times, bubble and memory of every stage.

Independent of the solvers: it knows programs and costs only, and repairs nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.costs import CostModel
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
        peaks = peak_memory(replica.programs, workload)
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

    An F or E needs that of the stage before, a B the F of its own stage and the B of the stage behind, each a transfer
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
    stages, work = len(programs), workload.evaluations
    lengths = {"F": workload.forward_s.tolist(), "B": workload.backward_s.tolist(), "E": work.forward_s.tolist()}
    lags = {"F": workload.transfer_s.tolist(), "B": workload.transfer_s.tolist(), "E": work.transfer_s.tolist()}
    # ends by kind, stage and micro-batch, None while there is none
    done: dict[str, list[list[float | None]]] = {kind: [[None] * len(lags[kind]) for _ in programs] for kind in lags}
    batches_of = _clipped_batches(workload)
    starts: list[list[float]] = [[] for _ in programs]
    ends: list[list[float]] = [[] for _ in programs]
    given = None if durations is None else [d.tolist() for d in durations]

    def inputs(s: int, operation: Operation) -> Iterator[float | None]:
        """Yield when each input of an operation arrives, None where it has not been made."""
        if operation[0] == "S":
            for row in done["B"]:
                yield from (row[k] for k in batches_of.get(operation[1:], ()))
            return
        kind, k = operation
        source = s + 1 if kind == "B" else s - 1
        if kind == "B":
            yield done["F"][s][k]
        if 0 <= source < stages:
            end = done[kind][source][k]
            yield None if end is None else end + lags[kind][k]

    waiting = set(range(stages))
    while waiting:
        progressed = False
        for s in sorted(waiting):
            program, my_starts, my_ends = programs[s], starts[s], ends[s]
            free, first = my_ends[-1] if my_ends else 0.0, len(my_ends)
            for position in range(first, len(program)):
                operation = program[position]
                arrivals = list(inputs(s, operation))
                if None in arrivals:
                    break
                start = max([free, *(end for end in arrivals if end is not None)])
                if given:
                    length = given[s][position]
                else:
                    length = workload.optimizer_s if operation[0] == "S" else lengths[operation[0]][s][operation[1]]
                free = start + length
                if operation[0] != "S":
                    done[operation[0]][s][operation[1]] = free
                my_starts.append(start)
                my_ends.append(free)
            progressed = progressed or len(my_ends) > first
            if len(my_ends) == len(program):
                waiting.discard(s)
        if waiting and not progressed:
            stuck = ", ".join(f"stage {s} at {list(programs[s][len(ends[s])])}" for s in sorted(waiting))
            raise DeadlockError(f"replica {replica}: the programs deadlock: {stuck}")
    begun, ended = (tuple(np.array(x) for x in values) for values in (starts, ends))
    return Timeline(replica, tuple(tuple(p) for p in programs), begun, ended)


def _clipped_batches(workload: Workload) -> dict[tuple[int, int], list[int]]:
    """Return by step the micro-batches of the adapters with gradient clipping."""
    batches_of: dict[tuple[int, int], list[int]] = {}
    for m, steps in enumerate(workload.steps):
        for step in steps:
            if step[0] in workload.clipped:
                batches_of.setdefault(step, []).append(m)
    return batches_of


def peak_memory(programs: Sequence[Sequence[Operation]], workload: Workload) -> tuple[float, ...]:
    """Return the peak memory of every stage, GiB: that of its fullest moment.

    A micro-batch is held from its F to its B, both included; one that is evaluated while it runs only.
    """
    least = workload.memory.static_gib
    return tuple(float(running.max(initial=least)) for running, _ in memory_by_operation(programs, workload))


def memory_by_operation(
    programs: Sequence[Sequence[Operation]], workload: Workload
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return by stage the memory while each operation of its program runs, and behind it, GiB."""
    memory, found = workload.memory, []
    tokens = {"F": workload.tokens, "B": workload.tokens, "E": workload.evaluations.tokens}
    for program in programs:
        running = np.array([tokens[op[0]][op[1]] if op[0] != "S" else 0 for op in program], dtype=float)
        sign = np.array([{"F": 1.0, "B": -1.0}.get(op[0], 0.0) for op in program])
        held_after = np.cumsum(sign * running)
        held = np.where(sign < 0, held_after + running, held_after)
        found.append((memory.peak(running, held), memory.peak(0.0, held_after)))
    return found
