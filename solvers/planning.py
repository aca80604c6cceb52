"""From an instance to a checked plan."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import InfeasibleError, InputError, InvalidPlanError, NoPlanFoundError
from cappuccino.instance import Instance
from cappuccino.plan import AdapterSaving, FoundPlan, Objective, Plan, Recompute
from cappuccino.solvers.allocation.allocator import Allocator
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Context, Goal, Incumbent
from cappuccino.solvers.allocation.milp import TimeUpError
from cappuccino.solvers.assembly import assemble_plan
from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.certification import certificate_of
from cappuccino.solvers.export.models import PlanModels
from cappuccino.solvers.export.partition import PartitionModel
from cappuccino.solvers.improvement import improve
from cappuccino.solvers.layer_split import LayerSplit, with_layers
from cappuccino.solvers.savings import SharingEvaluator, with_savings
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.seeding import offer_baselines
from cappuccino.solvers.settings import DEFAULT, PlannerSettings
from cappuccino.solvers.verification import verified


@dataclass(frozen=True)
class PlanOptions:
    """What a user decides about a plan."""

    objective: Objective = Objective.GPU_TIME
    time_limit_s: float | None = 60.0
    """Wall-clock limit, seconds; None: iteration limits only, so that equal seeds give equal plans."""
    gap: float = 1e-3
    """Relative distance between objective and bound that is good enough."""
    deadline_s: float | None = None
    """Every replica is to end within this, seconds."""
    num_stages: int | None = None
    """Fixes the depth of every replica."""
    profiled_only: bool = False
    """Forbids stage counts that the cost table does not hold."""
    recompute: Recompute | None = None
    """Fixes the activation recomputation of every replica; None: the planner chooses among what the table has."""
    layers: LayerSplit = LayerSplit.AUTO
    """How many decoder layers each stage gets."""
    compare_separate: bool = True
    """Work out, adapter by adapter, what sharing saves against separate runs, and separate those that gain by it."""
    seed: int = 0
    iterations: int = 20
    """Without a time limit: CP-SAT windows per replica; the local search makes 2,000 moves for each."""
    settings: PlannerSettings = DEFAULT
    """How the search is made; for those who study it."""


@dataclass(frozen=True)
class Progress:
    """Where planning stands."""

    elapsed_s: float
    objective: float
    bound: float


@dataclass(frozen=True)
class MadePlan:
    """A plan, and the models behind it."""

    plan: Plan
    models: PlanModels


def make_plan(
    instance: Instance,
    options: PlanOptions | None = None,
    costs: Mapping[str, CostModel] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Plan an instance; as `plan_with_models`, for those who want the plan alone."""
    return plan_with_models(instance, options, costs, on_progress).plan


