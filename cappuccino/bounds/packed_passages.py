"""Passages of an adapter's optimizer steps over all packings of their samples."""

from typing import NamedTuple

import numpy as np

from cappuccino.bounds.passage import combinations, fastest_places, packings, passage_bounds


class PackedPassages(NamedTuple):
    """Passages of steps, as `passage_bounds` takes and returns them."""

    forward_s: np.ndarray
    backward_s: np.ndarray
    bounds_s: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls, forward_s: np.ndarray, backward_s: np.ndarray, fits: np.ndarray, count: int, num_stages: int
    ) -> "PackedPassages":
        """Look at all packings of `count` samples; the other parameters are those of `passage_bounds`."""
        found = passage_bounds(forward_s, backward_s, fits, packings(count), combinations(), num_stages)
        return cls(forward_s, backward_s, *found)

    def places(self, count: int, num_stages: int) -> np.ndarray:
        """Return packing and order of the fastest passages, as `fastest_places` does."""
        return np.asarray(fastest_places(*self, packings(count), num_stages))
