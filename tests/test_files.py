import hashlib
import os

import pytest
from pydantic import BaseModel, ConfigDict

from cappuccino.errors import CappuccinoError, InputError
from cappuccino.files import new_folder, parse_model, read_json, read_text, sha256, write_atomically


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[_Inner]


def test_error_states_source_field_problem_and_remedy():
    error = InputError("a.json", "x[0].y", "-1 is not allowed", "give more")
    assert str(error) == "a.json: x[0].y: -1 is not allowed; give more"
    assert (error.source, error.field, error.problem, error.remedy) == (
        "a.json",
        "x[0].y",
        "-1 is not allowed",
        "give more",
    )
    assert str(InputError("a.json", "", "file not found", "check the path")) == "a.json: file not found; check the path"
    assert isinstance(error, CappuccinoError)


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old and much longer than the new text")
    write_atomically(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert os.listdir(tmp_path) == ["out.json"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")  # a lone surrogate cannot be encoded
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_failed_replace_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out\.json: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "out.json", "text")
    assert os.listdir(tmp_path) == []


def test_write_over_a_folder_is_an_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(InputError, match=r"out\.json: cannot be written"):
        write_atomically(tmp_path / "out.json", "text")
    assert os.listdir(tmp_path) == ["out.json"]


def test_writing_makes_the_folder(tmp_path):
    write_atomically(tmp_path / "new" / "folder" / "out.json", "text")
    assert (tmp_path / "new" / "folder" / "out.json").read_text() == "text"


def test_write_where_a_file_stands_for_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out\.json: cannot be written .*; name another folder"):
        write_atomically(tmp_path / "file" / "out.json", "text")


def test_repeated_keys_are_refused(tmp_path):
    (tmp_path / "f.json").write_text('{"a": {"rank": 8, "alpha": 1, "rank": 16}}')
    with pytest.raises(InputError, match=r"f\.json: rank: is given twice in one object; keep one of the two"):
        read_json(tmp_path / "f.json")


@pytest.mark.parametrize("escape", [r"\u0000", r"\ud800", r"\udc00", r"\uD83D\u0041", r"\ud83d \ude00", r"\\\ude00"])
def test_escapes_that_stand_for_no_text_are_refused(tmp_path, escape):
    (tmp_path / "f.json").write_text(f'{{"name": "a{escape}"}}')
    with pytest.raises(InputError, match=r"f\.json: holds \\u.{4}, which is no text"):
        read_json(tmp_path / "f.json")


def test_escapes_of_characters_are_read(tmp_path):
    (tmp_path / "f.json").write_text(r'["\ud83d\ude00", "\u00e9\n", "\\u0000", "\\ud83d\u0041"]')
    assert read_json(tmp_path / "f.json") == ["\U0001f600", "é\n", r"\u0000", r"\ud83dA"]


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: file not found; check the path"):
        read_json(tmp_path / "none.json")


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_text(tmp_path)


def test_binary_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"x\.json: is not UTF-8 text \(byte 2\)"):
        read_json(path)


@pytest.mark.parametrize("text", ['{"a": [1, 2', '{"a": "unfinis', '{"a":', "", '{"a": 1,\n'])
def test_truncated_json_is_called_truncated(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json: is truncated at line \d+ column \d+"):
        read_json(path)


def test_wrong_json_names_the_place(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(InputError, match=r"x\.json: is not valid JSON at line 2 column 6"):
        read_json(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(tmp_path, number):
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": {number}}}')
    with pytest.raises(InputError, match=rf"x\.json: contains {number}; .*finite"):
        read_json(path)


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000])
def test_json_that_python_cannot_hold_is_an_input_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(path)


def test_model_errors_name_file_field_and_value():
    assert parse_model(_Outer, {"items": [{"size": 1}]}, "f").items[0].size == 1
    for data, message in (
        ({"items": [{"size": 1}, {"size": "many"}]}, r'^f: items\[1\]\.size: "many" is not allowed; '),
        ({"items": [{}]}, r"^f: items\[0\]\.size: is missing; add it$"),
        ({"items": [], "extra": 1}, r"^f: extra: is not a known field; remove it or correct its name$"),
        ({"items": [{}, {}, {}]}, r"^f: items\[0\]\.size: is missing \(and 2 more\); add it$"),
        ({"items": "x" * 200}, r'^f: items: "x{76}\.\.\. is not allowed; '),
    ):
        with pytest.raises(InputError, match=message):
            parse_model(_Outer, data, "f")


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "a").stat().st_mode
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "c") as folder:
        (folder / "file").write_text("text")
        raise KeyError
    with pytest.raises(InputError, match=r"b: is there already; name another"), new_folder(tmp_path / "a" / "b"):
        raise AssertionError("begun in vain")
    with (
        pytest.raises(InputError, match=r"file/c: cannot be written .*; name another folder"),
        new_folder(tmp_path / "a" / "b" / "file" / "c"),
    ):
        raise AssertionError("begun in vain")
    assert os.listdir(tmp_path / "a") == ["b"]
