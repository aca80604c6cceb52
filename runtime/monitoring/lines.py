"""Files of lines that grow while others read them, each line an object of JSON; needs no torch."""

import os
from pathlib import Path

from cappuccino.files import Record


class LineWriter:
    """Appends records to a file, each as one line.

    Parameters
    ----------
    file
        It and its folder are made where they are missing.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: Record) -> None:
        """Append a record; once this returns, it outlives the process."""
        line = memoryview((record.model_dump_json() + "\n").encode())
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)


class LineReader:
    """Follows a file of lines as it grows.

    Parameters
    ----------
    file
        Need not be there yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def read(self) -> list[bytes]:
        """Return the lines that are new; the beginning of one is left for later."""
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                new = stream.read()
        except FileNotFoundError:
            return []
        new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        return new.splitlines()
