"""The searches' own times against the checker's simulator, which shares no code with them."""

import pytest
from helpers.builders import make_plan
from helpers.schedules import random_order, random_replica, schedule_of_random_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from cappuccino.simulator import DeadlockError, simulate
from cappuccino.solvers.scheduling.schedule import BlockedProgramsError, ReplicaSchedule, build_schedule
from cappuccino.solvers.verification import PlannerError, verified


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["packed", "padded"]))
def test_times_and_memory_are_those_of_the_simulator(seed, clip, layout):
    problem = random_replica(seed, clip=clip, layout=layout)
    schedule = schedule_of_random_plan(problem, seed)
    plan = make_plan(problem.instance, schedule.replica(0, "x"))
    (run,) = simulate(plan, problem.instance, {"x": problem.costs}).replicas
    assert schedule.makespan_s == pytest.approx(run.timeline.makespan, rel=1e-12)
    assert schedule.peak_memory_gib == pytest.approx(run.peak_memory_gib, rel=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.data())
def test_operations_that_wait_for_each_other_block_in_both(seed, data):
    problem = random_replica(seed)
    order = random_order(problem, seed)
    ranks = range(len(order))
    operations = tuple(
        tuple(data.draw(st.permutations([*ranks, *(~k for k in ranks if order[k].evaluation is None)])))
        for _ in range(problem.num_stages)
    )
    unknown = ReplicaSchedule(problem, tuple(order), operations, 0.0, (0.0,) * problem.num_stages)
    plan = make_plan(problem.instance, unknown.replica(0, "x"))
    try:
        (run,) = simulate(plan, problem.instance, {"x": problem.costs}).replicas
    except DeadlockError:
        with pytest.raises(BlockedProgramsError):
            build_schedule(problem, order, operations)
        return
    schedule = build_schedule(problem, order, operations)
    assert schedule.makespan_s == pytest.approx(run.timeline.makespan, rel=1e-12)


def test_a_search_that_is_wrong_about_its_times_is_told_from_wrong_input():
    problem = random_replica(5)
    schedule = schedule_of_random_plan(problem, 5)
    replica = schedule.replica(0, "x").model_copy(update={"makespan_s": schedule.makespan_s * 1.01})
    plan = make_plan(problem.instance, replica)
    with pytest.raises(
        PlannerError, match=r"instance: planner: an error of this program, not of the input: replica 0 "
    ):
        verified(plan, problem.instance, {"x": problem.costs}, "planner")
