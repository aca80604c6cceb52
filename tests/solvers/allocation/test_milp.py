"""The set partitioning as HiGHS solves it: ties, budgets, and money of any size."""

import pytest

from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.milp import PartitionProblem
from cappuccino.solvers.budget import Clock

POOLS = {"free": 4, "rented": 4}


def solve(columns, objective=Objective.COST):
    return PartitionProblem((0, 1), POOLS, objective, 1e-4, 0).solve(columns, Clock(None))


def test_of_partitions_that_cost_nothing_the_one_of_least_gpu_time_is_chosen():
    # alone 10 GPU-s each, together 8 s on 2 GPUs; a rented GPU would be faster
    columns = [
        Column((0,), "free", 1, 10.0), Column((1,), "free", 1, 10.0), Column((0, 1), "free", 2, 8.0),
        Column((0, 1), "rented", 1, 3.0, price_per_second=1.0),
    ]  # fmt: skip
    found = solve(columns)
    assert (found.chosen, found.objective) == ((2,), 0.0)


def test_gpu_time_is_saved_only_where_it_costs_no_more():
    # adapter 1 must be rented, at 2 or 3; adapter 0 is free in two ways
    columns = [
        Column((0,), "free", 1, 10.0), Column((0,), "free", 1, 7.0), Column((1,), "rented", 1, 2.0, 1.0),
        Column((0, 1), "rented", 1, 3.0, 1.0),
    ]  # fmt: skip
    found = solve(columns)
    assert found.chosen == (1, 2)
    assert found.objective == pytest.approx(2.0)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_columns_that_differ_little_are_told_apart_in_any_unit(unit):
    # 2.1 + 2.2 against 4.25 together
    columns = [
        Column((0,), "rented", 1, 2.1, unit), Column((1,), "rented", 1, 2.2, unit),
        Column((0, 1), "rented", 1, 4.25, unit),
    ]  # fmt: skip
    found = solve(columns)
    assert found.chosen == (2,)
    assert found.objective == pytest.approx(4.25 * unit, rel=1e-9, abs=0)
    assert found.bound == pytest.approx(4.25 * unit, rel=1e-3, abs=0)
    assert found.bound <= found.objective
