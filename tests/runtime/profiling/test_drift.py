"""Drift is taken out of made-up timelines, and noise is not put into them."""

import numpy as np
import pytest

from cappuccino.runtime.profiling.drift import LIMITS, Drift
from cappuccino.runtime.profiling.samples import PointSamples, StepSamples

REFERENCE_S, STEP_S, POINTS, SAMPLES = 5e-3, 2.0, 12, 40


def references(slower: np.ndarray, noise: float, seed: int = 0) -> list[list[list[float]]]:
    """Times of the kernel around every point, of one stage."""
    rng = np.random.default_rng(seed)
    return [[(REFERENCE_S * s * rng.lognormal(0.0, noise, SAMPLES)).tolist()] for s in slower]


def spread_of(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_a_load_of_half_the_time_is_taken_out(noise: float) -> None:
    slower = np.where(np.arange(POINTS) < POINTS // 2, 1.0, 1.8)
    found = references(slower, noise)
    drift = Drift(found)
    corrected = np.array([STEP_S * s / drift.factors(r)[0] for s, r in zip(slower, found, strict=True)])
    assert spread_of(STEP_S * slower) > 0.25
    assert spread_of(corrected) < 0.05 + 0.3 * noise


@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_a_steady_machine_gets_little_noise(noise: float, seed: int) -> None:
    found = references(np.ones(POINTS), noise, seed)
    drift = Drift(found)
    factors = np.array([drift.factors(r)[0] for r in found])
    raw = np.array([np.median(r[0]) for r in found])
    assert drift.trust[0] < 0.7
    assert spread_of(factors) < 0.8 * spread_of(raw)
    assert spread_of(factors) < 0.15 * noise


@pytest.mark.parametrize(("exponent", "strength"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-0.3, 0.0)])
def test_times_that_suffer_less_than_the_kernel_are_divided_by_less(exponent: float, strength: float) -> None:
    slower = np.where(np.arange(POINTS) % 3, 1.0, 2.0)
    seconds = STEP_S * slower**exponent * np.random.default_rng(0).lognormal(0.0, 0.01, POINTS)

    def disagreement(factors: np.ndarray) -> float:
        logs = np.log(seconds / factors)
        return float(np.abs(logs - np.median(logs)).mean())

    found = references(slower, 0.02)
    drift = Drift(found, disagreement=disagreement)
    assert drift.strength == strength
    corrected = seconds / np.array([drift.factors(r)[0] for r in found])
    assert spread_of(corrected) <= spread_of(seconds)


def test_stages_are_corrected_each_by_itself_and_a_slow_one_stays_slow() -> None:
    slower = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.5]]
    found = [[[REFERENCE_S * a] * 3, [3 * REFERENCE_S * b] * 3] for a, b in slower]  # a slow second GPU
    drift = Drift(found)
    np.testing.assert_allclose([drift.factors(r) for r in found], slower)


def test_factors_stay_within_limits() -> None:
    found = [[[REFERENCE_S] * 3], [[REFERENCE_S] * 3], [[100 * REFERENCE_S] * 3], [[REFERENCE_S / 100] * 3]]
    drift = Drift(found)
    assert [drift.factors(r)[0] for r in found] == [1.0, 1.0, LIMITS[1], LIMITS[0]]


def test_rows_of_another_day_say_what_is_usual() -> None:
    drift = Drift([[[2 * REFERENCE_S] * 3, [4 * REFERENCE_S] * 3]], level=1.5 * REFERENCE_S)
    np.testing.assert_allclose(drift.factors([[2 * REFERENCE_S], [4 * REFERENCE_S]]), 2.0)  # their average is 3


def test_a_step_is_as_long_as_its_busiest_stage() -> None:
    step = StepSamples(
        seconds=12.0,
        operations={"F": ((2.0, 2.0), (1.0, 1.0)), "B": ((4.0,), (3.0,)), "S": ((), ())},
        transfers=(0.3,),
        parts={"F layers": ((0.2,), (0.1,))},
        reference_s=((1.0,), (1.0,)),
    )
    scaled = step.scaled((2.0, 1.0))
    assert scaled.operations == {"F": ((1.0, 1.0), (1.0, 1.0)), "B": ((2.0,), (3.0,)), "S": ((), ())}
    assert scaled.parts == {"F layers": ((0.1,), (0.1,))}
    assert scaled.transfers == pytest.approx((0.2,))
    assert scaled.seconds == pytest.approx(12.0 * 5.0 / 8.0)  # 8 s of the first stage before, 5 s of the second now
    point = PointSamples(
        steps=(step, step), peak_mib=(1.0, 2.0), layer_held_bytes=1.0, head_held_bytes=1.0, seconds=30.0
    )
    assert point.scaled((2.0, 1.0)).steps == (scaled, scaled)
    assert point.references() == ((1.0, 1.0), (1.0, 1.0))
