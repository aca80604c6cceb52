"""Plans checked and simulated, in one call each."""

from cappuccino.checker import CheckReport
from cappuccino.checker import check as check_alone
from cappuccino.costs import fit_instance_costs
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.remaining import planned_alone
from cappuccino.simulator import Simulation


def check(plan: Plan, instance: Instance) -> CheckReport:
    """Verify a plan against the seven rules of validity (docs/formats.md), by code that shares none with the searches.

    Parameters
    ----------
    plan
        From the planner, a file, or anywhere else.
    instance
        What the plan was made for.

    Returns
    -------
    CheckReport
        `valid`, the `violations` with rule and message, the `simulation`, None where the plan cannot be run, and the
        word on its `bound`: `certified` or not, and the `reason`.

    Raises
    ------
    InputError
        When the instance's cost table is wrong, or the plan goes on from steps that the instance does not have. An
        invalid plan is no error here: `raise_if_invalid()` makes it one.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import cappuccino
    >>> instance = cappuccino.Instance.load(files("cappuccino.instances") / "tiny1-llama7b.json")
    >>> plan = cappuccino.plan(instance, time_limit=None)
    >>> cappuccino.check(plan, instance).valid
    True
    >>> str(cappuccino.check(plan, instance).bound)
    'certified: by its prices'
    >>> quicker = plan.model_copy(update={"gpu_time_s": 0.5 * plan.gpu_time_s})
    >>> [violation.rule for violation in cappuccino.check(quicker, instance).violations]
    [7]
    """
    stated, left = planned_alone(plan, instance)
    return check_alone(stated, left, fit_instance_costs(left))


def simulate(plan: Plan, instance: Instance) -> Simulation:
    """Run a plan on the cost model of its instance.

    Parameters
    ----------
    plan
        A valid plan.
    instance
        What the plan was made for.

    Returns
    -------
    Simulation
        `gpu_time_s` (GPU-seconds), `makespan_s`, `cost` (money, or None) and the `replicas`: each a `timeline` of all
        operations by stage, seconds, with its `bubble`, the idle part of it, and `peak_memory_gib` by stage. Steps and
        samples count from those that the plan takes as done.

    Raises
    ------
    InputError
        When the instance's cost table is wrong.
    InvalidPlanError
        When the plan breaks a rule of validity. `check` has the simulation of invalid plans that can be run.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import cappuccino
    >>> instance = cappuccino.Instance.load(files("cappuccino.instances") / "tiny1-llama7b.json")
    >>> plan = cappuccino.plan(instance, time_limit=None)
    >>> found = cappuccino.simulate(plan, instance)
    >>> abs(found.makespan_s / plan.makespan_s - 1) < 1e-6
    True
    >>> 0 <= found.replicas[0].timeline.bubble < 1
    True
    """
    report = check(plan, instance)
    report.raise_if_invalid()
    if report.simulation is None:
        raise InvalidPlanError("plan: cannot be simulated")
    return report.simulation
