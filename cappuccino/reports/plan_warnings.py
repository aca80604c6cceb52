"""What to know before relying on a plan: costs that nobody measured, modules that nobody has."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cappuccino.backbone import MODULES_THERE_ARE, unknown_modules
from cappuccino.costs import CostModel
from cappuccino.costs.memory import MOST_TOKENS
from cappuccino.errors import counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica
from cappuccino.workload import Workload

_NAMED = 3
_MUCH = 2.0
"""Times the largest profiled micro-batch, from which on it is worth a word that memory holds more."""
"""Adapters that a warning names."""


def instance_warnings(instance: Instance) -> Iterator[str]:
    """Yield a sentence for every target module that no supported backbone has."""
    adapters: dict[str, list[str]] = {}
    for adapter in instance.adapters:
        for module in dict.fromkeys(unknown_modules(adapter.target_modules)):
            adapters.setdefault(module, []).append(adapter.name)
    for module, names in adapters.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield (
            f'{instance.source}: target_modules of {", ".join(names[:_NAMED])}{more}: "{module}" is no linear layer '
            f"of a supported backbone: its costs are guessed, and run refuses it; {MODULES_THERE_ARE}"
        )


def plan_warnings(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Iterator[str]:
    """Yield a sentence for every way in which a plan leaves the profiled range of its cost table.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    """
    for gpu in sorted({r.gpu for r in plan.replicas}):
        if costs[gpu].analytic:
            yield f"costs on {gpu} are analytic, computed from specifications: profile before you rely on them"
    for replica in plan.replicas:
        model = costs[replica.gpu].of_recomputation(replica.recompute)
        if model.extrapolated(replica.num_stages):
            found = counted(replica.num_stages, "stage") + (" was" if replica.num_stages == 1 else " were")
            profiled = ", ".join(map(str, model.profiled))
            yield (
                f"replica {replica.id}: {found} not profiled on {replica.gpu} (only "
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
    yield from _kept_small(plan, instance, costs)


def _kept_small(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Iterator[str]:
    """Yield a sentence for every GPU type whose micro-batches could be much larger, had larger ones been profiled."""
    room: dict[tuple[str, int, int], int] = {}
    for r in plan.replicas:
        model = costs[r.gpu].of_recomputation(r.recompute)
        limits = (r.gpu, model.largest_tokens, model.profiled_tokens[1])
        room[limits] = max(room.get(limits, 0), _held_by_memory(model, r, instance))
    for (gpu, most, profiled), held in sorted(room.items()):
        if held > _MUCH * most:
            reason = "that were profiled" if most == profiled else "of the longest sample"
            yield (
                f"micro-batches on {gpu} are kept to the {most} tokens {reason}; memory holds about {held}: larger "
                "ones may be faster (profile with larger --tokens)"
            )


def _held_by_memory(model: CostModel, replica: Replica, instance: Instance) -> int:
    """Return the largest micro-batch that memory holds beside a replica's adapters, tokens."""
    adapters = [instance.adapters[instance.adapter_index(name)] for name in replica.adapters]
    beside = model.adapter_costs(replica.num_stages, adapters).beside(model.memory_model(replica.num_stages))
    return replace(beside, most=MOST_TOKENS).max_tokens(model.memory_limit(instance.pool(replica.gpu).memory_gib))
