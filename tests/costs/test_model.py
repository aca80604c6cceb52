from dataclasses import replace

import numpy as np
import pytest

from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum, micro_batch_shape
from cappuccino.costs.memory import KeptMemory
from cappuccino.costs.model import EXTRAPOLATION_MEMORY_MARGIN, RESERVED_MEMORY
from cappuccino.costs.stages import StageParts
from cappuccino.errors import InvalidPlanError

CURVE = SmoothMaximum(floor_s=3.0, per_token_s=0.5, per_square_s=0.25, power=2.0)
MODEL = CostModel(
    backbone="b",
    gpu="x",
    forward=SmoothMaximum(6.0, 1.0, 0.0, 4.0),
    backward=SmoothMaximum(12.0, 2.0, 0.0, 4.0),
    memory={2: MemoryModel(30.0, 0.25, 0.5), 4: MemoryModel(20.0, 0.5, 0.125)},
)


def test_shapes_of_a_micro_batch():
    assert micro_batch_shape([3, 5], "packed") == (8, 34)
    assert micro_batch_shape([3, 5], "padded") == (10, 50)


def test_a_pythagorean_point():
    # work 0.5 x 4 + 0.25 x 8 = 4, with the floor of 3 and the power of 2: 5
    assert CURVE.work(4, 8) == 4
    assert CURVE(4, 8) == pytest.approx(5)


def test_limits_are_the_floor_and_the_work():
    assert CURVE(0, 0) == pytest.approx(3)
    assert CURVE(1e9, 0) == pytest.approx(0.5e9)
    steep = replace(CURVE, power=16.0)
    assert steep(2, 0) == pytest.approx(3, rel=1e-6)  # work 1 of 3: (1/3)^16 is nothing
    assert steep.of_work(3.0) == pytest.approx(3 * 2 ** (1 / 16))  # the launch-bound work


def test_no_floor_leaves_the_work_and_no_work_the_floor():
    assert replace(CURVE, floor_s=0.0)(4, 8) == 4
    assert replace(CURVE, floor_s=0.0)(0, 0) == 0
    assert replace(CURVE, per_token_s=0.0, per_square_s=0.0)(100, 100) == pytest.approx(3)


def test_large_powers_do_not_overflow():
    assert replace(CURVE, power=16.0)(1e30, 0) == pytest.approx(0.5e30)


def test_times_are_convex_in_the_work_and_above_it():
    work = np.linspace(0, 20, 401)
    times = CURVE.of_work(work)
    assert (times >= np.maximum(work, 3)).all()
    assert (np.diff(times, 2) >= -1e-12).all()
    assert (np.diff(times / np.maximum(work, 1e-9)) <= 0).all()  # ever more efficient


def test_scaled():
    half = CURVE.scaled(0.5)
    assert half(4, 8) == pytest.approx(2.5)
    assert half.power == CURVE.power


def test_memory_model():
    memory = MemoryModel(static_gib=10.0, working_gib=2.0, held_gib=0.5)
    assert memory.peak(4, 6) == 10 + 8 + 3
    # alone, a token takes 2.5: 40 - 10 = 30 are 12 tokens, 32.4 after all too few for 13
    assert memory.max_tokens(40) == 12
    assert memory.max_tokens(42.4) == 12
    assert memory.max_tokens(42.5) == 13
    assert memory.max_tokens(10) == memory.max_tokens(5) == 0
    assert MemoryModel(10.0, 0.0, 0.0).max_tokens(11) >= 10**9


def test_stages_share_the_backbone_unless_measured():
    forward, backward = float(MODEL.forward(30, 0)), float(MODEL.backward(30, 0))
    assert MODEL.pipeline(3).times(30, 0).tolist() == [pytest.approx([t / 3] * 3) for t in (forward, backward)]
    measured = replace(MODEL, stage_forward={3: CURVE})
    assert measured.pipeline(3).times(30, 0)[0].tolist() == [float(CURVE(30, 0))] * 3
    assert measured.pipeline(2).times(30, 0)[0].tolist() == pytest.approx([forward / 2] * 2)
    assert measured.pipeline(3).times(30, 0)[1].tolist() == pytest.approx([backward / 3] * 3)


def with_parts() -> CostModel:
    """Seven layers of 1 s a token forward and 2 s backward, a head that takes twice as long as a layer."""
    layer = SmoothMaximum(0.0, 1.0, 0.0, 1.0), SmoothMaximum(0.0, 2.0, 0.0, 1.0)
    head = layer[0].scaled(2.0), layer[1].scaled(2.0)
    parts = StageParts(layer, head, SmoothMaximum(0.0, 0.0, 0.0, 1.0))
    measured = {2: (5, 2), 4: (2, 2, 2, 1)}
    kept = dict.fromkeys(measured, KeptMemory(layer_gib=3.0, layer_token_gib=0.0625, head_token_gib=0.125))
    return replace(
        MODEL, parts={2: parts, 4: parts}, num_layers=7, splits=measured, measured_splits=measured, kept=kept
    )