def plan_with_models(
    instance: Instance,
    options: PlanOptions | None = None,
    costs: Mapping[str, CostModel] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> MadePlan:
    """Plan an instance; the checker has confirmed what is returned.

    Parameters
    ----------
    costs
        Cost model by GPU type; by default fitted to the instance's cost table.

    Raises
    ------
    InputError
        When the input contradicts itself.
    InfeasibleError
        When no plan can exist; `NoPlanFoundError` when none was found, though bounds exclude none.
    TimeUpError, InterruptedSearchError
        When the time was up, or the user ended the search, before there was a plan.
    PlannerError
        When the checker refuses the result: an error of this program, never written to a file.
    """
    options = options or PlanOptions()
    _check_options(instance, options)
    costs = _allowed_costs(instance, costs if costs is not None else fit_instance_costs(instance), options)
    space = _space(instance, costs, options)
    _compile(space)
    clock = Clock(options.time_limit_s)
    found = _free_plan(space, options, clock, on_progress)
    bound, certificate, incumbents = 0.0, None, list[FoundPlan]()
    if found is None:
        found = _search(space, options, clock, on_progress)
        bound, incumbents = found.incumbent.bound, found.incumbent.found
        certificate = certificate_of(
            found.incumbent.proof,
            space,
            num_stages=options.num_stages,
            profiled_only=options.profiled_only,
            recompute=options.recompute,
        )
    plan = assemble_plan(
        instance,
        costs,
        found.incumbent.replicas,
        objective=options.objective,
        bound=bound,
        certificate=certificate,
        gap_tolerance=options.gap,
        deadline_s=options.deadline_s,
        seed=options.seed,
        wall_time_s=clock.elapsed,
        solver={"method": options.settings.scheduling.method.value},
        incumbents=incumbents,
    )
    plan = verified(with_savings(plan, found.savings), instance, costs, "planner")
    return MadePlan(plan, PlanModels.of(instance, found.partition, found.incumbent.replicas))


def _allowed_costs(instance: Instance, costs: Mapping[str, CostModel], options: PlanOptions) -> Mapping[str, CostModel]:
    """Return the costs with the recomputation asked for alone, and the layers by stage that are asked for."""
    costs = _with_recomputation(instance, costs, options.recompute)
    try:
        return with_layers(instance, costs, options.layers)
    except InvalidPlanError as error:
        remedy = "profile again, with the columns that `profile` writes, or leave the layers to the planner"
        raise InputError(instance.cost_table, "layers_per_stage", str(error), remedy) from error


def _with_recomputation(
    instance: Instance, costs: Mapping[str, CostModel], recompute: Recompute | None
) -> Mapping[str, CostModel]:
    if recompute is None:
        return costs
    for gpu, model in costs.items():
        known = [choice.recompute for choice in model.choices]
        if recompute not in known:
            stated = " and ".join("unknown" if mode is None else mode.value for mode in known)
            problem = f'the rows on "{gpu}" are of recomputation {stated}, not {recompute.value}'
            raise InputError(instance.cost_table, "recompute", problem, "profile it too, or leave the choice open")
    return {gpu: replace(model.of_recomputation(recompute), alternatives=()) for gpu, model in costs.items()}


@dataclass(frozen=True)
class _PlanFound:
    """What a search has come to."""

    incumbent: Incumbent
    savings: Mapping[str, AdapterSaving]
    partition: PartitionModel


def _space(instance: Instance, costs: Mapping[str, CostModel], options: PlanOptions) -> ReplicaSpace:
    allocation, limit = options.settings.allocation, options.time_limit_s
    packed = None if limit is None else int(limit * allocation.packed_steps_per_s)
    return ReplicaSpace.of(
        instance, costs, options.num_stages, options.profiled_only, allocation.most_sets, packed_steps=packed
    )


def _free_plan(
    space: ReplicaSpace, options: PlanOptions, clock: Clock, on_progress: Callable[[Progress], None] | None
) -> _PlanFound | None:
    """Return a plan on GPUs that cost nothing where money is the objective; None where there is none.

    It costs nothing, so it is optimal, and what remains to be chosen is the one of least GPU time.
    """
    instance = space.instance
    free = tuple(p for p in instance.gpu_pools if p.price_per_hour == 0)
    if options.objective is not Objective.COST or not free:
        return None
    no_other = all(pool.price_per_hour == 0 for pool, _ in space.bounds)

    def report(state: Progress) -> None:
        if on_progress:
            on_progress(Progress(state.elapsed_s, 0.0, 0.0))

    try:
        free_space = _space(replace(instance, gpu_pools=free), space.costs, options)
        return _search(free_space, replace(options, objective=Objective.GPU_TIME), clock, report)
    except (InfeasibleError, TimeUpError):
        if no_other:
            raise
        return None


def _search(
    space: ReplicaSpace, options: PlanOptions, clock: Clock, on_progress: Callable[[Progress], None] | None
) -> _PlanFound:
    """Choose replicas, improve them, and find out what sharing saves."""

    def report(incumbent: Incumbent) -> None:
        if on_progress:
            on_progress(Progress(clock.elapsed, incumbent.objective, incumbent.bound))

    goal, settings = Goal(options.objective, options.deadline_s, options.gap), options.settings
    incumbent = Incumbent(space, goal, on_better=report)
    iterations = None if options.time_limit_s is not None else options.iterations
    context = Context(space, incumbent, clock, options.seed, iterations, settings)
    share = settings.allocation_share_by_makespan if goal.binding else settings.allocation_share
    first = clock.part(share)
    last = clock if options.deadline_s is None else clock.part(settings.first_plan_share)
    allocator = Allocator(context.until(first), last)
    try:
        allocator.run()
    except NoPlanFoundError:
        offer_baselines(context)
        if not incumbent and (options.deadline_s is None or clock.over or not _meet_deadline(context)):
            raise
    else:
        offer_baselines(context)
    incumbent.report()
    search = context.part(settings.improvement_share) if options.compare_separate else context
    if goal.binding:
        improve(search.part(settings.first_improvement_share))
        allocator.resume(search.clock.part(settings.second_allocation_share))
    improve(search)
    savings = _savings(context) if options.compare_separate else {}
    return _PlanFound(incumbent, savings, PartitionModel.of(space, goal, allocator.offered(), incumbent.replicas))


def _meet_deadline(context: Context) -> bool:
    """Offer the shortest plan that is found, where no other was that meets the deadline; return whether it does."""
    deadline_s = context.goal.deadline_s
    assert deadline_s is not None
    shortest = Incumbent(context.space, Goal(Objective.MAKESPAN, None, context.goal.gap, target=deadline_s))
    search = replace(context, incumbent=shortest)
    half = search.part(0.5)
    Allocator(half, half.clock).run()
    before = math.inf
    while deadline_s < shortest.objective < before and not context.clock.over:  # one round may be for one replica
        before = shortest.objective
        improve(search.part(context.settings.first_plan_share))
    return context.incumbent.offer(shortest.replicas)


def _compile(space: ReplicaSpace) -> None:
    """Run the compiled searches on one step of one adapter: where they have to be compiled first, that is no search."""
    instance = space.instance
    pool, bounds = next((pool, bounds) for pool, bounds in space.bounds if bounds.fits.any())
    fitting = space.kinds.representatives[int(np.argmax(bounds.fits))]
    job = instance.adapters[fitting].model_copy(update={"num_steps": 1})
    tiny = replace(instance, adapters=(job,))
    problem = ReplicaProblem(tiny, bounds.costs, (0,), bounds.num_stages, pool.memory_gib)
    schedule_replica(problem, Budget(None, constructions=1, moves=1, windows=0), seed=0)


def _savings(context: Context) -> dict[str, AdapterSaving]:
    """Separate adapters that had better not share, and return what sharing saves the others."""
    evaluator, incumbent = SharingEvaluator(context), context.incumbent
    half = context.clock.part(context.settings.separation_share)
    incumbent.offer(evaluator.separations(incumbent.replicas, half), "separation")
    return evaluator.savings(incumbent.replicas, context.clock)


def _check_options(instance: Instance, options: PlanOptions) -> None:
    limits = (
        ("time_limit_s", options.time_limit_s, 0.0, math.inf, "seconds from 0 on, or None"),
        ("gap", options.gap, 0.0, 1.0, "a fraction of at least 0 and below 1"),
        ("num_stages", options.num_stages, 1, math.inf, "1 stage or more, or None"),
        ("seed", options.seed, 0, 2**31, "an integer from 0 to 2147483647"),
        ("iterations", options.iterations, 0, math.inf, "0 or more"),
    )
    for name, value, least, above, allowed in limits:
        if value is not None and not least <= value < above:
            raise InputError("options", name, f"{value} is not allowed", f"give {allowed}")
    if options.deadline_s is not None and not 0 < options.deadline_s < math.inf:
        raise InputError(
            "options", "deadline_s", f"{options.deadline_s} is not allowed", "give more than 0 seconds, or None"
        )
    if options.objective is Objective.COST:
        for i, pool in enumerate(instance.gpu_pools):
            if pool.price_per_hour is None:
                field = f"gpu_pools[{i}].price_per_hour"
                raise InputError(instance.source, field, "is missing", "the objective cost needs every pool's price")
