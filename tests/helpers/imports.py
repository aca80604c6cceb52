"""Who imports whom, read from the code."""

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"cappuccino": "cappuccino"} | {f: f"cappuccino.{f}" for f in ("models", "solvers", "runtime", "instances")}
"""Folders of the tree and the packages that they are installed as."""


def modules() -> dict[str, Path]:
    """Return the file of every module, by its full name; a package is the module of its `__init__.py`."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imported_names(path: Path) -> set[str]:
    """Return all dotted names that a file imports, wherever it does; those of `from a import b` as `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module: str, files: Mapping[str, Path]) -> str:
    """Return the package that a module is part of; a module at the root of a floor is a room of its own."""
    package = module if files[module].name == "__init__.py" else module.rsplit(".", 1)[0]
    return (module if package in FOLDERS.values() else package).removeprefix("cappuccino.")


def room_imports() -> dict[str, set[str]]:
    """Return the rooms that every room imports from, lazily or not."""
    files = modules()
    found: dict[str, set[str]] = {room(m, files): set() for m in files}
    for module, path in files.items():
        names = imported_names(path) & set(files)
        deepest = {n for n in names if not any(other.startswith(f"{n}.") for other in names)}
        used = {room(n, files) for n in deepest}
        found[room(module, files)] |= used - {room(module, files)}
    return found
