from itertools import product

import numpy as np
import pytest
from helpers.drawn import seeds

from cappuccino.solvers.baselines.partition import best_partition


def table(lengths: np.ndarray, floor: float, room: float) -> np.ndarray:
    """Times of groups that are flat up to `floor` tokens; infinite above `room` tokens."""
    count = len(lengths)
    times = np.full((count, count), np.inf)
    for i, j in product(range(count), range(count)):
        tokens = float(lengths[i : j + 1].sum())
        if i <= j and tokens <= room:
            times[i, j - i] = (floor**4 + tokens**4) ** 0.25
    return times


def objective(times: np.ndarray, sizes: tuple[int, ...], stages: int) -> float:
    begins = np.cumsum((0, *sizes[:-1]))
    chosen = [float(times[b, n - 1]) for b, n in zip(begins, sizes, strict=True)]
    if not np.isfinite(chosen).all():
        return np.inf
    return ((stages - 1) * max(chosen) + sum(chosen)) * (len(chosen) + stages - 1) / len(chosen)


def every_cut(count: int):
    for cut in product((False, True), repeat=count - 1):
        ends = [i + 1 for i, here in enumerate(cut) if here] + [count]
        yield tuple(np.diff([0, *ends]).tolist())


def test_one_group_or_two_by_hand():
    # two micro-batches of 3 s on 2 stages. Times add up: one group (6 + 6) 2 / 1 = 24, two (3 + 6) 3 / 2 = 13.5
    assert best_partition(np.array([[3.0, 6.0], [3.0, np.inf]]), 2).sizes == (1, 1)
    assert best_partition(np.array([[3.0, 6.0], [3.0, np.inf]]), 2).value_s == 13.5
    # a group takes 3 s whatever it holds: one (3 + 3) 2 / 1 = 12, two 13.5
    assert best_partition(np.array([[3.0, 3.0], [3.0, np.inf]]), 2).sizes == (2,)


def random_table(seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(1, 30, int(rng.integers(1, 10))))
    room = max(float(lengths.max()), float(rng.integers(20, 200)))
    return table(lengths, float(rng.integers(0, 40)), room), 1 + seed % 5


@seeds(20)
def test_no_cut_is_better(seed):
    times, stages = random_table(seed)
    found = best_partition(times, stages)
    assert sum(found.sizes) == len(times)
    assert found.value_s == pytest.approx(objective(times, found.sizes, stages))
    assert found.value_s == pytest.approx(min(objective(times, s, stages) for s in every_cut(len(times))))


@seeds(20)
def test_within_the_tolerance(seed):
    times, stages = random_table(seed)
    best = best_partition(times, stages).value_s
    assert best * (1 - 1e-9) <= best_partition(times, stages, tolerance=0.05).value_s <= best / 0.95
