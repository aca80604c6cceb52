"""The model of a whole replica against the optimum over all packings and all orders, found by exhaustion."""

import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import violations
from helpers.small_replicas import ERROR, cases, worst_schedule

from cappuccino.solvers.budget import Budget
from cappuccino.solvers.scheduling.schedule import build_schedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.scheduling.whole import solve_whole
from cappuccino.solvers.settings import SchedulingSettings


@pytest.mark.parametrize(
    "first", [*range(0, 60, 10), *(pytest.param(first, marks=pytest.mark.slow) for first in range(1000, 1400, 40))]
)
def test_the_model_finds_and_proves_the_least_makespan(first: int) -> None:
    for problem, least in cases(range(first, first + (10 if first < 1000 else 40))):
        found = solve_whole(worst_schedule(problem), 0, time_limit_s=None, deterministic_limit=20.0)
        best = found.schedule or worst_schedule(problem)
        assert violations(best) == ()
        assert best.makespan_s >= least * (1 - 1e-9)
        # a schedule has each optimizer step just before the adapter's next forward, which can be later than it could be
        late = problem.costs.optimizer_s * sum(problem.num_steps)
        assert found.bound_s <= least * (1 + 1e-9)
        if problem.evaluations:  # their packing is given
            assert found.bound_s == 0
            continue
        assert best.makespan_s <= least * (1 + ERROR) + late
        assert found.bound_s >= least * (1 - ERROR)


def test_packing_and_order_are_chosen_together() -> None:
    # 2 samples of 1 token on 2 stages: together F 2 + 2, B 4 + 4 = 12; apart 1 + (1 + 2) x 2 + 2 = 9
    problem = make_problem(make_instance(([1, 1], 2)), make_costs(), 2)
    together = build_schedule(problem, problem.batches([[(0, 0), (0, 1)]]), [(0, ~0)] * 2)
    assert together.makespan_s == 12
    found = solve_whole(together, 0, time_limit_s=None, deterministic_limit=5.0)
    assert found.schedule is not None
    assert found.schedule.makespan_s == 9
    assert found.bound_s == pytest.approx(9, rel=1e-4)
    # with one slot they can only be together, and nothing is said of other packings
    found = solve_whole(together, 0, time_limit_s=None, deterministic_limit=5.0, num_slots=1)
    assert found.schedule is None
    assert found.bound_s == 0


def test_padded_samples_are_refused() -> None:
    problem = make_problem(make_instance(([1, 1], 2), layout="padded"), make_costs(), 2)
    with pytest.raises(ValueError, match="not padded"):
        solve_whole(worst_schedule(problem), 0, time_limit_s=None, deterministic_limit=1.0)


def test_a_small_replica_is_proven_optimal_by_the_search() -> None:
    # work bound 3 x (2 + 5) x ... is below: the chain of steps leaves gaps that only the model accounts for
    problem = make_problem(make_instance(([2, 5, 3], 1, 3), ([4, 1, 2], 1, 3)), make_costs(), 2)
    without = SchedulingSettings(whole_samples=0)
    effort = Budget(None, constructions=8, moves=500, windows=3)
    before, after = (schedule_replica(problem, effort, 0, settings=s) for s in (without, SchedulingSettings()))
    assert after.makespan_s <= before.makespan_s
    assert before.problem.lower_bound_s < before.makespan_s * 0.99
    assert after.problem.lower_bound_s >= after.makespan_s * (1 - ERROR)
    assert after.problem.lower_bound_s <= after.makespan_s
