"""How layers are split over stages: against every other split, and as measured where nothing else can be costed."""

from dataclasses import replace

import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.checker import check
from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.costs.stages import StageParts
from cappuccino.errors import InputError
from cappuccino.solvers.baselines import baseline_plan
from cappuccino.solvers.layer_split import LayerSplit, with_layers
from cappuccino.solvers.planning import PlanOptions, make_plan

INSTANCE = make_instance(([40, 60, 30, 50] * 4, 4), ([20, 90] * 8, 2), gpus=2)
OPTIONS = PlanOptions(time_limit_s=None, iterations=3, num_stages=2, compare_separate=False)


def heavy_head(layers: int = 8, head: float = 4.0) -> CostModel:
    """Two stages: a layer takes 0.1 s a token forward and 0.2 s backward, the head so many times that."""
    layer = SmoothMaximum(1.0, 0.1, 0.0, 4.0), SmoothMaximum(2.0, 0.2, 0.0, 4.0)
    last = layer[0].scaled(head), layer[1].scaled(head)
    even = {g: tuple(layers // g for _ in range(g)) for g in (1, 2)}
    parts = dict.fromkeys((1, 2), StageParts(layer, last, SmoothMaximum(0.0, 0.0, 0.0, 1.0)))
    return replace(make_costs(stages=(1, 2)), parts=parts, num_layers=layers, splits=even)


def test_the_head_counts_as_layers() -> None:
    costs = with_layers(INSTANCE, {"x": heavy_head()}, LayerSplit.AUTO)["x"]
    assert costs.layers_per_stage(2) == (6, 2)  # the head takes as long as four layers
    assert costs.layers_per_stage(1) == (8,)


def test_a_plan_names_its_layers_and_is_better_than_one_of_even_stages() -> None:
    costs = {"x": heavy_head()}
    free = make_plan(INSTANCE, OPTIONS, costs)
    even = make_plan(INSTANCE, replace(OPTIONS, layers=LayerSplit.EVEN), costs)
    assert [r.layers_per_stage for r in free.replicas] == [(6, 2)]
    assert [r.layers_per_stage for r in even.replicas] == [(4, 4)]
    # the busiest stage has as much as 6 layers to run instead of 8; the ways down and up make the rest
    assert 6 / 8 < free.objective_value / even.objective_value < 0.8
    for plan in (free, even):
        assert check(plan, INSTANCE, costs).violations == ()
    other = free.model_copy(
        update={"replicas": tuple(r.model_copy(update={"layers_per_stage": (5, 3)}) for r in free.replicas)}
    )
    assert check(other, INSTANCE, costs).violations  # its times are not those of 5 and 3 layers


def test_baselines_run_on_the_same_layers() -> None:
    plan = baseline_plan("grouped", INSTANCE, {"x": heavy_head()})
    assert all(r.layers_per_stage == (6, 2) for r in plan.replicas if r.num_stages == 2)


def test_without_parts_layers_stay_as_they_were_measured() -> None:
    costs = {"x": replace(make_costs(stages=(1, 2)), num_layers=8, splits={2: (6, 2)})}
    assert with_layers(INSTANCE, costs, LayerSplit.AUTO)["x"].layers_per_stage(2) == (6, 2)
    with pytest.raises(InputError, match="layers_per_stage"):
        make_plan(INSTANCE, replace(OPTIONS, layers=LayerSplit.EVEN), costs)
