"""Allocator and scheduler in one loop: bounds choose replicas, scheduled makespans replace the bounds that mattered."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from cappuccino.errors import InfeasibleError
from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.columns import MOST_ENUMERATED, ReplicaSpace
from cappuccino.solvers.milp import PartitionResult, TimeUpError, solve_partitioning
from cappuccino.solvers.programs import ReplicaSchedule
from cappuccino.solvers.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling import schedule_replica

FIRST_LOOK = Budget(seconds=None, constructions=12, moves=0, windows=0)
"""Search on a column that the allocator proposes for the first time."""
FIRST_SOLVE_SHARE, LEAST_FIRST_SOLVE_S = 0.7, 10.0
"""Of the allocator's time, what the first set partitioning may take; and what it may take at least, seconds."""
EXPECTED_EXCESS = 0.03
"""How far above their bound columns are expected to end before any has been scheduled."""
Key = tuple[tuple[int, ...], str, int]


@dataclass
class Allocation:
    """The state of the loop."""

    space: ReplicaSpace
    objective: Objective
    deadline_s: float | None
    columns: list[Column]
    """Their makespans are proven bounds."""
    bound: float
    """Proven bound on the objective."""
    schedules: dict[Key, ReplicaSchedule] = field(default_factory=dict)
    chosen: list[ReplicaSchedule] = field(default_factory=list)
    """The best set of scheduled replicas, GPU types in `chosen_gpus`."""
    chosen_gpus: list[str] = field(default_factory=list)

    def value(self, schedules: list[ReplicaSchedule], gpus: list[str]) -> float:
        """Return the objective of scheduled replicas; infinite for none, or past the deadline."""
        if not schedules:
            return float("inf")
        longest = max(s.makespan_s for s in schedules)
        if self.deadline_s is not None and longest > self.deadline_s:
            return float("inf")
        if self.objective is Objective.MAKESPAN:
            return longest
        if self.objective is Objective.GPU_TIME:
            return sum(s.gpu_time_s for s in schedules)
        prices = {p.gpu: (p.price_per_hour or 0.0) / 3600 for p in self.space.instance.gpu_pools}
        return sum(s.gpu_time_s * prices[gpu] for s, gpu in zip(schedules, gpus, strict=True))

    @property
    def best(self) -> float:
        """Objective of the best plan so far."""
        return self.value(self.chosen, self.chosen_gpus)

    def offer(self, schedules: list[ReplicaSchedule], gpus: list[str]) -> bool:
        """Keep scheduled replicas that cover everything if they beat the best so far, by GPU time where it ties."""
        value, best = self.value(schedules, gpus), self.best
        saved = sum(s.gpu_time_s for s in self.chosen) - sum(s.gpu_time_s for s in schedules)
        if value > best or (value == best and saved <= 0):
            return False
        self.chosen, self.chosen_gpus = schedules, gpus
        return True


