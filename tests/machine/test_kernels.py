import os
import sys
from importlib.machinery import ModuleSpec

import pytest

from cappuccino.machine import kernels
from cappuccino.machine.kernels import KernelCache, kernel_cache

TAG = f"py{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two modules of compiled functions and one without."""
    folder = tmp_path / "package"
    folder.mkdir()
    for name in ("moves", "costs"):
        (folder / f"{name}.py").write_text("import x\n\n\n@compiled\ndef price():\n    ...\n")
    (folder / "plain.py").write_text("def price():\n    ...\n")
    spec = ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return folder


def put(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder / name


def test_machine_code_is_found_where_numba_puts_it(package, tmp_path, monkeypatch):
    assert kernel_cache() == KernelCache(2, 0)
    put(package / "__pycache__", f"moves.price-4.{TAG}.nbi")
    assert kernel_cache() == KernelCache(2, 1)
    put(tmp_path / "cache" / "numba" / "package_ab12", f"costs.price-4.{TAG}.nbi")
    assert kernel_cache() == KernelCache(2, 2)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    assert kernel_cache() == KernelCache(2, 0)
    put(tmp_path / "named" / "package_ab12", f"costs.price-4.{TAG}.nbi")
    assert kernel_cache() == KernelCache(2, 1)


def test_machine_code_of_another_python_or_of_an_older_source_counts_not(package):
    put(package / "__pycache__", "moves.price-4.py27.nbi")
    old = put(package / "__pycache__", f"costs.price-4.{TAG}.nbi")
    os.utime(old, (1, 1))
    assert kernel_cache() == KernelCache(2, 0)
