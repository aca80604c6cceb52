"""How the seed's allocator groups adapters: by the lengths of their micro-batches.

Legend: A adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import cdist, squareform

from cappuccino.instance import Instance

BINS = 16
FEWEST_CLUSTERS, MOST_CLUSTERS = 2, 8
_EMD, _P90, _P99, _TAIL, _SPREAD = 0.45, 0.20, 0.15, 0.10, 0.10
"""Weights of the parts of the distance."""


@dataclass(frozen=True)
class LengthFeatures:
    """What the distance looks at: the longest lengths of each adapter's own micro-batches; shape (A,) each."""

    p50: np.ndarray
    p90: np.ndarray
    p99: np.ndarray
    histogram: np.ndarray
    """Fractions in equal bins from 1 to the longest sequence length allowed, shape (A, BINS)."""
    bin_tokens: float
    """Width of a bin."""

    @property
    def spread(self) -> np.ndarray:
        """How far p90 is above the median, as a fraction of the median."""
        return np.asarray((self.p90 - self.p50) / self.p50)

    @property
    def tail(self) -> np.ndarray:
        """p99 as a multiple of p90."""
        return np.asarray(self.p99 / self.p90)

    @classmethod
    def of(cls, instance: Instance) -> "LengthFeatures":
        """Return the features of every adapter, over its whole dataset."""
        longest = [
            micro_batch_maxima(instance.dataset_lengths[job.dataset], job.micro_batch_size) for job in instance.adapters
        ]
        edges = np.linspace(1, max(instance.max_sequence_length, 2), BINS + 1)
        p50, p90, p99 = np.array([np.quantile(x, (0.5, 0.9, 0.99)) for x in longest]).T
        histogram = np.array([np.histogram(x, bins=edges)[0] / len(x) for x in longest])
        return cls(p50, p90, p99, histogram, float(edges[1] - edges[0]))


def micro_batch_maxima(lengths: np.ndarray, micro_batch_size: int) -> np.ndarray:
    """Return the longest of every `micro_batch_size` consecutive lengths; the last ones may be fewer."""
    return np.maximum.reduceat(lengths, np.arange(0, len(lengths), micro_batch_size))


def distances(features: LengthFeatures) -> np.ndarray:
    """Return the distance of every two adapters, shape (A, A).

    0.45 x earth mover's distance of the histograms (tokens) + 0.20 x relative difference of p90 + 0.15 x that of p99
    + 0.10 x difference of the tails + 0.10 x difference of the spreads.
    """
    cumulated = np.cumsum(features.histogram, axis=1)
    return np.asarray(
        _EMD * features.bin_tokens * cdist(cumulated, cumulated, "cityblock")
        + _P90 * _relative_difference(features.p90)
        + _P99 * _relative_difference(features.p99)
        + _TAIL * _difference(features.tail)
        + _SPREAD * _difference(features.spread)
    )


def _difference(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(values[:, None] - values))


def _relative_difference(values: np.ndarray) -> np.ndarray:
    return np.asarray(_difference(values) / np.maximum(values[:, None], values))


def clusterings(distance: np.ndarray) -> Iterator[list[list[int]]]:
    """Yield groupings by average linkage into 2 to 8 clusters, best silhouette first, at last everything in one.

    Among equal silhouettes the grouping with less distance inside its clusters comes first. As many clusters as
    adapters have no silhouette and come after those that do.

    Parameters
    ----------
    distance
        Symmetric, zero on the diagonal, shape (A, A).
    """
    count = len(distance)
    if count > 1:
        merges = linkage(squareform(distance, checks=False), method="average")
        scored = []
        for clusters in range(FEWEST_CLUSTERS, min(MOST_CLUSTERS, count) + 1):
            labels = cut_tree(merges, n_clusters=clusters)[:, 0]
            inside = float(distance[labels[:, None] == labels].sum())
            scored.append((-round(silhouette(distance, labels), 9), inside, clusters, labels))
        for *_, labels in sorted(scored, key=lambda s: s[:3]):
            groups = [np.flatnonzero(labels == k).tolist() for k in range(labels.max() + 1)]
            yield sorted(groups)
    yield [list(range(count))]


def silhouette(distance: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette, between -1 and 1; -1 where it is undefined: one cluster, or as many as adapters.

    An adapter's silhouette is `(b - a) / max(a, b)`, a its mean distance to the others of its cluster and b that to the
    nearest other cluster; 0 where it is alone.
    """
    count = len(labels)
    members = np.eye(labels.max() + 1, dtype=bool)[labels]  # (A, clusters)
    sizes = members.sum(axis=0)
    if not 1 < len(sizes) < count:
        return -1.0
    sums = distance @ members
    own = sums[members] / np.maximum(sizes[labels] - 1, 1)
    nearest = np.where(members, np.inf, sums / sizes).min(axis=1)
    larger = np.maximum(own, nearest)
    score = np.divide(nearest - own, larger, out=np.zeros(count), where=larger > 0)
    return float(np.where(sizes[labels] > 1, score, 0.0).mean())
