"""What to know about a plan before relying on it: costs that nobody measured, modules that nobody has."""

from collections.abc import Iterator, Mapping

from cappuccino.costs import CostModel
from cappuccino.costs.adapters import MODULES_THERE_ARE, unknown_modules
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.workload import Workload


def plan_warnings(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Iterator[str]:
    """Yield a sentence for every target module that no backbone has, and every cost outside the profiled range.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    """
    for i, adapter in enumerate(instance.adapters):
        for name in unknown_modules(adapter.target_modules):
            yield (
                f'{instance.source}: adapters[{i}].target_modules: "{name}" is no linear layer of a supported '
                f"backbone: its costs are guessed, and run refuses it; {MODULES_THERE_ARE}"
            )
    for gpu in sorted({r.gpu for r in plan.replicas}):
        if costs[gpu].analytic:
            yield f"costs on {gpu} are analytic, computed from specifications: profile before you rely on them"
    for replica in plan.replicas:
        model = costs[replica.gpu]
        if model.extrapolated(replica.num_stages):
            profiled = ", ".join(map(str, model.profiled))
            yield (
                f"replica {replica.id}: {replica.num_stages} stages were not profiled on {replica.gpu} (only "
                f"{profiled}); times are extrapolated and memory carries a margin (--profiled-only forbids this)"
            )
        tokens = Workload.of(replica, instance, model).tokens
        low, high = model.profiled_tokens
        outside = tokens[(tokens < low) | (tokens > high)]
        if len(outside):
            yield (
                f"replica {replica.id}: {len(outside)} of {len(tokens)} micro-batches have {outside.min()} to "
                f"{outside.max()} tokens, outside the profiled {low} to {high}"
            )
