"""Journals: written pause by pause, read as they grow."""

from pathlib import Path

from cappuccino.runtime.monitoring.journal import JournalEntry, JournalReader, journal_file
from cappuccino.runtime.monitoring.lines import LineWriter
from cappuccino.runtime.pipeline.part_costs import PartCost

PART = PartCost(kind="F", micro_batch=0, part="layers", seconds=0.5, held_bytes=None)
FIRST = JournalEntry(starts=(), ends=(), memory_gib=(), parts=(), reference_s=(0.1, 0.2))
SECOND = JournalEntry(starts=(1.0, 2.0), ends=(2.0, 3.0), memory_gib=(0.5, 0.6), parts=(PART,), reference_s=(0.3,))


def test_what_is_written_is_read_once(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "journal", 1)
    assert not reader.read()  # nothing there yet
    writer = LineWriter(journal_file(tmp_path / "journal", 1))
    writer.write(FIRST)
    assert reader.read()
    assert (reader.starts, reader.references) == ([], {0: (0.1, 0.2)})
    assert not reader.read()
    writer.write(SECOND)
    assert reader.read()
    assert (reader.starts, reader.ends, reader.memory_gib) == ([1.0, 2.0], [2.0, 3.0], [0.5, 0.6])
    assert reader.parts == [PART]
    assert reader.references == {0: (0.1, 0.2), 2: (0.3,)}


def test_a_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    LineWriter(journal_file(tmp_path, 0)).write(SECOND)
    whole = journal_file(tmp_path, 0).read_bytes()
    journal_file(tmp_path, 0).write_bytes(whole + whole[:-10])
    reader = JournalReader(tmp_path, 0)
    assert reader.read()
    assert len(reader.starts) == 2
    journal_file(tmp_path, 0).write_bytes(whole + whole)
    assert reader.read()
    assert len(reader.starts) == 4
