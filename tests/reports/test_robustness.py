import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_plan, make_replica, parse_programs, timed

from cappuccino.reports.robustness import run_under_noise


def planned():
    # one stage works 2 x 9 s without a gap; beside it two, where an F ends just when the stage behind is free for it
    instance, costs = make_instance(([3, 3], 2), ([3, 3, 3], 3)), make_costs(stages=[1, 2])
    alone = make_replica([[(0, 0)], [(0, 1)]], parse_programs("F0 F1 B0 B1 S0.0"), ["a0"])
    programs = parse_programs("F0 F1 F2 B0 B1 B2 S0.0", "F0 F1 F2 B0 B1 B2 S0.0")
    two = make_replica([[(0, 0)], [(0, 1)], [(0, 2)]], programs, ["a1"], number=1)
    return timed(make_plan(instance, alone, two), instance, {"x": costs}), instance, {"x": costs}


def test_without_noise_every_run_is_the_plan():
    plan, instance, costs = planned()
    found = run_under_noise(plan, instance, costs, 0.0, 3)
    assert found.planned_gpu_time_s == pytest.approx(plan.gpu_time_s)
    assert found.gpu_time_s == pytest.approx([plan.gpu_time_s] * 3)
    assert found.makespan_s == pytest.approx([plan.makespan_s] * 3)
    assert found.slowdowns == pytest.approx([1.0] * 3)


def test_noise_has_mean_one_and_waiting_makes_it_slower():
    plan, instance, costs = planned()
    found = run_under_noise(plan, instance, costs, 0.3, 2000, seed=1)
    assert len(set(found.gpu_time_s.tolist())) == 2000
    # a single stage only adds up: its mean is the plan's; where stages wait for each other, the later one counts
    alone = make_plan(instance, plan.replicas[0])
    single = run_under_noise(alone, instance, costs, 0.3, 2000, seed=1)
    assert single.slowdowns.mean() == pytest.approx(1.0, abs=0.02)
    assert found.slowdowns.mean() > 1.01
    again = run_under_noise(plan, instance, costs, 0.3, 2000, seed=1)
    assert np.array_equal(again.gpu_time_s, found.gpu_time_s)
