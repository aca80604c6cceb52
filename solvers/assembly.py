"""From scheduled replicas to a plan."""

import importlib.metadata
from collections.abc import Mapping, Sequence

from cappuccino import __version__
from cappuccino.certificate import Certificate
from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import FoundPlan, InstanceReference, Objective, Plan, objective_gap, plan_status, rounded_bound
from cappuccino.solvers.scheduling.schedule import PlacedReplica


def assemble_plan(
    instance: Instance,
    costs: Mapping[str, CostModel],
    placed: Sequence[PlacedReplica],
    *,
    objective: Objective = Objective.GPU_TIME,
    bound: float | None = None,
    certificate: Certificate | None = None,
    gap_tolerance: float = 0.0,
    deadline_s: float | None = None,
    seed: int = 0,
    wall_time_s: float = 0.0,
    solver: Mapping[str, float | int | str] | None = None,
    incumbents: Sequence[FoundPlan] = (),
) -> Plan:
    """Return the plan of scheduled replicas; the checker has yet to confirm it.

    Parameters
    ----------
    bound
        Proven bound on the objective, None where there is none.
    certificate
        What proves it.
    gap_tolerance
        The gap asked for.
    solver
        Further entries of the plan's solver record.
    incumbents
        How the search came to it.
    """
    replicas = []
    placed = sorted(placed, key=lambda p: p.schedule.problem.adapters)
    for number, (schedule, gpu) in enumerate((p.schedule, p.gpu) for p in placed):
        replicas.append(schedule.replica(number, gpu))
    prices = [instance.pool(p.gpu).price_per_hour for p in placed]
    money = sum(r.schedule.gpu_time_s * (p or 0.0) / 3600 for r, p in zip(placed, prices, strict=True))
    cost = money if all(p is not None for p in prices) else None
    gpu_time = sum(p.schedule.gpu_time_s for p in placed)
    makespan = max(p.schedule.makespan_s for p in placed)
    value = {Objective.GPU_TIME: gpu_time, Objective.MAKESPAN: makespan, Objective.COST: money}[objective]
    if bound is not None:
        bound = rounded_bound(bound, value)
    gap = objective_gap(value, bound)
    return Plan(
        instance=InstanceReference(name=instance.name, sha256=instance.digest),
        objective=objective,
        status=plan_status(gap, gap_tolerance),
        gpu_time_s=gpu_time,
        makespan_s=makespan,
        cost=cost,
        deadline_s=deadline_s,
        lower_bound=bound,
        gap=gap,
        certificate=certificate,
        solver={
            "wall_time_s": round(wall_time_s, 3),
            "seed": seed,
            "gap_tolerance": gap_tolerance,
            "cappuccino": __version__,
            "ortools": importlib.metadata.version("ortools"),
            "highspy": importlib.metadata.version("highspy"),
            **(solver or {}),
        },
        incumbents=tuple(incumbents),
        replicas=tuple(replicas),
    )
