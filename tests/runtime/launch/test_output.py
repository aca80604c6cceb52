"""Results are put in their place whole, and nothing else is left."""

from pathlib import Path

import pytest

from cappuccino.errors import InputError
from cappuccino.runtime.launch.output import OutputFolder


def folder_with(text: str):
    def write(path: Path) -> None:
        path.mkdir()
        (path / "file").write_text(text)

    return write


def test_results_replace_what_has_their_name(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        with OutputFolder(out) as output:
            output.put("adapter", folder_with(text))
            assert (out / "adapter" / "file").read_text() == text  # at once
            output.put(f"{text}.json", lambda path: path.write_text("{}"))
    assert sorted(p.name for p in out.iterdir()) == ["adapter", "first.json", "second.json"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail(path: Path) -> None:
        folder_with("half")(path)
        raise OSError(28, "No space left on device")

    with OutputFolder(out) as output:
        output.put("adapter", folder_with("whole"))
        with pytest.raises(InputError, match=r"out/adapter: cannot be written \(No space left on device\); free space"):
            output.put("adapter", fail)
    assert (out / "adapter" / "file").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("put", [False, True])
def test_an_error_leaves_what_was_put_and_no_empty_folder(tmp_path: Path, put: bool) -> None:
    def run() -> None:
        with OutputFolder(tmp_path / "out") as output:
            (output.out / "checkpoints" / "a").mkdir(parents=True)
            if put:
                output.put("adapter", folder_with("whole"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if put else [])
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path / "kept"):
        raise ZeroDivisionError
    assert (tmp_path / "kept").is_dir()  # it was there before


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out: cannot be written"), OutputFolder(tmp_path / "file" / "out"):
        pass
