"""Files of lines, read while they grow."""

from pathlib import Path

from cappuccino.files import Record
from cappuccino.runtime.monitoring.lines import LineReader, LineWriter


class Note(Record):
    text: str


def test_half_a_line_is_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "made" / "notes.jsonl"
    reader = LineReader(file)
    assert reader.read() == []  # nothing there yet
    writer = LineWriter(file)
    writer.write(Note(text="über\nzwei"))
    first, second = b'{"text":"\xc3\xbcber\\nzwei"}', b'{"text":"next"}'
    assert reader.read() == [first]
    with file.open("ab") as stream:
        stream.write(second[:7])
    assert reader.read() == []
    with file.open("ab") as stream:
        stream.write(second[7:] + b"\n" + first)
    assert reader.read() == [second]
    writer.close()
    assert file.read_bytes() == first + b"\n" + second + b"\n" + first


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    for text in ("one", "two"):
        writer = LineWriter(tmp_path / "notes")
        writer.write(Note(text=text))
        writer.close()
    assert LineReader(tmp_path / "notes").read() == [b'{"text":"one"}', b'{"text":"two"}']