def test_stages_take_what_their_layers_and_the_head_take():
    model = with_parts()
    assert model.pipeline(2).times(1, 0).tolist() == [[5, 4], [10, 8]]
    other = model.of_layers(2, (4, 3))
    assert other.layers_per_stage(2) == (4, 3)
    assert other.pipeline(2).times(1, 0).tolist() == [[4, 5], [8, 10]]
    assert other.pipeline(4).times(1, 0)[0].tolist() == [2, 2, 2, 3]
    assert model.of_layers(2, (5, 2)) is model
    assert model.of_layers(2, None).layers_per_stage(2) == (4, 3)  # none said: even
    assert model.pipeline(3).times(1, 0)[0].tolist() == [3, 2, 4]  # nobody measured three: the deepest's parts


def test_memory_follows_the_layers():
    model = with_parts()
    profiled = MODEL.memory[2]
    assert model.memory_model(2) == profiled
    # a layer more on the fullest stage weighs 3 GiB; a token is held by 6 layers instead of 5, by the last stage less
    assert model.of_layers(2, (6, 1)).memory_model(2) == MemoryModel(33.0, 0.25, 0.5 + 0.0625)
    # a layer less weighs nothing less; 3 layers and the head hold as much of a token as 5 layers
    assert model.of_layers(2, (4, 3)).memory_model(2) == profiled
    # 6 layers and the head, as much as 8 layers
    assert model.of_layers(2, (1, 6)).memory_model(2) == MemoryModel(33.0, 0.25, 0.5 + 3 * 0.0625)


def test_layers_that_nobody_can_cost_are_refused():
    measured = replace(MODEL, num_layers=7, splits={2: (5, 2)})
    with pytest.raises(InvalidPlanError, match=r"not those of layers \(4, 3\)"):
        measured.of_layers(2, (4, 3))
    with pytest.raises(InvalidPlanError, match="split evenly"):
        measured.of_layers(2, None)
    assert measured.of_layers(3, (2, 2, 3)) is measured  # as even as (3, 2, 2)
    with pytest.raises(InvalidPlanError):
        with_parts().of_layers(2, (5, 5))


def test_transfer_time():
    assert replace(MODEL, transfer=(1.0, 0.5)).transfer_time([0, 4]).tolist() == [1.0, 3.0]


def test_extrapolated_memory_has_a_margin():
    assert MODEL.memory_model(2) == MODEL.memory[2]
    assert not MODEL.extrapolated(2) and MODEL.extrapolated(3)
    # static a + b / g through (2, 30), (4, 20): b = 40, a = 10; at 1 stage 50, at 8 stages 15
    # working at most 0.5, per token in flight and running together at most 0.75
    for g, static in ((1, 50), (8, 15)):
        found = MODEL.memory_model(g)
        assert EXTRAPOLATION_MEMORY_MARGIN > 1
        assert found.static_gib == pytest.approx(static * EXTRAPOLATION_MEMORY_MARGIN)
        assert found.working_gib == pytest.approx(0.5 * EXTRAPOLATION_MEMORY_MARGIN)
        assert found.working_gib + found.held_gib == pytest.approx(0.75 * EXTRAPOLATION_MEMORY_MARGIN)


def test_extrapolated_memory_from_one_stage_count():
    one = replace(MODEL, memory={2: MemoryModel(30.0, 0.25, 0.5)})
    assert one.memory_model(1).static_gib == pytest.approx(60 * EXTRAPOLATION_MEMORY_MARGIN)
    assert one.memory_model(4).static_gib == pytest.approx(30 * EXTRAPOLATION_MEMORY_MARGIN)


def test_extrapolated_memory_holds_at_least_the_weights():
    heavy = replace(MODEL, weights_gib=400.0)
    assert heavy.memory_model(8).static_gib == pytest.approx(50 * EXTRAPOLATION_MEMORY_MARGIN)


def test_stage_counts_worth_considering():
    assert MODEL.stage_counts(16) == (1, 2, 3, 4, 5, 6, 7, 8)  # up to twice the largest profiled one
    assert MODEL.stage_counts(3) == (1, 2, 3)
    assert MODEL.stage_counts(16, profiled_only=True) == (2, 4)
    assert replace(MODEL, num_layers=3).stage_counts(16) == (1, 2, 3)
    assert MODEL.stage_counts(1, profiled_only=True) == ()


def test_memory_limit():
    assert MODEL.memory_limit(100) == pytest.approx(100 * (1 - RESERVED_MEMORY))
    assert replace(MODEL, usable_memory_gib=36.0).memory_limit(100) == 36
    assert replace(MODEL, usable_memory_gib=36.0).memory_limit(24) == pytest.approx(24 * (1 - RESERVED_MEMORY))
    # at 4 stages 36 - 20 = 16 GiB for tokens of 0.625
    assert replace(MODEL, usable_memory_gib=36.0).max_tokens(4, 100) == 25


def test_max_tokens_are_those_that_fit_exactly():
    # 3 tokens of 0.1 GiB in 0.3 GiB: 0.3 / 0.1 is 2.9999999999999996 in floating point
    assert MemoryModel(0.0, 0.0, 0.1).max_tokens(0.3) == 3
