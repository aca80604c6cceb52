import numpy as np
import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.errors import InfeasibleError
from cappuccino.solvers.baselines.layout import geometric_counts, spread
from cappuccino.solvers.baselines.placement import least_places, own_places, places_of


def test_spread_balances_the_heaviest_first():
    # 5 | 4, then 3 to the 4, 3 to the 5, 3 to the 7
    assert spread([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]
    assert spread([1.0], 1) == [[0]]


def test_geometric_counts():
    assert geometric_counts(1) == [1]
    assert geometric_counts(5) == [1, 2, 3, 4, 5]
    assert geometric_counts(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]


def test_places_are_where_some_adapter_fits():
    # on x 14 GiB hold 2 tokens, on y nothing limits
    instance = make_instance(([10], 1), ([2], 1), gpus={"x": 1, "y": 2})
    places = places_of(instance, {"x": make_costs(usable=14.0), "y": make_costs(gpu="y")})
    assert [(p.pool.gpu, p.num_stages, p.fits.tolist()) for p in places] == [
        ("x", 1, [False, True]),
        ("y", 1, [True, True]),
        ("y", 2, [True, True]),
    ]
    assert [(p.pool.gpu, p.num_stages) for p in least_places(places)] == [("y", 1)]


def assigned(places, cost):
    found = own_places(places, lambda place, a: cost[place.pool.gpu, place.num_stages][a])
    return {(p.pool.gpu, p.num_stages): adapters for p, adapters in found.items()}


def test_adapters_go_to_the_cheapest_pool_then_give_way():
    instance = make_instance(([10], 1), ([2], 1), gpus={"x": 1, "y": 2})
    places = places_of(instance, {"x": make_costs(usable=14.0), "y": make_costs(gpu="y")})
    cost = {("x", 1): [np.inf, 5.0], ("y", 1): [7.0, 6.0], ("y", 2): [8.0, 8.0]}
    assert assigned(places, cost) == {("x", 1): [1], ("y", 1): [0]}
    cost["y", 1][1] = 4.0
    assert assigned(places, cost) == {("y", 1): [0, 1]}


def test_what_fits_nowhere_is_named():
    instance = make_instance(([10], 1), ([2], 1), gpus=2)
    with pytest.raises(InfeasibleError, match=r'adapters\[0\] "a0" fits nowhere'):
        places_of(instance, {"x": make_costs(usable=14.0)})
