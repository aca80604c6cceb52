import io
from dataclasses import replace

import numpy as np
import pytest

from cappuccino.models.set_partitioning import Column, SetPartitioning
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.milp import PartitionProblem, PartitionResult
from cappuccino.solvers.budget import Clock

PRICE = {"x": 1.0, "y": 2.5}


def partitions(items: list[int]):
    """Yield every partition of a list into sets."""
    if not items:
        yield []
        return
    first, *rest = items
    for partition in partitions(rest):
        yield [(first,), *partition]
        for i, block in enumerate(partition):
            yield [*partition[:i], (first, *block), *partition[i + 1 :]]


def brute_force(columns: list[Column], count: int, pools: dict[str, int], objective: Objective) -> float:
    """Return the least objective over all partitions and all columns for their sets; infinite when none fits."""
    by_set: dict[tuple[int, ...], list[Column]] = {}
    for c in columns:
        by_set.setdefault(c.adapters, []).append(c)
    best = float("inf")

    def place(blocks: list[tuple[int, ...]], chosen: list[Column]) -> None:
        nonlocal best
        if any(sum(c.num_stages for c in chosen if c.gpu == gpu) > n for gpu, n in pools.items()):
            return
        if not blocks:
            spent = [c.num_stages * c.makespan_s for c in chosen]
            if objective is Objective.MAKESPAN:
                value = max(c.makespan_s for c in chosen)
            elif objective is Objective.GPU_TIME:
                value = sum(spent)
            else:
                value = sum(x * PRICE[c.gpu] for x, c in zip(spent, chosen, strict=True))
            best = min(best, value)
            return
        for c in by_set.get(tuple(sorted(blocks[0])), ()):
            place(blocks[1:], [*chosen, c])

    for partition in partitions(list(range(count))):
        place(partition, [])
    return best


def random_columns(seed: int, count: int) -> list[Column]:
    rng = np.random.default_rng(seed)
    columns = []
    for number in range(1, 2**count):
        adapters = tuple(i for i in range(count) if number >> i & 1)
        for gpu in ("x", "y"):
            for g in (1, 2, 3):
                if rng.random() < 0.5 or len(adapters) == 1:
                    makespan = float(rng.integers(5, 20)) * len(adapters) ** 0.7 / g**0.8
                    columns.append(Column(adapters, gpu, g, makespan, PRICE[gpu]))
    return columns


def solved(columns: list[Column], count: int, pools: dict[str, int], objective: Objective) -> PartitionResult | None:
    return PartitionProblem(range(count), pools, objective, gap=0.0, seed=0).solve(columns, Clock(60.0))


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("seed", range(10))
def test_optimum_of_brute_force(seed, objective):
    count = 2 + seed % 3
    columns = random_columns(seed, count)
    pools = {"x": 1 + seed % 4, "y": seed % 3}  # from too small to ample
    expected = brute_force(columns, count, pools, objective)
    found = solved(columns, count, pools, objective)
    if expected == float("inf"):
        assert found is None
        return
    assert found is not None
    assert found.objective == pytest.approx(expected)
    assert found.bound <= found.objective
    assert found.bound == pytest.approx(expected, rel=1e-4)
    chosen = [columns[c] for c in found.chosen]
    assert sorted(i for c in chosen for i in c.adapters) == list(range(count))
    assert all(sum(c.num_stages for c in chosen if c.gpu == gpu) <= n for gpu, n in pools.items())


# alone 10 s each on one GPU, together 16 s on one or 9 s on two
COLUMNS = [
    Column((0,), "x", 1, 10.0),
    Column((1,), "x", 1, 10.0),
    Column((0, 1), "x", 1, 16.0),
    Column((0, 1), "x", 2, 9.0),
]


@pytest.mark.parametrize(
    ("gpus", "objective", "value", "chosen"),
    [
        (2, Objective.GPU_TIME, 16.0, (2,)),  # 16 against 2 x 9 and 10 + 10
        (2, Objective.MAKESPAN, 9.0, (3,)),
        (1, Objective.MAKESPAN, 16.0, (2,)),  # the pool allows one GPU only
    ],
)
def test_hand_made_choice(gpus, objective, value, chosen):
    found = solved(COLUMNS, 2, {"x": gpus}, objective)
    assert found is not None
    assert (found.objective, found.chosen) == (pytest.approx(value), chosen)


