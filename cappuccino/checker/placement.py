"""Rule 1: which replicas there are, on which GPUs."""

from collections import Counter
from collections.abc import Iterator, Mapping

from cappuccino.checker.violation import Violation
from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError, counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica


def placement(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Iterator[Violation]:
    """Rule 1: every adapter is in exactly one replica, and no pool is overdrawn."""
    if plan.instance.sha256 != instance.digest:
        yield Violation(1, f'the plan was made for another instance ("{plan.instance.name}") or another state of it')
        return
    known = {a.name for a in instance.adapters}
    placed = Counter(name for r in plan.replicas for name in r.adapters)
    for name in placed:
        if name not in known:
            yield Violation(1, f'adapter "{name}" is not in the instance')
    for name in sorted(known):
        if placed[name] != 1:
            yield Violation(1, f'adapter "{name}" is in {placed[name]} replicas')
    for number, count in Counter(r.id for r in plan.replicas).items():
        if count > 1:
            yield Violation(1, f"{count} replicas have the id {number}")
    pools = {p.gpu: p.count for p in instance.gpu_pools}
    used: Counter[str] = Counter()
    for r in plan.replicas:
        used[r.gpu] += r.num_stages
        if r.gpu not in pools:
            yield Violation(1, f'replica {r.id}: there is no pool of "{r.gpu}"')
        yield from _stages(r, costs.get(r.gpu))
    for gpu, count in used.items():
        if gpu in pools and count > pools[gpu]:
            yield Violation(1, f'{counted(count, "GPU")} used of a pool of {pools[gpu]} "{gpu}"')


def _stages(r: Replica, costs: CostModel | None) -> Iterator[Violation]:
    """Rule 1, of one replica: what is said of its stages is said of each, and costs are those of their layers."""
    if len(r.programs) != r.num_stages or len(r.peak_memory_gib) != r.num_stages:
        found = f"{len(r.programs)} programs and {len(r.peak_memory_gib)} memory peaks"
        yield Violation(1, f"replica {r.id}: {found} for {counted(r.num_stages, 'stage')}")
    layers = None if costs is None else costs.num_layers
    if layers is not None and r.num_stages > layers:
        yield Violation(1, f"replica {r.id}: {r.num_stages} stages for {counted(layers, 'layer')}")
    if r.layers_per_stage is not None and len(r.layers_per_stage) != r.num_stages:
        yield Violation(1, f"replica {r.id}: layers for {len(r.layers_per_stage)} of {counted(r.num_stages, 'stage')}")
    if r.layers_per_stage is not None and layers is not None and sum(r.layers_per_stage) != layers:
        yield Violation(1, f"replica {r.id}: {sum(r.layers_per_stage)} layers placed of a backbone of {layers}")
    elif costs is not None:
        try:
            costs.of_replica(r)
        except InvalidPlanError as error:
            yield Violation(1, f"replica {r.id}: {error}")
