"""Which points are measured next, on a synthetic cost function."""

import numpy as np
import pandas as pd
import pytest

from cappuccino.costs import SmoothMaximum
from cappuccino.costs.fit import fit_smooth_maximum
from cappuccino.runtime.profiling.choice import most_uncertain, spanning_points, uncertainty
from cappuccino.runtime.profiling.grid import Point, ProfileGrid

TRUE = SmoothMaximum(floor_s=0.05, per_token_s=2e-4, per_square_s=1e-7, power=4.0)
"""Flat up to 250 tokens."""


def predictions(rows: list[Point], candidates: list[Point]) -> np.ndarray:
    """What fits say that leave out one row each."""
    frame = pd.DataFrame({"tokens": [p.tokens for p in rows], "squares": [p.tokens * p.length for p in rows]})
    seconds = pd.Series(TRUE(frame["tokens"], frame["squares"]))
    found = []
    for out in range(len(rows)):
        kept = [i for i in range(len(rows)) if i != out]
        curve = fit_smooth_maximum(frame.iloc[kept], seconds.iloc[kept])
        found.append([float(curve(p.tokens, p.tokens * p.length)) for p in candidates])
    return np.array(found)


def test_the_first_points_span_tokens_lengths_and_adapters() -> None:
    chosen = spanning_points(ProfileGrid().points())
    assert [(p.tokens, p.length) for p in chosen[:4]] == [(64, 32), (256, 128), (128, 32), (128, 128)]
    kinds = {(p.num_adapters, p.rank, p.target_modules, p.dropout) for p in chosen[4:]}
    assert len(kinds) == 6  # two and four adapters, rank 64, two other sets of modules, dropout
    # the smallest that four samples of 32 tokens can have; all linear modules in the middle of all tokens
    assert {p.tokens for p in chosen[4:-1]} == {128, 512}
    assert (chosen[-1].num_adapters, chosen[-1].tokens) == (4, 1024)
    whole = [p for p in chosen[4:] if p.target_modules == "all-linear"]
    assert [(p.tokens, p.dropout) for p in whole] == [(512, 0.05), (512, 0.0), (128, 0.05), (128, 0.0)]
    assert chosen[-3:-1] == whole[2:]


def test_a_grid_of_one_point_is_spanned_by_it() -> None:
    grid = ProfileGrid(tokens=(64,), sequence_lengths=(32,), num_adapters=(), ranks=(), target_modules=(), dropout=0.0)
    assert spanning_points(grid.points()) == grid.points()


def test_what_lies_beyond_the_knee_is_uncertain_while_only_small_ones_were_measured() -> None:
    rows = [Point(n, 16) for n in (1, 2, 4, 8, 16, 20)]  # up to 320 tokens
    candidates = [Point(3, 16), Point(64, 16), Point(128, 16)]
    errors = np.sqrt(np.diag(uncertainty(predictions(rows, candidates))))
    assert errors[2] > errors[1] > 2 * errors[0]
    sure = np.sqrt(np.diag(uncertainty(predictions([*rows, Point(48, 16), Point(96, 16)], candidates))))
    assert sure[2] < errors[2]


def test_time_counts_and_what_is_like_a_chosen_one_is_less_uncertain_then() -> None:
    # two groups: 0 and 1 vary together, 2 by itself and less
    covariance = np.array([[0.04, 0.0396, 0.0], [0.0396, 0.04, 0.0], [0.0, 0.0, 0.01]])
    assert most_uncertain(covariance, [1.0, 1.0, 1.0], 2.5) == [0, 2]
    assert most_uncertain(covariance, [9.0, 1.0, 1.0], 2.5) == [1, 2]
    assert most_uncertain(covariance, [9.0, 9.0, 1.0], 10.0) == [2, 0]
    assert most_uncertain(covariance, [1.0, 1.0, 1.0], 3.0) == [0, 2, 1]
    assert most_uncertain(covariance, [1.0, 1.0, 1.0], 0.5) == []


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0.0, 0.1, 40)
    means = np.array([np.delete(values, i).mean() for i in range(len(values))])
    found = uncertainty(np.exp(means)[:, None])
    assert np.sqrt(found[0, 0]) == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)))
