import numpy as np
import pytest
from ortools.sat.python import cp_model

from cappuccino.models.replica import ReplicaModel
from cappuccino.models.replica_data import SCALE, WHOLE, CurveData, ReplicaData, SampleData, tangents


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 4.0, 8.0])
def test_tangents_support_the_curve_and_are_close_to_it(power: float) -> None:
    rng = np.random.default_rng(0)
    floor, work = rng.exponential(1.0, (2, 500))
    exact = (floor**power + work**power) ** (1 / power)
    best = np.max([(alpha * work + beta * floor) / SCALE for alpha, beta in tangents(power)], axis=0)
    assert (best <= exact * (1 + 1e-12)).all()
    assert (best >= exact * 0.993).all()


def data(**changes: object) -> ReplicaData:
    """Two samples of one adapter on one stage, times as long as the tokens, backwards twice as long."""
    curve = CurveData(floor=0, adapter_floor=(0,), power=1.0, shares=(WHOLE,))
    samples = tuple(SampleData(0, 0, n, {"F": (n,), "B": (2 * n,)}) for n in (3, 5))
    fields: dict = {
        "num_stages": 1,
        "samples": samples,
        "num_slots": 2,
        "max_tokens": 8,
        "curves": {"F": (curve,), "B": (curve,)},
        "step_duration": 1,
        "clipped": frozenset(),
        "lag": (0, 0),
        "held": (0, 0, 1),
        "evaluations": (),
        "horizon": 100,
    }
    return ReplicaData(**{**fields, **changes})


def solve(data: ReplicaData) -> tuple[int, int]:
    found = ReplicaModel(data).solve(time_limit_s=None, deterministic_limit=10.0, seed=0)
    assert found.proven
    assert found.packing is not None
    return found.makespan, len(set(found.packing.slots))


def test_what_the_model_counts() -> None:
    assert solve(data())[0] == 3 * 8 + 1
    floor = CurveData(floor=4, adapter_floor=(2,), power=1.0, shares=(WHOLE,))
    # a floor of 6 forward and backward for every micro-batch: one is better
    assert solve(data(curves={"F": (floor,), "B": (floor,)})) == (3 * 8 + 12 + 1, 1)
    assert solve(data(curves={"F": (floor,), "B": (floor,)}, max_tokens=5)) == (3 * 8 + 24 + 1, 2)


def test_nothing_below_the_horizon_is_an_error() -> None:
    with pytest.raises(ValueError, match="by the horizon"):
        solve(data(horizon=20))


def test_every_constraint_says_what_it_is() -> None:
    names = [v.name for v in ReplicaModel(data()).model.proto.variables]
    assert {"in[0,1]", "used[0]", "slot[1]", "has[0,0,1]", "makespan", "B_before[0,1]"} <= set(names)
    assert isinstance(ReplicaModel(data()).model, cp_model.CpModel)
