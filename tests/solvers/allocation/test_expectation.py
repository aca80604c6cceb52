from dataclasses import replace

import numpy as np
import pytest

from cappuccino.plan import Recompute
from cappuccino.solvers.allocation.expectation import Expectation
from cappuccino.solvers.allocation.pricing import Place
from cappuccino.solvers.settings import DEFAULT

BUBBLE, FRICTION = DEFAULT.allocation.bubble, DEFAULT.allocation.friction
# two kinds: work and path of 10 s, and work of 30 s with a path of 10 s
SHARES = np.array([10.0, 30.0])
PATHS = np.array([10.0, 10.0])
PLACES = [Place("x", g, float(g), 0.0, SHARES, PATHS) for g in (1, 2, 4, 8)]
SETS = np.array([[1, 0], [0, 1], [1, 1]])


def excess(expectation: Expectation, place: int, sets: np.ndarray = SETS) -> np.ndarray:
    bounds = PLACES[place].makespans(sets)
    return expectation.makespans(place, sets, bounds) / bounds - 1


def test_deep_pipelines_and_long_paths_end_late():
    fresh = Expectation(PLACES)
    assert excess(fresh, 0) == pytest.approx([FRICTION] * 3)
    assert excess(fresh, 2)[0] == pytest.approx(4 * FRICTION + 3 * BUBBLE)
    tight, slack, more_slack = excess(fresh, 2)
    assert tight > slack > more_slack > 4 * FRICTION
    assert excess(fresh, 3)[0] > excess(fresh, 2)[0] > excess(fresh, 1)[0]


def test_a_path_longer_than_the_work_leaves_room():
    idle = [Place("x", 4, 4.0, 0.0, np.array([2.0, 10.0]), np.array([10.0, 10.0]))]
    expectation = Expectation(idle)
    bounds = idle[0].makespans(np.eye(2, dtype=int))
    short, full = expectation.makespans(0, np.eye(2, dtype=int), bounds) / bounds - 1
    assert short < full


def test_schedules_correct_what_is_expected_of_their_like():
    expectation, fresh = Expectation(PLACES), Expectation(PLACES)
    before = excess(fresh, 2)
    expectation.observe(2, SETS[0], 10.0, 10.0)  # at its bound
    after = excess(expectation, 2)
    assert after[0] < 0.3 * before[0]  # most of the same set
    assert after[0] / before[0] < after[1] / before[1] <= 1  # little of one with much more work
    assert (excess(expectation, 3)[0] / excess(fresh, 3)[0]) > after[0] / before[0]  # less at another depth


def test_many_schedules_outweigh_the_rule():
    expectation = Expectation(PLACES)
    for _ in range(50):
        expectation.observe(1, SETS[2], 40.0, 60.0)
    assert expectation.makespans(1, SETS[2:], np.array([40.0]))[0] == pytest.approx(60.0, rel=0.01)


def test_schedules_say_little_of_another_recomputation_or_gpu():
    like = PLACES[2]
    places = [like, replace(like, recompute=Recompute.FULL), replace(like, gpu="y")]
    expectation, fresh = Expectation(places), Expectation(places)
    bounds = like.makespans(SETS)
    for _ in range(3):  # memory is scarce there: twice the bound
        expectation.observe(0, SETS[2], 40.0, 80.0)
    same, mode, gpu = (expectation.makespans(k, SETS, bounds)[2] for k in range(3))
    before = fresh.makespans(1, SETS, bounds)[2]
    assert mode == gpu
    assert before < mode < before + (same - before) / 2
