"""Solving the set partitioning with HiGHS through Pyomo."""

from dataclasses import dataclass

import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from cappuccino.errors import CappuccinoError
from cappuccino.models.set_partitioning import SetPartitioning


@dataclass(frozen=True)
class PartitionResult:
    """A solution of the set partitioning."""

    chosen: tuple[int, ...]
    """Indices of the chosen columns."""
    objective: float
    bound: float | None
    """Proven lower bound for these columns and costs, if there is one."""


def solve_partitioning(
    model: SetPartitioning, time_limit_s: float | None, gap: float, seed: int
) -> PartitionResult | None:
    """Solve to `gap` or until the time is up (None: no limit).

    Returns
    -------
    PartitionResult or None
        None when the columns admit no solution, or none was found in time.

    Raises
    ------
    CappuccinoError
        When HiGHS ends without a solution for another reason.
    """
    solver = Highs()
    solver.config.load_solution = False
    solver.config.time_limit = None if time_limit_s is None else max(1.0, time_limit_s)
    solver.highs_options = {"mip_rel_gap": gap, "random_seed": seed, "threads": 1}
    result = solver.solve(model.model)
    if result.termination_condition in (TerminationCondition.infeasible, TerminationCondition.infeasibleOrUnbounded):
        return None
    if result.best_feasible_objective is None:
        if result.termination_condition is TerminationCondition.maxTimeLimit:
            return None
        raise CappuccinoError(f"HiGHS ended with '{result.termination_condition.name}' instead of an allocation")
    result.solution_loader.load_vars()
    chosen = tuple(c for c in model.model.column if pyo.value(model.model.chosen[c]) > 0.5)
    objective = float(result.best_feasible_objective)
    bound = result.best_objective_bound
    return PartitionResult(chosen, objective, None if bound is None else min(objective, float(bound)))
