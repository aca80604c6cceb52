"""What a stage tells of its operations while it runs: lines of JSON, one for every pause; needs no torch."""

from pathlib import Path

from cappuccino.files import Record
from cappuccino.runtime.monitoring.lines import LineReader
from cappuccino.runtime.pipeline.part_costs import PartCost


class JournalEntry(Record):
    """The operations from one pause to the next."""

    starts: tuple[float, ...]
    """By operation, seconds on the machine's monotonic clock."""
    ends: tuple[float, ...]
    """Likewise."""
    memory_gib: tuple[float, ...]
    """Highest memory use of the process so far, after every operation."""
    parts: tuple[PartCost, ...]
    """Parts of the operations."""
    reference_s: tuple[float, ...]
    """What the reference kernel took in the pause after the operations, seconds."""


def journal_file(folder: Path, stage: int) -> Path:
    """Return where a stage writes its journal."""
    return folder / f"stage-{stage}.jsonl"


class JournalReader:
    """Follows a stage's journal as it grows.

    Parameters
    ----------
    folder, stage
        As of the writer; the file need not be there yet.
    """

    def __init__(self, folder: Path, stage: int) -> None:
        self._lines = LineReader(journal_file(folder, stage))
        self.starts: list[float] = []
        """By operation so far, as in the entries."""
        self.ends: list[float] = []
        """Likewise."""
        self.memory_gib: list[float] = []
        """Likewise."""
        self.parts: list[PartCost] = []
        """In their order."""
        self.references: dict[int, tuple[float, ...]] = {}
        """By the operation that a pause came before, what the reference kernel took in it."""

    def read(self) -> bool:
        """Take over what is new; return whether anything was. The beginning of a line is left for later."""
        lines = self._lines.read()
        for line in lines:
            entry = JournalEntry.model_validate_json(line)
            self.starts += entry.starts
            self.ends += entry.ends
            self.memory_gib += entry.memory_gib
            self.parts += entry.parts
            self.references[len(self.starts)] = entry.reference_s
        return bool(lines)
