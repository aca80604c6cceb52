import numpy as np
import pyomo.environ as pyo
import pytest
from pyomo.contrib.appsi.solvers import Highs
from scipy.optimize import linprog

from cappuccino.models.partition_relaxation import PartitionRelaxation

Priced = tuple[tuple[int, ...], str, int, float]
"""Adapters of each kind, pool, depth, cost."""


def optimum(relaxation: PartitionRelaxation) -> float:
    Highs().solve(relaxation.model)
    return pyo.value(relaxation.model.objective)


def built(columns: list[Priced], demand: list[int], pools: dict[str, int], **options) -> PartitionRelaxation:
    relaxation = PartitionRelaxation(demand, pools, [1e6] * len(demand), **options)
    for numbers, gpu, stages, cost in columns:
        relaxation.add_column(np.array(numbers), gpu, stages, cost)
    return relaxation


def test_prices_of_a_partition_without_scarcity():
    # alone 10 each, together 16: the pair is paid 16 at most, and every price is at most 10
    columns = [((1, 0), "x", 1, 10.0), ((0, 1), "x", 1, 10.0), ((1, 1), "x", 1, 16.0)]
    relaxation = built(columns, [1, 1], {"x": 2})
    assert optimum(relaxation) == pytest.approx(16.0)
    assert pyo.value(relaxation.model.charge["x"]) == pytest.approx(0.0)


def test_scarce_gpus_are_charged():
    # one adapter takes 10 on 1 GPU, 8 on 2; two of them share 3 GPUs: 8 + 10 with the second GPU worth 2
    columns = [((1,), "x", 1, 10.0), ((1,), "x", 2, 8.0)]
    relaxation = built(columns, [2], {"x": 3})
    assert optimum(relaxation) == pytest.approx(18.0)
    assert pyo.value(relaxation.model.charge["x"]) == pytest.approx(2.0)
    assert pyo.value(relaxation.model.price[0]) == pytest.approx(12.0)


def test_share_of_the_pools():
    # 3 adapters need 2 GPUs each where there are 4: one and a half times what is there
    relaxation = built([((1,), "x", 2, 99.0)], [3], {"x": 4}, share_only=True)
    assert optimum(relaxation) == pytest.approx(1.5)


@pytest.mark.parametrize("share_only", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_optimum_of_the_linear_program_over_columns(seed, share_only):
    rng = np.random.default_rng(seed)
    kinds = int(rng.integers(1, 5))
    demand = rng.integers(1, 4, size=kinds)
    pools = {"x": int(rng.integers(2, 6)), "y": int(rng.integers(2, 6))}
    columns = [
        (tuple(rng.integers(0, demand + 1)), str(rng.choice(["x", "y"])), int(rng.integers(1, 3)), float(rng.random()))
        for _ in range(12)
    ]
    columns += [(tuple(np.eye(kinds, dtype=int)[k]), "x", 1, 3.0) for k in range(kinds)]
    columns = [c for c in columns if any(c[0])]
    held = -np.array([c[0] for c in columns], dtype=float).T
    used = np.array([[c[2] if c[1] == gpu else 0.0 for c in columns] for gpu in pools])
    sizes = np.array(list(pools.values()), dtype=float)
    if share_only:  # last variable: the share
        cost = np.append(np.zeros(len(columns)), 1.0)
        rows = np.block([[held, np.zeros((kinds, 1))], [used, -sizes[:, None]]])
        right = np.append(-demand.astype(float), np.zeros(2))
    else:
        cost, rows, right = np.array([c[3] for c in columns]), np.vstack([held, used]), np.append(-demand, sizes)
    expected = linprog(cost, A_ub=rows, b_ub=right)
    if expected.status == 2:  # infeasible: prices may rise to their ceilings
        assert optimum(built(columns, demand.tolist(), pools, share_only=share_only)) > 1e3
        return
    assert expected.status == 0
    assert optimum(built(columns, demand.tolist(), pools, share_only=share_only)) == pytest.approx(expected.fun)


def test_names_in_the_exported_model_are_readable(tmp_path):
    model = built([((1, 1), "x", 2, 16.0)], [1, 1], {"x": 2}).model
    model.write(str(tmp_path / "m.lp"), io_options={"symbolic_solver_labels": True})
    text = (tmp_path / "m.lp").read_text()
    for name in ("price(0)", "price(1)", "charge(x)", "affordable(1)"):
        assert name in text
