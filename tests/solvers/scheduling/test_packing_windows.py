import numpy as np
from helpers.builders import make_costs, make_instance, make_problem
from helpers.schedules import built, random_replica, violations

from cappuccino.costs import SmoothMaximum
from cappuccino.solvers.scheduling.construction import list_schedule
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.order import ScheduledOrder
from cappuccino.solvers.scheduling.packing_windows import repack


def test_repacking_joins_micro_batches_of_launch_bound_work():
    # 4 samples of 1 token, floor 12 + 24: apart 4 x 36 and more, together one micro-batch
    costs = make_costs(forward=SmoothMaximum(12.0, 1.0, 0.01, 4.0), backward=SmoothMaximum(24.0, 2.0, 0.02, 4.0))
    problem = make_problem(make_instance(*[([1], 1)] * 4), costs, 1)
    found = ScheduledOrder.of(problem, problem.batches([[(a, 0)] for a in range(4)]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = repack(problem, found.order, found.makespan_s, 4, 0.0, rng, time_limit_s=None) or found
    assert len(found.order) == 1
    assert violations(built(problem, found)) == ()


def test_padded_micro_batches_are_not_repacked():
    problem = random_replica(3, layout="padded")
    start = list_schedule(problem, PackingRule(0.5 * problem.launch_bound_work))
    rng = np.random.default_rng(0)
    assert repack(problem, start.order, start.makespan_s, 3, 0.0, rng, time_limit_s=None) is None
