"""Small random spaces of replicas, and the best partition of any of them by exhaustion."""

from functools import cache

import numpy as np

from cappuccino.costs import SmoothMaximum
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Context, Goal, Incumbent
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.settings import PlannerSettings
from helpers.builders import make_costs, make_instance


def random_space(seed: int, most: int = 6) -> ReplicaSpace:
    """Return up to `most` adapters on one or two pools, from ample to too small; in every third some are alike."""
    rng = np.random.default_rng(seed)
    count = 2 + seed % (most - 1)
    jobs = [
        (rng.integers(1, 30, size=6).tolist(), int(rng.integers(1, 4)), int(rng.integers(1, 3))) for _ in range(count)
    ]
    if seed % 3 == 0:
        jobs = [jobs[int(rng.integers(0, max(1, count // 2)))] for _ in range(count)]
    curve = SmoothMaximum(float(rng.choice([0.0, 10.0, 40.0])), 1.0, float(rng.choice([0.0, 0.01])), 3.0)
    usable = float(rng.choice([75.0, 110.0, 1000.0]))
    costs = {
        "x": make_costs(
            forward=curve,
            backward=curve.scaled(2.0),
            usable=usable,
            optimizer_s=1.0,
            transfer=(0.5, 0.0),
            stages=(1, 2, 3),
        )
    }
    gpus = {"x": int(rng.integers(1, 7))}
    if rng.random() < 0.5:
        gpus["y"] = int(rng.integers(1, 4))
        costs["y"] = make_costs(
            forward=curve.scaled(0.6), backward=curve.scaled(1.1), usable=0.8 * usable, gpu="y", stages=(1, 2)
        )
    instance = make_instance(*jobs, gpus=gpus, prices={"x": 3600.0, "y": 5000.0})
    return ReplicaSpace.of(instance, costs)


def context_of(
    space: ReplicaSpace,
    objective: Objective = Objective.GPU_TIME,
    deadline_s: float | None = None,
    *,
    gap: float = 1e-3,
    seed: int = 0,
    iterations: int | None = None,
    clock: Clock | None = None,
    settings: PlannerSettings | None = None,
) -> Context:
    """Return a search in a space that has found nothing yet."""
    incumbent = Incumbent(space, Goal(objective, deadline_s, gap))
    return Context(space, incumbent, clock or Clock(None), seed, iterations, settings or PlannerSettings())


def best_objective(space: ReplicaSpace, objective: Objective, deadline_s: float | None) -> float:
    """Return the least objective of all partitions, places and depths, makespans being bounds; infinite for none.

    Every partition is looked at: the replica with the first adapter left is any set with it in any place that is left.
    """
    count = len(space.instance.adapters)
    limit = float("inf") if deadline_s is None else deadline_s
    gpus = tuple(space.pools)
    of_kind = [np.array(space.kinds.of_adapter) == k for k in range(len(space.kinds.counts))]
    offers: dict[int, list[tuple[int, int, float, float]]] = {}
    for chosen in range(1, 2**count):
        held = np.array([chosen >> i & 1 for i in range(count)])
        numbers = np.array([[int(held[mine].sum()) for mine in of_kind]])
        offers[chosen] = []
        for pool, bounds in space.bounds:
            makespan = float(bounds.lower_bounds(numbers)[0])
            if makespan <= limit:
                cost = bounds.num_stages * makespan * (pool.price_per_hour / 3600 if objective is Objective.COST else 1)
                offers[chosen].append((gpus.index(pool.gpu), bounds.num_stages, makespan, cost))

    @cache
    def best(left: int, free: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        first = left & -left
        rest = left ^ first
        least, others = float("inf"), rest
        while True:
            for pool, stages, makespan, cost in offers[first | others]:
                if stages <= free[pool]:
                    after = best(rest ^ others, (*free[:pool], free[pool] - stages, *free[pool + 1 :]))
                    least = min(least, max(makespan, after) if objective is Objective.MAKESPAN else cost + after)
            if not others:
                return least
            others = others - 1 & rest

    return best(2**count - 1, tuple(space.pools.values()))
