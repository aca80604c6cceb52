"""The last step of planning: whatever a search has found, the independent checker confirms it or it is refused."""

from collections.abc import Mapping

from cappuccino.checker import RELATIVE_TOLERANCE, check
from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Plan


class PlannerError(InvalidPlanError):
    """A plan of this program is refused by its own checker: an error of the program, not of the input."""


def verified(plan: Plan, instance: Instance, costs: Mapping[str, CostModel], source: str) -> Plan:
    """Return the plan once the checker has confirmed it.

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