def allocate(
    space: ReplicaSpace,
    objective: Objective,
    deadline_s: float | None,
    clock: Clock,
    gap: float,
    seed: int,
    on_better: Callable[[Allocation], None] | None = None,
) -> Allocation:
    """Choose replicas and schedule those that matter.

    The bound comes from the set partitioning with proven bounds as costs when all columns are enumerated. The plan
    comes from the same model with scheduled makespans where there are some, and expected ones elsewhere, until it
    chooses scheduled columns only, the gap is reached or the time is up.

    Raises
    ------
    InfeasibleError
        When the pools, or the deadline, admit no partition.
    TimeUpError
        When not even a first allocation was found in time.
    """
    columns = space.columns(deadline_s)
    pools = {p.gpu: p.count for p in space.instance.gpu_pools}

    def solve(candidates: list[Column], time_limit_s: float | None) -> PartitionResult | None:
        count, tight = len(space.instance.adapters), min(gap / 4, 1e-3)
        return solve_partitioning(candidates, count, pools, objective, time_limit_s=time_limit_s, gap=tight, seed=seed)

    # a first allocation there must be, however little time
    first_limit = None if clock.left is None else max(LEAST_FIRST_SOLVE_S, FIRST_SOLVE_SHARE * clock.left)
    relaxed = solve(columns, first_limit)
    if relaxed is None:
        raise InfeasibleError(_why_no_partition(space, deadline_s))
    bound = space.objective_bound(objective)
    if space.enumerates_all and relaxed.bound is not None:
        bound = max(bound, relaxed.bound)
    state = Allocation(space, objective, deadline_s, columns, bound)
    chosen, candidates = relaxed, columns
    while True:
        picked = [candidates[c] for c in chosen.chosen]
        fresh = [c for c in picked if _key(c) not in state.schedules]
        for column in fresh:
            state.schedules[_key(column)] = schedule_replica(_problem(space, column), FIRST_LOOK, seed)
        if state.offer([state.schedules[_key(c)] for c in picked], [c.gpu for c in picked]) and on_better:
            on_better(state)
        if not fresh or clock.over or state.best * (1 - gap) <= state.bound:
            break
        candidates = _expected(state)
        try:
            found = solve(candidates, clock.left)
        except TimeUpError:
            break
        if found is None:  # too many schedules are past the deadline
            break
        chosen = found
    if not state.chosen:
        raise InfeasibleError(
            f"{space.instance.source}: no schedule found that meets the deadline of {deadline_s:g} s (bounds do not "
            "exclude one); give a longer deadline or more --time-limit"
        )
    return state


def _key(column: Column) -> Key:
    return column.adapters, column.gpu, column.num_stages


def _problem(space: ReplicaSpace, column: Column) -> ReplicaProblem:
    pool = space.instance.pool(column.gpu)
    return ReplicaProblem(space.instance, space.costs[column.gpu], column.adapters, column.num_stages, pool.memory_gib)


def _expected(state: Allocation) -> list[Column]:
    """Return the columns with scheduled makespans, or, elsewhere, the bound with the excess seen so far.

    Columns that are scheduled past the deadline are left out; a column nobody scheduled is expected to meet it.
    """
    ratios = [s.makespan_s / s.problem.lower_bound_s - 1 for s in state.schedules.values()]
    excess = float(np.median(ratios)) if ratios else EXPECTED_EXCESS
    limit = float("inf") if state.deadline_s is None else state.deadline_s
    result = []
    for column in state.columns:
        known = state.schedules.get(_key(column))
        makespan = known.makespan_s if known else min(column.makespan_s * (1 + excess), limit)
        if makespan <= limit:
            result.append(replace(column, makespan_s=makespan))
    return result


def _rounded_up(seconds: float) -> str:
    """Return a number of four significant digits that is not below `seconds`."""
    scale = 10.0 ** (3 - math.floor(math.log10(seconds)))
    text = f"{math.ceil(seconds * scale) / scale:f}"
    return text.rstrip("0").rstrip(".")


def _why_no_partition(space: ReplicaSpace, deadline_s: float | None) -> str:
    source = space.instance.source
    if not space.enumerates_all:
        within = "" if deadline_s is None else f" within {deadline_s:g} s"
        return (
            f"{source}: no partition{within} found among the sets of adapters tried (with more than "
            f"{MOST_ENUMERATED} adapters not all are); give more GPUs or a longer deadline"
        )
    if deadline_s is not None:
        least = space.objective_bound(Objective.MAKESPAN)
        if deadline_s < least:
            advice = f"give a deadline of at least {_rounded_up(least)} s"
            return f"{source}: no plan can end within {deadline_s:g} s; {advice}"
        return (
            f"{source}: the pools are too small for a deadline of {deadline_s:g} s; give a longer one (at least "
            f"{_rounded_up(least)} s) or more GPUs"
        )
    needs = ", ".join(f"{p.gpu}: {p.count}" for p in space.instance.gpu_pools)
    return f"{source}: gpu_pools ({needs}) are too small to place every adapter; give more GPUs"
