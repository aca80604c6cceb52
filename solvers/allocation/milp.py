"""Solving the set partitioning with HiGHS through Pyomo."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from cappuccino.errors import CappuccinoError
from cappuccino.models.set_partitioning import Column, SetPartitioning
from cappuccino.plan import Objective
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.settings import DEFAULT

_ABSOLUTE_GAP = 1e-6
"""HiGHS's own, in the unit of the model's objective."""


class TimeUpError(CappuccinoError):
    """HiGHS found no solution in the time it had."""

    def __init__(self) -> None:
        super().__init__("HiGHS found no allocation in time; give more --time-limit")


@dataclass(frozen=True)
class PartitionResult:
    """A solution of the set partitioning."""

    chosen: tuple[int, ...]
    """Indices of the chosen columns, each as often as it is chosen."""
    objective: float
    bound: float | None
    """Proven lower bound for these columns and costs, if there is one."""


@dataclass(frozen=True)
class PartitionProblem:
    """What every solve of a set partitioning has in common."""

    kinds: Sequence[int]
    """Kind of every adapter; a column stands for all with as many adapters of each kind."""
    pools: Mapping[str, int]
    """GPUs by type."""
    objective: Objective
    gap: float
    """Relative gap to stop at."""
    seed: int
    at_least: bool = False
    """Cover adapters once or more instead of once."""
    tie_gap: float = DEFAULT.allocation.tie_gap
    """How closely GPU time is minimised among partitions of one makespan or one cost."""

    def solve(
        self, columns: Sequence[Column], clock: Clock, start: Sequence[int] = (), low_s: float = 0.0
    ) -> PartitionResult | None:
        """Choose columns, to the gap or until the time is up.

        Parameters
        ----------
        start
            A solution to begin with, as indices of columns, each as often as it is chosen.
        low_s
            Makespan that no partition falls below; for the objective makespan.

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
        if self.objective is Objective.MAKESPAN:
            return _least_makespan(self, columns, clock, start, low_s)
        found = _solve(self, range(len(columns)), columns, self.objective, self.gap, clock, start)
        if found is None or self.objective is not Objective.COST or all(c.price_per_second > 0 for c in columns):
            return found
        return _least_gpu_time(self, columns, found, clock)


def _solve(
    problem: PartitionProblem,
    candidates: Sequence[int],
    columns: Sequence[Column],
    objective: Objective,
    gap: float,
    clock: Clock,
    start: Sequence[int],
    most_cost: float | None = None,
) -> PartitionResult | None:
    """Solve over some of the columns, at no more than a given cost where one is given."""
    offered = [columns[c] for c in candidates]
    held = {problem.kinds[i] for column in offered for i in column.adapters}
    if len(held) < len(set(problem.kinds)):
        return None
    model = SetPartitioning(offered, problem.kinds, problem.pools, objective, problem.at_least, most_cost)
    solver = Highs()
    solver.config.load_solution = False
    solver.config.time_limit = None if clock.left is None else max(0.1, clock.left)
    # looking for dominated columns takes HiGHS seconds per thousand of them, whatever the time limit
    solver.highs_options = {"mip_rel_gap": gap, "random_seed": problem.seed, "threads": 1, "presolve": "off"}
    begin = Counter(start)
    if begin.keys() <= set(candidates):
        solver.config.warmstart = bool(begin)
        for place, c in enumerate(candidates if begin else ()):
            model.model.chosen[place].set_value(begin[c], skip_validation=True)
    result = solver.solve(model.model)
    if result.termination_condition in (TerminationCondition.infeasible, TerminationCondition.infeasibleOrUnbounded):
        return None
    if result.best_feasible_objective is None:
        if result.termination_condition is TerminationCondition.maxTimeLimit:
            raise TimeUpError
        raise CappuccinoError(f"HiGHS ended with '{result.termination_condition.name}' instead of an allocation")
    result.solution_loader.load_vars()
    chosen = [candidates[c] for c in model.model.column for _ in range(round(pyo.value(model.model.chosen[c])))]
    value, bound = float(result.best_feasible_objective), result.best_objective_bound
    if bound is not None:
        # a better solution by less than the solver's absolute tolerance may have been passed over
        bound = min(value, float(bound)) - _ABSOLUTE_GAP
    unit = model.unit
    return PartitionResult(tuple(chosen), value * unit, None if bound is None else max(0.0, bound * unit))


def _least_gpu_time(
    problem: PartitionProblem, columns: Sequence[Column], found: PartitionResult, clock: Clock
) -> PartitionResult:
    """Return the solution of least GPU time among those that cost no more: where GPUs are free, many do."""
    everything = range(len(columns))
    most = sum(columns[c].cost for c in found.chosen) * (1 + 1e-9)
    try:
        best = _solve(problem, everything, columns, Objective.GPU_TIME, problem.tie_gap, clock, found.chosen, most)
    except TimeUpError:
        return found
    return found if best is None else replace(found, chosen=best.chosen)


def _least_makespan(
    problem: PartitionProblem, columns: Sequence[Column], clock: Clock, start: Sequence[int], low_s: float
) -> PartitionResult | None:
    """Find the least makespan by bisection over the columns' makespans.

    Whether a partition ends in time is a set partitioning over the columns that do, of each set and GPU type only the
    shallowest. One model with a variable for the makespan has so weak a relaxation that HiGHS overran its time limit.
    Among partitions of one makespan, GPU time decides.
    """
    fastest: dict[int, float] = {}
    for column in columns:
        for kind in {problem.kinds[i] for i in column.adapters}:
            fastest[kind] = min(column.makespan_s, fastest.get(kind, column.makespan_s))
    if len(fastest) < len(set(problem.kinds)):
        return None
    values = sorted({c.makespan_s for c in columns})
    low = bisect_left(values, max(low_s, *fastest.values()))  # no partition can end before this one
    high = len(values) - 1
    low = min(low, high)

    def ending_by(makespan_s: float, start: Sequence[int] = ()) -> PartitionResult | None:
        shallowest: dict[tuple[tuple[int, ...], str], int] = {}
        for k, c in enumerate(columns):
            best = shallowest.get((c.adapters, c.gpu))
            if c.makespan_s <= makespan_s and (best is None or c.num_stages < columns[best].num_stages):
                shallowest[c.adapters, c.gpu] = k
        chosen = list(shallowest.values())
        return _solve(problem, chosen, columns, Objective.GPU_TIME, problem.tie_gap, clock, start)

    best = ending_by(max(columns[c].makespan_s for c in start), start) if start else ending_by(values[high])
    if best is None:
        return None
    while True:
        high = bisect_left(values, max(columns[c].makespan_s for c in best.chosen))
        if low >= high or values[high] * (1 - problem.gap) <= values[low]:
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
