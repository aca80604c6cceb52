"""Seeds drawn by hypothesis, the same ones in every run: of a failure it shows the smallest that it finds."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st


def seeds(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that calls a test with `count` seeds, its argument `seed`."""

    def decorated(test: Callable[..., Any]) -> Callable[..., Any]:
        drawn = given(seed=st.integers(0, 2**20))(test)
        return settings(max_examples=count, deadline=None, derandomize=True)(drawn)

    return decorated
