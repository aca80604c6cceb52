"""Instances with micro-batch sizes of their own, and random ones."""

from dataclasses import replace

import numpy as np

from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.solvers.baselines.placement import places_of
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from helpers.builders import make_costs, make_instance, with_adapters, with_evaluations, with_unlike_stages


def with_micro_batches(instance: Instance, *sizes: int) -> Instance:
    """Return the instance with these micro-batch sizes of its adapters."""
    adapters = zip(instance.adapters, sizes, strict=True)
    return replace(instance, adapters=tuple(a.model_copy(update={"micro_batch_size": n}) for a, n in adapters))


def random_instance(seed: int) -> tuple[Instance, dict[str, CostModel]]:
    """Return 1 to 6 adapters with unequal steps on one or two pools.

    Every fifth is padded, every fourth clips gradients, every second has little more memory than its longest sample.
    """
    rng = np.random.default_rng(seed)
    jobs, sizes = [], []
    for _ in range(int(rng.integers(1, 7))):
        batch = int(rng.integers(1, 6))
        jobs.append((rng.integers(1, 20, size=3 * batch).tolist(), batch, int(rng.integers(1, 4))))
        sizes.append(int(rng.integers(1, batch + 1)))
    pools = {"x": 3, "y": 4} if seed % 3 == 0 else {"x": 5}
    clipped = range(0, len(jobs), 2) if seed % 4 == 0 else ()
    layout = "padded" if seed % 5 == 0 else "packed"
    instance = make_instance(*jobs, gpus=pools, prices={"x": 1.0}, layout=layout, clipped=clipped)
    longest = max(max(job[0]) for job in jobs)
    costs = {}
    for gpu in pools:
        scale = float(rng.uniform(0.5, 1.5))
        costs[gpu] = make_costs(
            usable=10.0 + 2.0 * longest + float(rng.integers(0, 20)) if seed % 2 == 0 else None,
            optimizer_s=float(rng.choice([0.0, 2.0])),
            transfer=(float(rng.choice([0.0, 1.0])), 0.05),
            forward=SmoothMaximum(12.0, 1.0, 0.01, 4.0).scaled(scale),
            backward=SmoothMaximum(24.0, 2.0, 0.02, 4.0).scaled(scale),
            stages=(1, 2) if seed % 7 else (2, 3),
            gpu=gpu,
        )
    if seed % 3 == 1:
        charged = {gpu: with_adapters(instance, costs[gpu], seed) for gpu in pools}
        instance, costs = charged["x"][0], {gpu: found for gpu, (_, found) in charged.items()}
    if seed % 3 == 2:
        instance = with_evaluations(instance, seed)
    if seed % 4 == 2:
        costs = {gpu: with_unlike_stages(found, seed) for gpu, found in costs.items()}
    return with_micro_batches(instance, *sizes), costs


def random_replica(seed: int) -> ReplicaProblem:
    """Return a random instance's adapters in one replica, at some depth that fits them."""
    places = [place for place in places_of(*random_instance(seed)) if place.fits.all()]
    return places[seed % len(places)].problem(range(len(places[0].fits)))


def replicas_of(plan: Plan) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return GPU type, depth and adapters of every replica."""
    return [(r.gpu, r.num_stages, r.adapters) for r in plan.replicas]
