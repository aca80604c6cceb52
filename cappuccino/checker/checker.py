"""Verifies a plan against the seven rules of validity, one by one, knowing nothing of how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass

from cappuccino.checker import figures, placement, structure
from cappuccino.checker.certificate import BoundReport, bound_report
from cappuccino.checker.violation import Violation
from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.simulator import DeadlockError, Simulation, simulate

_NOT_RUN = BoundReport(False, "the plan is too broken to be run")


@dataclass(frozen=True)
class CheckReport:
    """The checker's word on a plan."""

    violations: tuple[Violation, ...]
    simulation: Simulation | None
    """None when the plan is too broken to be run."""
    bound: BoundReport = _NOT_RUN
    """Whether the plan's bound is proven: a valid plan may state one that is not."""

    @property
    def valid(self) -> bool:
        """Whether no rule is broken."""
        return not self.violations

    def raise_if_invalid(self, source: object = "plan") -> None:
        """Raise InvalidPlanError naming the first broken rule when there is one."""
        if self.violations:
            more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
            raise InvalidPlanError(f"{source}: invalid plan: {self.violations[0]}{more}")


def check(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> CheckReport:
    """Check a plan of an instance.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    """
    found = list(placement.placement(plan, instance, costs))
    if found:  # the other rules need replicas that exist
        return CheckReport(tuple(found), None)
    for replica in plan.replicas:
        of_replica = [
            *structure.samples(replica, instance),
            *structure.evaluations(replica, instance),
            *structure.operations(replica),
        ]
        if not of_replica:
            of_replica = list(structure.steps(replica, instance)) + list(structure.fifo_order(replica))
        found += of_replica
    if any(v.rule in (2, 3) for v in found):
        return CheckReport(tuple(found), None)
    try:
        simulation = simulate(plan, instance, costs)
    except DeadlockError as error:
        return CheckReport((*found, Violation(5, str(error))), None)
    found += figures.memory(plan, instance, costs, simulation)
    found += figures.times(plan, simulation)
    found += figures.savings(plan, instance, simulation)
    bound, claims = bound_report(plan, instance, costs)
    return CheckReport((*found, *claims), simulation, bound)
