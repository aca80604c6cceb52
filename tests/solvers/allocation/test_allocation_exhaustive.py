"""Enumeration, column generation and their integer solutions against all partitions, pools and depths."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from helpers.spaces import best_objective, context_of, random_space

from cappuccino.errors import InfeasibleError
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.allocator import Allocator
from cappuccino.solvers.allocation.candidates import Candidates, find_candidates
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.budget import Budget
from cappuccino.solvers.settings import AllocationSettings, PlannerSettings

GAP = 1e-4
"""Relative, of everything that is solved here."""


@dataclass(frozen=True)
class Case:
    space: ReplicaSpace
    objective: Objective
    deadline_s: float | None
    expected: float


@cache
def case(seed: int) -> Case:
    """Return an instance of up to 6 adapters with its objective; two thirds have a deadline, tight or loose."""
    space = random_space(seed)
    objective = list(Objective)[seed // 2 % 3]
    deadline = None
    if seed % 3:
        rng = np.random.default_rng(seed + 20_000)
        longest = space.set_bounds[np.isfinite(space.set_bounds)].max()
        least = space.objective_bound(Objective.MAKESPAN)
        deadline = float(least * (0.98 + 0.6 * rng.random()) if seed % 2 else least + rng.random() * (longest - least))
    return Case(space, objective, deadline, best_objective(space, objective, deadline))


def value(case: Case, found: Candidates, partition: tuple[int, ...]) -> float:
    """Return the objective of a partition at bounds, after making sure that it is one."""
    chosen = list(partition)
    assert (found.numbers[chosen].sum(axis=0) == case.space.kinds.counts).all()
    used = dict.fromkeys(case.space.pools, 0)
    for c in chosen:
        pool, bounds = case.space.bounds[found.place[c]]
        used[pool.gpu] += bounds.num_stages
        assert found.bounds_s[c] == pytest.approx(bounds.lower_bounds(found.numbers[[c]])[0])
    assert all(used[gpu] <= count for gpu, count in case.space.pools.items())
    assert case.deadline_s is None or found.bounds_s[chosen].max() <= case.deadline_s * (1 + 1e-9)
    if case.objective is Objective.MAKESPAN:
        return float(found.bounds_s[chosen].max())
    places = case.space.places(case.objective)
    return float(sum(places[found.place[c]].rate * found.bounds_s[c] for c in chosen))


def context(case: Case, enumerated: bool = True, gap: float = GAP, **allocation) -> Context:
    """Return the case as a search, with all columns listed or without."""
    space = case.space if enumerated else replace(case.space, most_sets=0)
    settings = PlannerSettings(allocation=AllocationSettings(**allocation))
    return context_of(space, case.objective, case.deadline_s, gap=gap, settings=settings)


def agrees(case: Case, enumerated: bool = True) -> bool:
    """Compare bound and best partition with the optimum; return whether there is one."""
    try:
        found = find_candidates(context(case, enumerated))
    except InfeasibleError:
        assert case.expected == float("inf")
        return False
    assert found.bound <= case.expected * (1 + 1e-6)
    assert found.bound == pytest.approx(case.expected, rel=GAP)
    assert min(value(case, found, p) for p in found.partitions) == pytest.approx(case.expected, rel=GAP)
    return True


FEW, REST = range(0, 30, 10), [pytest.param(first, marks=pytest.mark.slow) for first in range(30, 200, 10)]


@pytest.mark.parametrize("first", [*FEW, *REST])
def test_enumeration_agrees_with_exhaustion(first):
    feasible = [agrees(case(seed)) for seed in range(first, first + 10)]
    assert sum(feasible) > 3


@pytest.mark.parametrize("first", [*FEW, *REST])
def test_column_generation_agrees_with_exhaustion(first):
    feasible = [agrees(case(seed), enumerated=False) for seed in range(first, first + 10)]
    assert sum(feasible) > 3


def test_the_cases_are_of_every_sort():
    tried = [case(seed) for seed in range(60)]
    assert {c.objective for c in tried} == set(Objective)
    assert sum(c.expected == float("inf") for c in tried) > 3
    assert sum(c.deadline_s is None for c in tried) > 10
    assert sum(len(c.space.pools) == 2 for c in tried) > 10
    assert sum(len(c.space.kinds.counts) < len(c.space.instance.adapters) for c in tried) > 10


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_the_relaxation_alone_is_never_above_the_optimum(first):
    looseness = []
    for seed in range(first, first + 20):
        tried = case(seed)
        try:
            found = find_candidates(context(tried, enumerated=False, most_exact=0))
        except InfeasibleError:
            assert tried.expected == float("inf")
            continue
        assert tried.space.objective_bound(tried.objective) <= found.bound * (1 + 1e-9)
        assert found.bound <= tried.expected * (1 + 1e-9), seed
        values = [value(tried, found, p) for p in found.partitions]
        assert min(values, default=float("inf")) >= tried.expected * (1 - 1e-9), seed
        if np.isfinite(tried.expected):
            looseness.append(1 - found.bound / tried.expected)
    assert np.mean(looseness) < 0.1


@pytest.mark.parametrize("enumerated", [True, False])
@pytest.mark.parametrize("first", range(0, 8, 4))
def test_plans_are_never_below_the_optimum_of_the_bounds(first, enumerated):
    look = Budget(seconds=None, constructions=2, moves=0, windows=0)
    few = {"first_attempt": look, "further_attempts": ((0.1, look),) * 3}
    for seed in range(first, first + 4):
        tried = case(seed)
        try:
            search = context(tried, enumerated, gap=1e-3, **few)
            Allocator(search, search.clock).run()
        except InfeasibleError:
            continue
        incumbent = search.incumbent
        assert incumbent.bound <= tried.expected * (1 + 1e-6) <= incumbent.objective * (1 + GAP), seed
        assert sorted(i for r in incumbent.replicas for i in r.schedule.problem.adapters) == list(
            range(len(tried.space.instance.adapters))
        )
