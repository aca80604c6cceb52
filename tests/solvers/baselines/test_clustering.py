from dataclasses import replace

import numpy as np
import pytest
from helpers.baseline_instances import with_micro_batches
from helpers.builders import make_instance

from cappuccino.solvers.baselines.clustering import (
    LengthFeatures,
    clusterings,
    distances,
    micro_batch_maxima,
    silhouette,
)


def test_micro_batch_maxima():
    assert micro_batch_maxima(np.array([3, 1, 4, 1, 5]), 2).tolist() == [3, 4, 5]


def test_features_of_a_known_distribution():
    # micro-batches of 2: maxima 10, 20, ..., 100; quantiles interpolate between them
    lengths = [v for top in range(10, 101, 10) for v in (1, top)]
    instance = replace(make_instance((lengths, 2)), max_sequence_length=161)
    features = LengthFeatures.of(with_micro_batches(instance, 2))
    assert features.p50[0] == pytest.approx(55)
    assert features.p90[0] == pytest.approx(91)
    assert features.p99[0] == pytest.approx(99.1)
    assert features.spread[0] == pytest.approx((91 - 55) / 55)
    assert features.tail[0] == pytest.approx(99.1 / 91)
    # 16 bins from 1 to 161, 10 tokens wide: each maximum falls into one of its own
    assert features.bin_tokens == 10
    assert features.histogram[0].tolist() == [0.1] * 10 + [0] * 6


def test_distance_of_two_adapters():
    # all samples of 11 and of 21 tokens: bins 1 and 2 of 10 tokens, so the earth mover's distance is 10 tokens;
    # p90 and p99 differ by 10 of 21; spreads are 0, tails 1
    instance = replace(make_instance(([11] * 4, 1), ([21] * 4, 1)), max_sequence_length=161)
    found = distances(LengthFeatures.of(instance))
    assert found[0, 1] == pytest.approx(0.45 * 10 + (0.20 + 0.15) * 10 / 21)
    assert found[0, 1] == found[1, 0]
    assert found[0, 0] == 0


def test_the_obvious_clusters_come_first():
    rng = np.random.default_rng(0)
    jobs = [((rng.integers(10, 20, 40) + 900 * (i % 2)).tolist(), 4) for i in range(6)]
    instance = replace(make_instance(*jobs), max_sequence_length=1000)
    found = list(clusterings(distances(LengthFeatures.of(instance))))
    assert found[0] == [[0, 2, 4], [1, 3, 5]]
    assert [len(x) for x in found[1:]].count(1) == 1
    assert found[-1] == [[0, 1, 2, 3, 4, 5]]


def test_clusterings_of_few_adapters():
    assert list(clusterings(np.zeros((1, 1)))) == [[[0]]]
    assert list(clusterings(np.array([[0.0, 1.0], [1.0, 0.0]]))) == [[[0], [1]], [[0, 1]]]


def test_equal_adapters_fall_into_as_many_clusters_as_asked():
    # all distances 0: every number of clusters has silhouette 0, but as many as adapters have none
    found = list(clusterings(np.zeros((4, 4))))
    assert sorted(len(x) for x in found) == [1, 2, 3, 4]
    assert [len(x) for x in found[-2:]] == [4, 1]


def test_silhouette_by_hand():
    # points 0, 1 and 10 on a line, {0, 1} and {10}: a = 1, b = 10 and 9; the point alone counts 0
    points = np.array([0.0, 1.0, 10.0])
    distance = np.abs(points[:, None] - points)
    assert silhouette(distance, np.array([0, 0, 1])) == pytest.approx((0.9 + 8 / 9 + 0) / 3)
    assert silhouette(distance, np.array([0, 1, 2])) == -1
    assert silhouette(distance, np.array([0, 0, 0])) == -1
