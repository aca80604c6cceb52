import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import built, random_replica, violations

from cappuccino.costs import SmoothMaximum
from cappuccino.solvers.scheduling.list_scheduling import list_schedule
from cappuccino.solvers.scheduling.order_scheduling import schedule_order
from cappuccino.solvers.scheduling.packing import PackingRule
from cappuccino.solvers.scheduling.packing_windows import repack


def first(problem):
    return list_schedule(problem, PackingRule(0.5 * problem.launch_bound_work))


@pytest.mark.parametrize("seed", range(16))
def test_repacking_never_worsens_and_stays_valid(seed):
    problem = random_replica(seed, tight=seed % 2 == 0, clip=seed % 4 == 3)
    found = first(problem)
    rng = np.random.default_rng(seed)
    for _ in range(8):
        size = int(rng.integers(2, 5))
        new = repack(problem, found, size, 0.0, rng, time_limit_s=None, deterministic_limit=0.2)
        if new is not None:
            assert new.makespan_s < found.makespan_s
            assert violations(built(problem, new)) == ()
            found = new


def test_repacking_joins_micro_batches_of_launch_bound_work():
    # 4 samples of 1 token, floor 12 + 24: apart 4 x 36 and more, together one micro-batch
    costs = make_costs(forward=SmoothMaximum(12.0, 1.0, 0.01, 4.0), backward=SmoothMaximum(24.0, 2.0, 0.02, 4.0))
    problem = make_problem(make_instance(*[([1], 1)] * 4), costs, 1)
    found = schedule_order(problem, problem.batches([[(a, 0)] for a in range(4)]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = repack(problem, found, 4, 0.0, rng, time_limit_s=None) or found
    assert len(found.order) == 1
    assert violations(built(problem, found)) == ()


def test_padded_micro_batches_are_not_repacked():
    problem = random_replica(3, layout="padded")
    assert repack(problem, first(problem), 3, 0.0, np.random.default_rng(0), time_limit_s=None) is None
