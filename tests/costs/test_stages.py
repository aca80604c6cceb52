"""How layers are shared out to stages, against all ways to do it."""

from itertools import product

import numpy as np
import pytest

from cappuccino.costs import SmoothMaximum
from cappuccino.costs.stages import StageParts, balanced_layers
from cappuccino.plan import even_layers


@pytest.mark.parametrize("seed", range(12))
def test_no_split_has_a_smaller_largest_load(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stages, layers = int(rng.integers(1, 5)), int(rng.integers(5, 10))
    layer, fixed = float(rng.uniform(0.5, 2)), rng.uniform(0, 8, stages).tolist()

    def load(split: tuple[int, ...]) -> float:
        return max(f + n * layer for f, n in zip(fixed, split, strict=True))

    found = balanced_layers(layers, layer, fixed)
    assert sum(found) == layers
    assert min(found) >= 1
    splits = [s for s in product(range(1, layers + 1), repeat=stages) if sum(s) == layers]
    assert load(found) == pytest.approx(min(map(load, splits)))


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_stages_with_layers_only_are_even(stages: int) -> None:
    assert balanced_layers(7, 1.0, [0.0] * stages) == even_layers(7, stages)


def test_every_stage_by_hand() -> None:
    # a layer takes 1 s and 2 s, the head a second per 10 tokens each way, laying out 0.5 s
    def constant(seconds: float) -> SmoothMaximum:
        return SmoothMaximum(seconds, 0.0, 0.0, 1.0)

    head = SmoothMaximum(0.0, 0.1, 0.0, 1.0)
    parts = StageParts((constant(1.0), constant(2.0)), (head, head), constant(0.5))
    found = parts.pipeline((3, 2))
    forward, backward = found.times(np.array([10.0, 50.0]), np.array([0.0, 0.0]))
    np.testing.assert_allclose(forward, [[3.5, 3.5], [2 + 1 + 0.5, 2 + 5 + 0.5]])
    np.testing.assert_allclose(backward, [[6.0, 6.0], [4 + 1, 4 + 5]])
    assert found.kinds == (0, 1)
    assert found.busiest == 1  # only the head takes longer with more tokens
    assert parts.balanced(5, 2, 10.0, 0.0) == (3, 2)
    assert parts.balanced(5, 2, 50.0, 0.0) == (4, 1)
