"""What to know before a run: why it will not take what its plan predicts."""

from collections.abc import Iterator, Mapping

from cappuccino.costs import CostModel
from cappuccino.costs.table import ENGINE
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Recompute, Replica


def run_warnings(
    plan: Plan,
    instance: Instance,
    costs: Mapping[str, CostModel],
    *,
    device: str,
    dtype: str,
    recompute: Recompute | None = None,
    num_gpus: int | None = None,
) -> Iterator[str]:
    """Yield a sentence for every reason why times and memory of a plan are no prediction for a run.

    Parameters
    ----------
    plan
        As it was planned.
    instance
        That of the plan.
    costs
        Cost model by GPU type.
    device, dtype
        Of the run.
    recompute
        What the run does instead of what was planned, if anything.
    num_gpus
        Over which replicas run side by side; None where they run in turn.
    """
    reasons = [x for r in plan.replicas for x in _other_costs(r, costs[r.gpu], device, dtype, recompute)]
    for reason in dict.fromkeys(reasons):
        yield f"{instance.cost_table}: {reason}: its times and memory are no prediction for this run"
    count, needed = len(plan.replicas), sum(replica.num_stages for replica in plan.replicas)
    if count > 1 and num_gpus is None:
        in_turn = sum(replica.makespan_s for replica in plan.replicas)
        yield (
            f"the plan counts on its {count} replicas side by side, on {device} they run one after another: "
            f"{in_turn:.4g} s by its own times, not {plan.makespan_s:.4g} s"
        )
    elif num_gpus is not None and needed > num_gpus:
        yield (
            f"the plan counts on {needed} GPUs for its {count} replicas, this machine has {num_gpus}: "
            f"some wait for others, and the run takes longer than {plan.makespan_s:.4g} s"
        )


def _other_costs(replica: Replica, costs: CostModel, device: str, dtype: str, recompute: Recompute | None) -> list[str]:
    """Return why the costs say nothing of this run: they are of another device, type or software, or of none."""
    gpu, model = replica.gpu, costs.of_recomputation(replica.recompute)
    if model.analytic:
        return [f'"{gpu}" was computed from specifications']
    found = []
    if model.engine is None:
        found.append(f'"{gpu}" does not say with which engine it was measured')
    elif model.engine != ENGINE:
        found.append(f'"{gpu}" was measured with the engine {model.engine}')
    does = (recompute or replica.recompute or Recompute.NONE).value
    for what, measured, used in (
        ("device", model.device, device),
        ("dtype", model.dtype, dtype),
        ("recompute", None if model.recompute is None else model.recompute.value, does),
    ):
        if measured is not None and measured != used:
            found.append(f'"{gpu}" was measured with {what} {measured}, the run has {used}')
    return found
