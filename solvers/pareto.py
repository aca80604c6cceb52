"""GPU time (or money) against deadline: one checked plan and one proven bound for every deadline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import InfeasibleError, InputError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan, objective_gap, plan_status, rounded_bound
from cappuccino.solvers.allocation.milp import TimeUpError
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.planning import PlanOptions, Progress, make_plan
from cappuccino.solvers.verification import verified

_TOLERANCE = 1e-9
"""Relative; deadlines and makespans this close are one."""


class PointStatus(StrEnum):
    """What is known at a deadline."""

    OPTIMAL = "optimal"
    """A plan that its bound meets."""
    WITHIN_GAP = "within_gap"
    """A plan, within the gap asked for."""
    FEASIBLE = "feasible"
    """A plan, with its gap."""
    NOT_FOUND = "not found"
    """No plan; the reason says what is known."""
    INFEASIBLE = "infeasible"
    """Proven: no plan ends in time."""


@dataclass(frozen=True)
class ParetoPoint:
    """What the best plan for one deadline costs, and what every plan for it must cost."""

    deadline_s: float
    status: PointStatus
    plan: Plan | None
    """Checked, its `deadline_s` this deadline; None where none was found or can exist."""
    lower_bound: float | None
    """Proven bound on the objective of every plan that meets the deadline; None where none can."""
    reason: str = ""
    """Why there is no plan, or why the plan is that of a tighter deadline after none was found for this one."""
    dominated: bool = False
    """Whether a tighter deadline costs no more, so that this one is no reason to wait longer."""

    @property
    def value(self) -> float | None:
        """The plan's objective, GPU-seconds or money."""
        return None if self.plan is None else self.plan.objective_value

    @property
    def gap(self) -> float | None:
        """`(objective - bound) / objective`."""
        return None if self.plan is None else self.plan.gap


@dataclass(frozen=True)
class FrontProgress:
    """Where the search for a front stands."""

    solved: int
    total: int
    """Plans to be made."""
    what: str
    """The plan being made."""
    plan: Progress | None
    """Where that one stands; None as it begins."""


@dataclass(frozen=True)
class _Attempt:
    """One call of the planner for a deadline."""

    deadline_s: float
    plan: Plan | None
    reason: str = ""


def pareto_front(
    instance: Instance,
    options: PlanOptions | None = None,
    points: int = 6,
    costs: Mapping[str, CostModel] | None = None,
    on_progress: Callable[[FrontProgress], None] | None = None,
    deadlines: Sequence[float] = (),
) -> tuple[ParetoPoint, ...]:
    """Return points of GPU time (or money) against deadline, tightest deadline first.

    The loosest deadline is the makespan of the plan without one, the tightest the least makespan found; the others lie
    between, equal ratios apart. A plan serves every deadline that it meets, so the objective never rises with the
    deadline; a bound holds for every tighter deadline, whose plans are among those it was proven for, so neither does
    the bound.

    Parameters
    ----------
    options
        Objective GPU time or cost, without a deadline; the time limit is shared by all plans.
    points
        Deadlines, at least 1; fewer come back where the cheapest plan is the fastest, or nearly so.
    costs
        Cost model by GPU type; by default fitted to the instance's cost table.
    deadlines
        Further deadlines, seconds.

    Raises
    ------
    InputError
        When the options contradict themselves.
    InfeasibleError
        When no plan can exist even without a deadline.
    TimeUpError
        When no plan was found even without a deadline.
    """
    options = options or PlanOptions()
    _check_arguments(options, points, deadlines)
    costs = costs if costs is not None else fit_instance_costs(instance)
    only_cheapest = points == 1 and not deadlines
    planner = _Planner(instance, options, costs, 1 if only_cheapest else points + 1 + len(deadlines), on_progress)
    cheapest = planner.plan(options, f"least {options.objective.value}")
    attempts = [_Attempt(math.inf, cheapest)]
    loosest, least_makespan_s = cheapest.makespan_s, 0.0
    spaced: list[float] = []
    if not only_cheapest:
        fastest = planner.plan(replace(options, objective=Objective.MAKESPAN), "least makespan")
        attempts.append(_Attempt(fastest.makespan_s, fastest))
        tightest, least_makespan_s = fastest.makespan_s, fastest.lower_bound or 0.0
        if tightest < loosest * (1 - _TOLERANCE):
            spaced = [tightest * (loosest / tightest) ** (k / (points - 1)) for k in range(points - 1)]
    wanted = sorted({*spaced, *deadlines}, reverse=True)
    tried = [d for d in wanted if d < loosest]  # the cheapest plan meets the others
    planner.total = planner.solved + len(tried)
    attempts += [planner.within(deadline, least_makespan_s) for deadline in tried]
    return _front(attempts, sorted({loosest, *wanted}), least_makespan_s, planner)


def _check_arguments(options: PlanOptions, points: int, deadlines: Sequence[float]) -> None:
    if points < 1:
        raise InputError("pareto", "points", f"{points} is not allowed", "give at least 1")
    if options.objective is Objective.MAKESPAN:
        raise InputError("pareto", "objective", '"makespan" is the other axis', 'give "gpu_time" or "cost"')
    if options.deadline_s is not None:
        problem = f"{options.deadline_s} is one deadline, and a front has many"
        raise InputError("pareto", "deadline_s", problem, "leave it out, or name it among the further deadlines")
    for deadline in deadlines:
        if not 0 < deadline < math.inf:
            raise InputError("pareto", "deadlines", f"{deadline} is not allowed", "give seconds above 0")


