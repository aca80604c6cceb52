"""Solving the set partitioning with HiGHS through Pyomo."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from cappuccino.errors import CappuccinoError
from cappuccino.models.set_partitioning import Column, SetPartitioning
from cappuccino.plan import Objective
from cappuccino.solvers.budget import Clock

_TIE_GAP = 0.01
"""How closely GPU time is minimised among partitions of one makespan."""


class TimeUpError(CappuccinoError):
    """HiGHS found no solution in the time it had."""

    def __init__(self) -> None:
        super().__init__("HiGHS found no allocation in time; give more --time-limit")


@dataclass(frozen=True)
class PartitionResult:
    """A solution of the set partitioning."""

    chosen: tuple[int, ...]
    """Indices of the chosen columns."""
    objective: float
    bound: float | None
    """Proven lower bound for these columns and costs, if there is one."""


def solve_partitioning(
    columns: Sequence[Column],
    num_adapters: int,
    pools: Mapping[str, int],
    objective: Objective,
    *,
    time_limit_s: float | None,
    gap: float,
    seed: int,
) -> PartitionResult | None:
    """Choose columns that cover adapters 0 to `num_adapters - 1` once, to `gap` or until the time is up.

    Parameters
    ----------
    pools
        GPUs by type.
    time_limit_s
        None: no limit.

    Returns
    -------
    PartitionResult or None
        None when the columns admit no solution.

    Raises
    ------
    TimeUpError
        When no solution was found in time.
    CappuccinoError
        When HiGHS ends without a solution for another reason.
    """
    clock = Clock(time_limit_s)
    if objective is Objective.MAKESPAN:
        return _least_makespan(columns, num_adapters, pools, clock, gap, seed)
    return _solve(range(len(columns)), columns, num_adapters, pools, objective, clock, gap, seed)


def _solve(
    candidates: Sequence[int],
    columns: Sequence[Column],
    num_adapters: int,
    pools: Mapping[str, int],
    objective: Objective,
    clock: Clock,
    gap: float,
    seed: int,
) -> PartitionResult | None:
    """Solve over some of the columns."""
    offered = [columns[c] for c in candidates]
    if len({i for column in offered for i in column.adapters}) < num_adapters:
        return None
    model = SetPartitioning(offered, num_adapters, pools, objective)
    solver = Highs()
    solver.config.load_solution = False
    solver.config.time_limit = None if clock.left is None else max(0.1, clock.left)
    solver.highs_options = {"mip_rel_gap": gap, "random_seed": seed, "threads": 1}
    result = solver.solve(model.model)
    if result.termination_condition in (TerminationCondition.infeasible, TerminationCondition.infeasibleOrUnbounded):
        return None
    if result.best_feasible_objective is None:
        if result.termination_condition is TerminationCondition.maxTimeLimit:
            raise TimeUpError
        raise CappuccinoError(f"HiGHS ended with '{result.termination_condition.name}' instead of an allocation")
    result.solution_loader.load_vars()
    chosen = tuple(candidates[c] for c in model.model.column if pyo.value(model.model.chosen[c]) > 0.5)
    value = float(result.best_feasible_objective)
    bound = result.best_objective_bound
    return PartitionResult(chosen, value, None if bound is None else min(value, float(bound)))


def _least_makespan(
    columns: Sequence[Column], num_adapters: int, pools: Mapping[str, int], clock: Clock, gap: float, seed: int
) -> PartitionResult | None:
    """Find the least makespan by bisection over the columns' makespans.

    Whether a partition ends in time is a set partitioning over the columns that do, of each set and GPU type only the
    shallowest. One model with a variable for the makespan has so weak a relaxation that HiGHS overran its time limit.
    Among partitions of one makespan, GPU time decides.
    """
    fastest = [min((c.makespan_s for c in columns if i in c.adapters), default=None) for i in range(num_adapters)]
    if None in fastest:
        return None
    values = sorted({c.makespan_s for c in columns})
    low = bisect_left(values, max(f for f in fastest if f is not None))  # no partition can end before this one
    high = len(values) - 1

    def ending_by(makespan_s: float) -> PartitionResult | None:
        shallowest: dict[tuple[tuple[int, ...], str], int] = {}
        for k, c in enumerate(columns):
            best = shallowest.get((c.adapters, c.gpu))
            if c.makespan_s <= makespan_s and (best is None or c.num_stages < columns[best].num_stages):
                shallowest[c.adapters, c.gpu] = k
        chosen = list(shallowest.values())
        return _solve(chosen, columns, num_adapters, pools, Objective.GPU_TIME, clock, _TIE_GAP, seed)

    best = ending_by(values[high])
    if best is None:
        return None
    while True:
        high = bisect_left(values, max(columns[c].makespan_s for c in best.chosen))
        if low >= high or values[high] * (1 - gap) <= values[low]:
            break
        middle = (low + high) // 2
        try:
            found = ending_by(values[middle])
        except TimeUpError:
            break
        if found is None:
            low = middle + 1
        else:
            best = found
    return PartitionResult(best.chosen, values[high], values[min(low, high)])
