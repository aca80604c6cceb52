from dataclasses import replace

import numpy as np
import pytest

from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum, micro_batch_shape
from cappuccino.costs.model import EXTRAPOLATION_MEMORY_MARGIN, RESERVED_MEMORY

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


def test_transfer_time():
    assert replace(MODEL, transfer=(1.0, 0.5)).transfer_time([0, 4]).tolist() == [1.0, 3.0]


def test_extrapolated_memory_has_a_margin():
    assert MODEL.memory_model(2) is MODEL.memory[2]
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