class _Planner:
    """Makes one plan after the other, each with its share of the time that is left."""

    def __init__(
        self,
        instance: Instance,
        options: PlanOptions,
        costs: Mapping[str, CostModel],
        total: int,
        on_progress: Callable[[FrontProgress], None] | None,
    ) -> None:
        self.instance, self.options, self.costs = instance, options, costs
        self.solved, self.total = 0, total
        self._clock = Clock(options.time_limit_s)
        self._on_progress = on_progress

    def plan(self, options: PlanOptions, what: str) -> Plan:
        """Return the plan for these options but for the time limit; raises what the planner raises."""
        share = self._clock.part(1 / max(1, self.total - self.solved)).left

        def report(state: Progress | None = None) -> None:
            if self._on_progress:
                self._on_progress(FrontProgress(self.solved, self.total, what, state))

        report()
        plan = make_plan(
            self.instance, replace(options, time_limit_s=share, compare_separate=False), self.costs, report
        )
        self.solved += 1
        return plan

    def within(self, deadline_s: float, least_makespan_s: float) -> _Attempt:
        """Try to plan within a deadline; one that the bound on the makespan excludes is not tried."""
        if deadline_s < least_makespan_s * (1 - _TOLERANCE):
            self.solved += 1
            return _Attempt(deadline_s, None, f"no plan can end before {least_makespan_s:.6g} s")
        try:
            # the least makespan found is a deadline itself, and the bound on it may be a rounding above it
            options = replace(self.options, deadline_s=deadline_s * (1 + _TOLERANCE))
            return _Attempt(deadline_s, self.plan(options, f"deadline {deadline_s:.4g} s"))
        except (InfeasibleError, TimeUpError) as error:
            self.solved += 1
            return _Attempt(deadline_s, None, str(error))

    def restated(self, plan: Plan, deadline_s: float, bounded: Plan | None) -> Plan:
        """Return a plan that meets the deadline as the plan for it, with another one's bound, checked anew."""
        replicas = plan.replicas
        if plan.objective is not self.options.objective:  # separate runs were compared by another measure
            replicas = tuple(r.model_copy(update={"savings": None}) for r in replicas)
        same = (plan.objective, plan.deadline_s) == (self.options.objective, deadline_s)
        changes = {
            "objective": self.options.objective,
            "deadline_s": deadline_s,
            "replicas": replicas,
            "incumbents": plan.incumbents if same else (),  # else they were another search's
        }
        stated = plan.model_copy(update=changes)
        bound = rounded_bound(_bound(bounded), stated.objective_value)
        gap = objective_gap(stated.objective_value, bound)
        changes = {
            "lower_bound": bound,
            "gap": gap,
            "certificate": None if bounded is None else bounded.certificate,
            "status": plan_status(gap, self.options.gap),
            "solver": {**plan.solver, "gap_tolerance": self.options.gap},
        }
        stated = stated.model_copy(update=changes)
        return verified(stated, self.instance, self.costs, "pareto")


def _front(
    attempts: Sequence[_Attempt], deadlines: Sequence[float], least_makespan_s: float, planner: _Planner
) -> tuple[ParetoPoint, ...]:
    """Serve every deadline by the cheapest plan found that meets it, with the best bound of any looser deadline."""
    objective = planner.options.objective
    plans = [a.plan for a in attempts if a.plan is not None]
    points: list[ParetoPoint] = []
    cheapest = math.inf  # of the tighter deadlines
    for deadline in deadlines:
        reason = next((a.reason for a in attempts if a.deadline_s == deadline and a.reason), "")
        # the plan of least makespan bounds another objective
        bounds = [
            a.plan
            for a in attempts
            if a.plan is not None and a.plan.objective is objective and a.deadline_s >= deadline
        ]
        bounded = max(bounds, key=lambda plan: plan.lower_bound or 0.0, default=None)
        serving = [p for p in plans if p.makespan_s <= deadline * (1 + _TOLERANCE)]
        if not serving:
            infeasible = deadline < least_makespan_s * (1 - _TOLERANCE)
            status = PointStatus.INFEASIBLE if infeasible else PointStatus.NOT_FOUND
            points.append(ParetoPoint(deadline, status, None, None if infeasible else _bound(bounded), reason))
            continue
        best = min(serving, key=lambda p: (_value(p, objective), p.makespan_s))
        plan = planner.restated(best, deadline, bounded)
        dominated = plan.objective_value >= cheapest * (1 - _TOLERANCE)
        cheapest = min(cheapest, plan.objective_value)
        points.append(ParetoPoint(deadline, PointStatus(plan.status.value), plan, plan.lower_bound, reason, dominated))
    return tuple(points)


def _bound(plan: Plan | None) -> float:
    return 0.0 if plan is None else plan.lower_bound or 0.0


def _value(plan: Plan, objective: Objective) -> float:
    return plan.gpu_time_s if objective is Objective.GPU_TIME else float(plan.cost or 0.0)
