"""What a window keeps to: the order that is settled around it, and the memory that its stages have."""

from collections.abc import Sequence
from itertools import combinations

from cappuccino.models.job_shop_data import HeldMemory, Kind
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.schedule_graph import rank_of

Ranges = Sequence[tuple[int, int]]
"""By stage, the half-open range of its operations that a window holds."""


def like(fixed: Sequence[tuple[Kind, int, int]], job: int, new: int) -> list[tuple[Kind, int, int]]:
    """Return the settled pairs of a job once more for a new one that is in the window from start to end as well."""

    def renamed(other: int) -> int:
        return new if other == job else other

    return [(kind, renamed(k), renamed(other)) for kind, k, other in fixed if job in (k, other)]


def with_job(held: HeldMemory, job: int) -> HeldMemory:
    """Return what a stage holds where there is a job more that is in the window from start to end."""
    return HeldMemory(held.stage, held.capacity, held.from_before, (*held.within, (job, 0)), held.beyond)


def fixed_pairs(operations: Sequence[Sequence[int]], ranges: Ranges) -> list[tuple[Kind, int, int]]:
    """Pairs of jobs whose order is settled because on some stage not both of them run inside the window."""
    inside: dict[Kind, list[set[int]]] = {"F": [], "B": []}
    for s, (low, high) in enumerate(ranges):
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


def held_memory(schedule: ReplicaSchedule, ranges: Ranges) -> list[HeldMemory]:
    """Stages where the tokens in flight can exceed the memory, counted with the largest micro-batch running."""
    problem, order = schedule.problem, schedule.order
    result = []
    for s, (low, high) in enumerate(ranges):
        part = schedule.operations[s][low:high]
        if problem.memory.held_gib == 0 or not part:
            continue
        now: set[int] = set()
        for op in schedule.operations[s][:low]:
            if order[rank_of(op)].evaluation is None:
                now.symmetric_difference_update({rank_of(op)})
        forwarded = {op for op in part if op >= 0 and order[op].evaluation is None}
        backwarded = {~op for op in part if op < 0}
        throughout = sum(order[k].tokens for k in now - backwarded)
        largest = max(order[rank_of(op)].tokens for op in part)
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
