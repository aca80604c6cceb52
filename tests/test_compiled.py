"""Where Numba finds no folder for its machine code."""

import os
import stat

import numba
import pytest

from cappuccino import compiled as module


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No folder to write but the temporary one, as for a container's user without a home."""
    made = []

    def njit(cache, nogil):
        if cache and numba.config.CACHE_DIR == "":
            raise RuntimeError("cannot cache function 'f': no locator available")
        made.append(cache)
        return lambda function: function

    monkeypatch.setattr(module.numba, "njit", njit)
    monkeypatch.setattr(module.numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    return made


def test_machine_code_is_kept_in_a_private_temporary_folder(nowhere, tmp_path):
    assert module.compiled(abs) is abs
    (folder,) = tmp_path.iterdir()
    assert str(folder) == numba.config.CACHE_DIR
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert nowhere == [True]


@pytest.mark.parametrize("kind", ["open to all", "a link", "a file"])
def test_a_folder_that_others_may_have_filled_is_not_used(nowhere, tmp_path, kind):
    folder = tmp_path / f"cappuccino-kernels-{os.getuid()}"
    if kind == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "other")
    else:
        folder.write_text("")
    assert module.compiled(abs) is abs
    assert numba.config.CACHE_DIR == ""
    assert nowhere == [False]


def test_without_any_folder_every_process_compiles_anew(nowhere, monkeypatch):
    def none():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(module.tempfile, "gettempdir", none)
    assert module.compiled(abs) is abs
    assert nowhere == [False]
