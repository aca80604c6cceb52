"""Rules 6 and 7: the memory fits, and the figures in the file are those that the programs give."""

import math
from collections.abc import Iterator, Mapping

from cappuccino.checker.violation import Violation
from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import PRECISION, Objective, Plan, Status, objective_gap
from cappuccino.simulator import Simulation

RELATIVE_TOLERANCE = 1e-6
"""Within which times in the file must equal the simulated ones."""


def memory(
    plan: Plan, instance: Instance, costs: Mapping[str, CostModel], simulation: Simulation
) -> Iterator[Violation]:
    """Rule 6: at every moment the memory of every stage fits its GPU."""
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        mine = costs[replica.gpu].of_recomputation(replica.recompute)
        limit = mine.memory_limit(instance.pool(replica.gpu).memory_gib)
        for s, peak in enumerate(run.peak_memory_gib):
            if peak > limit * (1 + RELATIVE_TOLERANCE):
                message = f"needs {peak:.2f} GiB of {limit:.2f} usable on {replica.gpu}"
                yield Violation(6, f"replica {replica.id}, stage {s}: {message}")


def times(plan: Plan, simulation: Simulation) -> Iterator[Violation]:
    """Rule 7: the figures in the file are those that the programs give, and bound and gap do not contradict them."""
    figures: list[tuple[str, float | None, float | None]] = [
        ("gpu_time_s", plan.gpu_time_s, simulation.gpu_time_s),
        ("makespan_s", plan.makespan_s, simulation.makespan_s),
    ]
    if plan.objective is Objective.COST and plan.cost is None:
        yield Violation(7, "cost is null, and it is the objective")
        return
    if plan.cost is not None:
        figures.append(("cost", plan.cost, simulation.cost))
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        at = f"replica {replica.id}: "
        figures.append((at + "makespan_s", replica.makespan_s, run.timeline.makespan))
        pairs = zip(replica.peak_memory_gib, run.peak_memory_gib, strict=True)
        figures += [(f"{at}peak_memory_gib[{s}]", stated, found) for s, (stated, found) in enumerate(pairs)]
        if replica.lower_bound_s is not None and replica.lower_bound_s > run.timeline.makespan * (
            1 + RELATIVE_TOLERANCE
        ):
            yield Violation(7, f"{at}lower_bound_s {replica.lower_bound_s:g} is above the makespan")
    wrong = [(name, stated, found) for name, stated, found in figures if not _close(stated, found)]
    for name, stated, found in wrong:
        yield Violation(7, f"{name} is {_figure(stated)}, the programs give {_figure(found)}")
    if wrong:
        return
    objective, bound = plan.objective_value, plan.lower_bound
    if bound is not None and bound > objective * (1 + RELATIVE_TOLERANCE):
        yield Violation(7, f"lower_bound_s {bound:g} is above the objective {objective:g}")
    gap = objective_gap(objective, bound)
    if (gap is None) != (plan.gap is None) or (
        gap is not None and plan.gap is not None and abs(gap - plan.gap) > RELATIVE_TOLERANCE
    ):
        yield Violation(7, f"gap is {_figure(plan.gap)}, objective and bound give {_figure(gap)}")
    yield from _status(plan, gap)
    highest = max((incumbent.bound for incumbent in plan.incumbents), default=0.0)
    if bound is not None and highest > bound * (1 + RELATIVE_TOLERANCE):
        yield Violation(7, f"an incumbent's bound {highest:g} is above lower_bound_s {_figure(bound)}")
    if plan.deadline_s is not None and simulation.makespan_s > plan.deadline_s * (1 + RELATIVE_TOLERANCE):
        yield Violation(7, f"the makespan {simulation.makespan_s:g} s misses the deadline of {plan.deadline_s:g} s")


def _status(plan: Plan, gap: float | None) -> Iterator[Violation]:
    """Rule 7: the plan is not called better than its gap says."""
    if plan.status is Status.FEASIBLE:
        return
    if gap is None:
        yield Violation(7, f"status is {plan.status.value} without a bound")
        return
    tolerance, name = PRECISION, "the precision of the solvers"
    if plan.status is Status.WITHIN_GAP:
        stated, name = plan.solver.get("gap_tolerance", 0.0), "solver.gap_tolerance"
        if isinstance(stated, int | float) and 0 <= stated < 1:
            tolerance = stated + RELATIVE_TOLERANCE
    if not gap <= tolerance:
        yield Violation(7, f"status is {plan.status.value} with a gap of {gap:g}, above {name} ({tolerance:g})")


def savings(plan: Plan, instance: Instance, simulation: Simulation) -> Iterator[Violation]:
    """Rule 7: what is said of separate runs belongs to the replica, and its money to its GPU time."""
    prices = {p.gpu: p.price_per_hour for p in instance.gpu_pools}
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        if replica.savings is None:
            continue
        if len(replica.savings) != len(replica.adapters):
            stated = f"{len(replica.savings)} savings for {len(replica.adapters)} adapters"
            yield Violation(7, f"replica {replica.id}: {stated}")
            continue
        gpu_time = replica.num_stages * run.timeline.makespan
        for name, saving in zip(replica.adapters, replica.savings, strict=True):
            at = f'replica {replica.id}: savings of "{name}": '
            added = saving.added_gpu_time_s
            if saving.alone_gpu is not None and saving.alone_gpu not in prices:
                yield Violation(7, f'{at}there is no pool of "{saving.alone_gpu}"')
                continue
            if added is not None and added > gpu_time * (1 + RELATIVE_TOLERANCE):
                yield Violation(7, f"{at}added_gpu_time_s {added:g} is above the replica's {gpu_time:g}")
            if added is not None and len(replica.adapters) == 1 and not _close(added, gpu_time):
                yield Violation(7, f"{at}added_gpu_time_s is {added:g}, the replica without it nothing: {gpu_time:g}")
            for gpu, what, cost, used in (
                (saving.alone_gpu, "alone", saving.alone_cost, saving.alone_gpu_time_s),
                (replica.gpu, "added", saving.added_cost, added),
            ):
                price = None if gpu is None else prices[gpu]
                money = None if price is None or used is None else used * price / 3600
                if not _close(cost, money):
                    stated = f"{_figure(cost)}, {what}_gpu_time_s and the price on {gpu} give {_figure(money)}"
                    yield Violation(7, f"{at}{what}_cost is {stated}")


def _close(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    if not (math.isfinite(stated) and math.isfinite(found)):
        return False
    return abs(stated - found) <= RELATIVE_TOLERANCE * max(abs(stated), abs(found), 1e-9)


def _figure(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