def test_pools_that_are_too_small_are_infeasible():
    columns = [Column((0,), "x", 2, 1.0), Column((1,), "x", 2, 1.0)]
    assert solved(columns, 2, {"x": 3}, Objective.GPU_TIME) is None


def test_money_follows_the_price_of_the_type():
    columns = [Column((0,), "x", 1, 10.0, price_per_second=1.0), Column((0,), "y", 1, 6.0, price_per_second=2.0)]
    found = solved(columns, 1, {"x": 1, "y": 1}, Objective.COST)
    assert found is not None
    assert (found.objective, found.chosen) == (pytest.approx(10.0), (0,))


def test_a_column_is_chosen_as_often_as_there_are_adapters_of_its_kinds():
    # 4 adapters alike: a pair takes 12 s, one alone 10 s; two pairs cost 24 GPU-seconds, 12 + 10 + 10 with 3 GPUs only
    # where a pair can be had once
    kinds = [0, 0, 0, 0]
    pair, alone = Column((0, 1), "x", 1, 12.0), Column((0,), "x", 1, 10.0)
    found = PartitionProblem(kinds, {"x": 4}, Objective.GPU_TIME, 0.0, 0).solve([pair, alone], Clock(60.0))
    assert found is not None
    assert (found.chosen, found.objective) == ((0, 0), pytest.approx(24.0))
    # kinds 0 and 1, three and one of them: a pair of both once, and the others alone
    kinds = [0, 0, 0, 1]
    columns = [Column((0, 3), "x", 1, 12.0), Column((0,), "x", 1, 10.0), Column((3,), "x", 1, 5.0)]
    found = PartitionProblem(kinds, {"x": 4}, Objective.GPU_TIME, 0.0, 0).solve(columns, Clock(60.0))
    assert found is not None
    assert (found.chosen, found.objective) == ((0, 1, 1), pytest.approx(32.0))


def test_covering_at_least_once_takes_what_covering_once_cannot():
    columns = [Column((0, 1), "x", 1, 10.0), Column((1, 2), "x", 1, 11.0)]
    problem = PartitionProblem([0, 1, 2], {"x": 2}, Objective.GPU_TIME, 0.0, 0)
    assert problem.solve(columns, Clock(60.0)) is None
    found = replace(problem, at_least=True).solve(columns, Clock(60.0))
    assert found is not None
    assert (found.chosen, found.objective) == ((0, 1), pytest.approx(21.0))


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("seed", range(10))
def test_a_start_does_not_change_the_optimum(seed, objective):
    count = 3
    columns = random_columns(seed, count)
    pools = {"x": 4, "y": 3}
    problem = PartitionProblem(range(count), pools, objective, 0.0, 0)
    alone = [k for i in range(count) for k, c in enumerate(columns) if c.adapters == (i,) and c.gpu == "x"][::3]
    expected = brute_force(columns, count, pools, objective)
    found = problem.solve(columns, Clock(60.0), alone)
    assert found is not None
    assert found.objective == pytest.approx(expected)


def test_the_bisection_begins_at_the_bound_that_is_known():
    problem = PartitionProblem(range(2), {"x": 2}, Objective.MAKESPAN, 0.0, 0)
    found = problem.solve(COLUMNS, Clock(60.0), (2,), low_s=9.0)
    assert found is not None
    assert (found.objective, found.bound, found.chosen) == (9.0, 9.0, (3,))


def test_a_kind_without_column_is_named():
    with pytest.raises(ValueError, match="no column holds an adapter of kind 1"):
        SetPartitioning(COLUMNS[:1], range(2), {"x": 1}, Objective.GPU_TIME)


def test_the_makespan_is_no_objective_of_the_model():
    with pytest.raises(ValueError, match="no sum over columns"):
        SetPartitioning(COLUMNS, range(2), {"x": 1}, Objective.MAKESPAN)


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.COST])
def test_names_in_the_exported_model_are_readable(objective, tmp_path):
    model = SetPartitioning(COLUMNS, range(2), {"x": 2}, objective).model
    model.write(str(tmp_path / "m.lp"), io_options={"symbolic_solver_labels": True})
    text = (tmp_path / "m.lp").read_text()
    for name in ("chosen(0)", "chosen(3)", "covered(0)", "covered(1)", "within_pool(x)"):
        assert name in text
    buffer = io.StringIO()
    model.pprint(ostream=buffer)
    assert "within_pool" in buffer.getvalue()
