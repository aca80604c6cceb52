"""Which compiled inner loops lie ready on disk, told by the files: importing them would load Numba, or compile."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_MARK = "\n@compiled\n"
_PACKAGES = ("cappuccino", "cappuccino.solvers")


@dataclass(frozen=True)
class KernelCache:
    """How much of the compiled code is there."""

    modules: int
    """With compiled functions."""
    cached: int
    """Of these, whose machine code is on disk and newer than their source."""


def kernel_cache() -> KernelCache:
    """Return how many modules with compiled functions have their machine code on disk."""
    sources = list(_sources())
    return KernelCache(len(sources), sum(map(_is_cached, sources)))


def _sources() -> Iterator[Path]:
    packages = [found for name in _PACKAGES if (found := find_spec(name))]
    roots = [Path(root) for package in packages for root in package.submodule_search_locations or ()]
    files = {path.resolve() for root in roots for path in root.rglob("*.py")}
    yield from (path for path in sorted(files) if _MARK in path.read_text(encoding="utf-8"))


def _is_cached(source: Path) -> bool:
    """Return whether Numba finds a module's machine code: in the folder named to it, beside the module, the user's."""
    pattern = f"{source.stem}.*.py{sys.version_info.major}{sys.version_info.minor}*.nbi"
    written = source.stat().st_mtime
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return any(file.stat().st_mtime >= written for file in Path(named).rglob(pattern))
    beside = source.parent / "__pycache__"
    if any(file.stat().st_mtime >= written for file in beside.glob(pattern)):
        return True
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    return any(file.stat().st_mtime >= written for file in users.glob(f"{source.parent.name}_*/{pattern}"))
