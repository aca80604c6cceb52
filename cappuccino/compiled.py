"""Compiles inner loops with Numba; they release the interpreter lock, so threads run them in parallel."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of numbers and arrays at its first call, and keep the machine code on disk."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))
