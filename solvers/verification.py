"""The last step of planning: whatever a search has found, the independent checker confirms it or it is refused."""

from collections.abc import Mapping

from cappuccino.checker import RELATIVE_TOLERANCE, BoundReport, bound_report, check
from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan, objective_gap, plan_status

_HAIR = 1e-3
"""How far a bound may come down, relatively, to what the checker proves: its grid is not that of the searches."""
_LOWER = (1e-6, 1e-5, 1e-4, _HAIR)
"""How far a limit on the makespan comes down, relatively, one after the other, until the checker finds it refuted."""


class PlannerError(InvalidPlanError):
    """A plan of this program is refused by its own checker: an error of the program, not of the input."""


def verified(plan: Plan, instance: Instance, costs: Mapping[str, CostModel], source: str) -> Plan:
    """Return the plan once the checker has confirmed it; a bound a hair above what it proves comes down to that.

    The times in the plan are those of the searches, the checker's are those of its own simulator: here, and only here,
    the two are compared.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    source
        Who made the plan, for the message.

    Raises
    ------
    PlannerError
        When the checker refuses the plan, or finds other times.
    """
    report = check(plan, instance, costs)
    lowered = _as_proven(plan, report.bound, instance, costs)
    if lowered is not plan:
        plan, report = lowered, check(lowered, instance, costs)
    if report.valid:
        return plan
    what = str(report.violations[0])
    if report.simulation is not None:
        for replica, run in zip(plan.replicas, report.simulation.replicas, strict=True):
            found = run.timeline.makespan
            if abs(replica.makespan_s - found) > RELATIVE_TOLERANCE * max(replica.makespan_s, found):
                times = f"{replica.makespan_s:.9g} s by the search, after {found:.9g} s by the simulator"
                what = f"replica {replica.id} ends after {times}"
                break
    raise PlannerError(
        f"{instance.source}: {source}: an error of this program, not of the input: {what}; no plan was written: please "
        "report it with the instance and its cost table"
    )


def _as_proven(plan: Plan, word: BoundReport, instance: Instance, costs: Mapping[str, CostModel]) -> Plan:
    """Return the plan with a certificate of what it proves, and the bound lowered to that where it is a hair above."""
    if plan.certificate is None or word.by_prices is None or plan.lower_bound is None:
        return plan
    makespan = plan.objective is Objective.MAKESPAN
    if makespan and word.by_prices == 0 < plan.certificate.bound:  # a limit on the makespan is refuted or is not
        plan, word = _with_a_lower_limit(plan, word, instance, costs)
    assert plan.certificate is not None
    assert word.by_prices is not None
    certificate, bound = plan.certificate, plan.lower_bound
    if certificate.bound > word.by_prices:
        certificate = certificate.model_copy(update={"bound": word.by_prices})
    if not word.certified and bound is not None and word.by_prices < bound <= word.by_prices * (1 + _HAIR):
        bound = word.by_prices
    if (certificate, bound) == (plan.certificate, plan.lower_bound):
        return plan
    gap = objective_gap(plan.objective_value, bound)
    tolerance = plan.solver.get("gap_tolerance", 0.0)
    status = plan_status(gap, tolerance if isinstance(tolerance, int | float) else 0.0)
    incumbents = tuple(f.model_copy(update={"bound": min(f.bound, bound or 0.0)}) for f in plan.incumbents)
    changes = {"certificate": certificate, "lower_bound": bound, "gap": gap, "status": status, "incumbents": incumbents}
    return plan.model_copy(update=changes)


def _with_a_lower_limit(
    plan: Plan, word: BoundReport, instance: Instance, costs: Mapping[str, CostModel]
) -> tuple[Plan, BoundReport]:
    """Return the plan with the first lower limit that its prices refute, and the checker's word on that."""
    assert plan.certificate is not None
    limit = plan.certificate.limit_s or 0.0
    for less in _LOWER:
        changes = {"limit_s": limit * (1 - less), "bound": limit * (1 - less)}
        lowered = plan.model_copy(update={"certificate": plan.certificate.model_copy(update=changes)})
        found, _ = bound_report(lowered, instance, costs)
        if found.by_prices:
            return lowered, found
    return plan, word
