"""Every search on a replica returns a valid schedule, and never a worse one than it began with."""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.schedules import random_order, random_replica, schedule_of_random_plan, violations
from hypothesis import given, settings
from hypothesis import strategies as st

from cappuccino.solvers.budget import Budget, Clock
from cappuccino.solvers.scheduling.annealing import anneal
from cappuccino.solvers.scheduling.construction import construct
from cappuccino.solvers.scheduling.neighbourhoods import Neighbourhood
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.schedule_graph import is_better
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.scheduling.windows import improve_window
from cappuccino.solvers.settings import SchedulingSettings

FOREVER = Clock(None)
SHORT = SchedulingSettings(whole=6, window=4, lookahead=1)
"""Windows of 4 micro-batches where there are more than 6."""
Search = Callable[[ReplicaSchedule, np.random.Generator], list[ReplicaSchedule]]


def constructing(start: ReplicaSchedule, rng: np.random.Generator) -> list[ReplicaSchedule]:
    return [construct(start.problem, count, FOREVER, 0.0, rng)[0] for count in (1, 8)]


def list_scheduling(start: ReplicaSchedule, rng: np.random.Generator) -> list[ReplicaSchedule]:
    patience = float(rng.choice([0.0, 5.0, 20.0]))
    order = random_order(start.problem, int(rng.integers(100)), urgent=bool(rng.integers(2)))
    found = (ScheduledOrder.of(start.problem, o, patience) for o in (start.order, order))
    return [f.schedule() for f in found if f is not None]


def annealing(start: ReplicaSchedule, rng: np.random.Generator) -> list[ReplicaSchedule]:
    patience, best = float(rng.choice([0.0, 0.25])) * start.problem.launch_bound_work, [start]
    for chosen in (SchedulingSettings(), SHORT):
        reported: list[ScheduledOrder] = []
        found = anneal(start.problem, start, patience, FOREVER, 300, 0.0, rng, reported.append, chosen)
        makespans = [order.makespan_s for order in reported]
        assert makespans == sorted(set(makespans), reverse=True)
        assert not reported or reported[-1] is found
        best += [order.schedule() for order in (*reported, *([found] if found else []))]
    return best


def windows(start: ReplicaSchedule, rng: np.random.Generator) -> list[ReplicaSchedule]:
    found = [start]
    for _ in range(6):
        where, packed = rng.choice(list(Neighbourhood)), int(rng.integers(5))
        size = int(rng.integers(4, 40))
        new = improve_window(found[-1], size, where, packed, rng, time_limit_s=None, deterministic_limit=0.1)
        if new is not None:
            assert is_better(new, found[-1])
            found.append(new)
    assert found[-1].makespan_s <= start.makespan_s
    return found


def everything(start: ReplicaSchedule, rng: np.random.Generator) -> list[ReplicaSchedule]:
    reported: list[ReplicaSchedule] = []
    budget = Budget(None, int(rng.integers(1, 12)), int(rng.integers(0, 400)), int(rng.integers(0, 3)))
    short = SchedulingSettings(window_operations=(6, 14))
    seed = int(rng.integers(100))
    found = schedule_replica(start.problem, budget, seed, start=start, on_better=reported.append, settings=short)
    assert found.makespan_s <= start.makespan_s
    assert reported[-1] is found
    makespans = [schedule.makespan_s for schedule in reported]
    assert makespans == sorted(makespans, reverse=True)
    return reported


@st.composite
def starts(draw) -> ReplicaSchedule:
    """Draw a replica of any sort and a schedule of it: constructed, or of a random plan where memory is ample."""
    seed, tight = draw(st.integers(0, 10**6)), draw(st.booleans())
    layout = draw(st.sampled_from(["packed", "padded"]))
    problem: ReplicaProblem = random_replica(seed, tight=tight, clip=draw(st.booleans()), layout=layout)
    if not tight and draw(st.booleans()):
        return schedule_of_random_plan(problem, seed)
    return construct(problem, 1, FOREVER, 0.0, np.random.default_rng(seed), SchedulingSettings(targets=(0.4,)))[0]


@pytest.mark.parametrize("search", [constructing, list_scheduling, annealing, windows, everything])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(starts(), st.integers(0, 10**6))
def test_searches_are_valid_and_never_worse(search: Search, start, seed):
    for found in search(start, np.random.default_rng(seed)):
        assert violations(found) == ()
        assert start.problem.lower_bound_s <= found.makespan_s * (1 + 1e-9)
        assert all(b.tokens <= start.problem.max_tokens for b in found.order)
        assert all(len({a for a, _ in b.steps}) == len(b.steps) for b in found.order)
