"""Runs and re-checks entries of the instance library; imported when `bench` runs, and the solvers when it plans."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cappuccino import __version__
from cappuccino.checker import check
from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import InfeasibleError, InputError, InvalidPlanError, counted
from cappuccino.instance import Instance
from cappuccino.library.index import Library, cost_probes, least_gpus
from cappuccino.library.merge_rules import require_no_contradiction
from cappuccino.library.records import TOLERANCE, Entry, EntryResult, Reference
from cappuccino.plan import Objective, Plan
from cappuccino.simulator import Simulation

BASELINE = "reference"


@dataclass(frozen=True)
class EntryRun:
    """One run of an entry, as its process hands it back."""

    result: EntryResult
    least_gpus: int
    """The fewest GPUs that hold the backbone with one of the adapters."""
    first_plan_s: float | None
    """When planning had its first plan, seconds after it began; None where it reported none."""


@dataclass(frozen=True)
class Verification:
    """What a plan file says about the best-known objective of an entry."""

    name: str
    stated: float | None
    """Best-known objective; None where there is none."""
    found: float | None
    """Objective of the plan in the file; None where there is no file."""

    @property
    def verdict(self) -> str:
        """`confirmed`, `better` than stated, `no plan` in the folder, or `nothing stated` in the index."""
        if self.found is None:
            return "no plan"
        if self.stated is None:
            return "nothing stated"
        return "better" if self.found < self.stated * (1 - TOLERANCE) else "confirmed"


def plan_path(folder: Path, name: str) -> Path:
    """Return where the plan of an entry stands in a folder of plans."""
    return folder / f"{name}.plan.json"


def run_entry(folder: Path, name: str, time_limit_s: float, seed: int, plans: Path | None) -> EntryRun:
    """Plan an entry and the baseline beside it; the checker has confirmed both.

    Parameters
    ----------
    folder
        Of the library.
    plans
        Folder that gets the plan, unless it holds a valid plan of the entry that is no worse.

    Raises
    ------
    CappuccinoError
        When the entry is malformed or infeasible, or the checker refuses a plan.
    """
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    library = Library.load(folder)
    entry, instance = library.entry(name), library.instance(name)
    costs = fit_instance_costs(instance)
    path = None if plans is None else plan_path(plans, name)
    before = Plan.load(path) if path is not None and path.exists() else None
    first: list[float] = []

    def on_progress(state: Progress) -> None:
        if not first:
            first.append(state.elapsed_s)

    options = PlanOptions(
        objective=entry.options.objective,
        time_limit_s=time_limit_s,
        deadline_s=entry.options.deadline_s,
        num_stages=entry.options.num_stages,
        seed=seed,
    )
    start = time.perf_counter()
    plan = make_plan(instance, options, costs, on_progress)
    wall_time_s = time.perf_counter() - start
    value = confirmed_value(plan, entry, instance, costs, f'entry "{name}"')
    if path is not None:
        kept = None if before is None else examine(before, entry, instance, costs)
        if not (isinstance(kept, float) and kept <= value):
            plan.save(path)
    result = EntryResult(
        value=value,
        bound=plan.lower_bound,
        costs=cost_probes(instance, costs),
        reference=_reference(entry, instance, costs),
        wall_time_s=wall_time_s,
        seed=seed,
        cappuccino=__version__,
    )
    return EntryRun(result, least_gpus(instance, costs), first[0] if first else None)


def verify_entry(folder: Path, name: str, plans: Path) -> Verification:
    """Check the best-known objective of an entry against the plan in a folder, without planning.

    Raises
    ------
    InvalidPlanError
        When the checker refuses the plan, or the plan is worse than the objective stated.
    ContradictionError
        When the best-known bound stands above the plan's objective.
    InputError
        When a file is malformed, or the figures were found with other costs.
    """
    library = Library.load(folder)
    entry, path = library.entry(name), plan_path(plans, name)
    stated = None if entry.best_known is None else entry.best_known.objective.value
    if not path.exists():
        return Verification(name, stated, None)
    instance = library.instance(name)
    costs = fit_instance_costs(instance)
    if entry.stale(cost_probes(instance, costs)):
        field = f"entries[{library.position(name)}].costs"
        problem = "are not what the cost table gives now"
        raise InputError(library.path, field, problem, f"find new figures: cappuccino bench {name} --update")
    found = confirmed_value(Plan.load(path), entry, instance, costs, path)
    require_no_contradiction(entry, found, None)
    if stated is not None and found > stated * (1 + TOLERANCE):
        message = (
            f'{path}: the plan reaches {found:.8g}, which does not confirm the best-known {stated:.8g} of "{name}"'
        )
        raise InvalidPlanError(f"{message}; give the plan that reached it, or correct the index")
    return Verification(name, stated, found)


def confirmed_value(
    plan: Plan, entry: Entry, instance: Instance, costs: Mapping[str, CostModel], source: object
) -> float:
    """Return the objective of a plan of an entry as the checker's simulation finds it.

    Raises
    ------
    InvalidPlanError
        When `examine` finds a problem.
    """
    found = examine(plan, entry, instance, costs)
    if isinstance(found, str):
        raise InvalidPlanError(f"{source}: not confirmed: {found}")
    return found


def examine(plan: Plan, entry: Entry, instance: Instance, costs: Mapping[str, CostModel]) -> float | str:
    """Return the objective of a plan as the checker's simulation finds it, or why it is no valid plan of the entry."""
    report = check(plan, instance, costs)
    if not report.valid or report.simulation is None:
        return f"invalid plan: {report.violations[0]}"
    wanted = entry.options
    depths = {r.num_stages for r in plan.replicas}
    differences = (
        ("objective", plan.objective.value, wanted.objective.value, plan.objective is wanted.objective),
        ("deadline_s", plan.deadline_s, wanted.deadline_s, plan.deadline_s == wanted.deadline_s),
        ("num_stages", sorted(depths), wanted.num_stages, wanted.num_stages is None or depths == {wanted.num_stages}),
    )
    for field, found, asked, same in differences:
        if not same:
            return f"{field} of the plan is {found}, of the entry {asked}"
    value = _figure(wanted.objective, report.simulation)
    return "it uses a GPU without a price, so it has no cost" if value is None else value


def _reference(entry: Entry, instance: Instance, costs: Mapping[str, CostModel]) -> Reference:
    from cappuccino.solvers.baselines import baseline_plan  # noqa: PLC0415

    options = entry.options
    if options.num_stages is not None:
        reason = f"the baseline chooses its own depth, the entry fixes {counted(options.num_stages, 'stage')}"
        return Reference(value=None, reason=reason)
    try:
        plan = baseline_plan(BASELINE, instance, costs)
    except InfeasibleError as error:
        return Reference(value=None, reason=f"infeasible: {error}")
    report = check(plan, instance, costs)
    report.raise_if_invalid(f'entry "{entry.name}", baseline {BASELINE}')
    assert report.simulation is not None  # of every valid plan
    makespan = report.simulation.makespan_s
    if options.deadline_s is not None and makespan > options.deadline_s:
        reason = f"its makespan of {makespan:.4g} s misses the deadline of {options.deadline_s:g} s"
        return Reference(value=None, reason=reason)
    value = _figure(options.objective, report.simulation)
    return Reference(value=value, reason="it uses a GPU without a price" if value is None else None)


def _figure(objective: Objective, simulation: Simulation) -> float | None:
    return {
        Objective.GPU_TIME: simulation.gpu_time_s,
        Objective.MAKESPAN: simulation.makespan_s,
        Objective.COST: simulation.cost,
    }[objective]
