"""Compiles inner loops with Numba; they release the interpreter lock, so threads run them in parallel."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function of numbers and arrays at its first call, and keep the machine code on disk where that can be.

    It is kept beside the source or in the user's cache folder; where neither can be written, in a private folder of the
    system's temporary one; where not even there, every process compiles anew.
    """
    try:
        return _compiled(function, cache=True)
    except RuntimeError:  # Numba has found no folder that it can write
        folder = _private_folder()
        if folder is None:
            return _compiled(function, cache=False)
        numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
        return _compiled(function, cache=True)


def _compiled(function: F, cache: bool) -> F:
    return cast(F, numba.njit(cache=cache, nogil=True)(function))


def _private_folder() -> Path | None:
    """Return a folder for machine code that no other user can put anything into; None where there is none."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"cappuccino-kernels-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    mine = folder.is_dir() and not folder.is_symlink() and status.st_uid == user and not status.st_mode & 0o077
    return folder if mine else None
