"""The folder that a run writes to, piece by piece, each piece whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cappuccino.errors import InputError
from cappuccino.files import exchange


class OutputFolder:
    """Gives a folder for intermediate files while it is entered, and puts results in their place.

    Left with an error, it leaves what was put; without any, no folder.

    Parameters
    ----------
    out
        Folder for the results; what it holds under the same names is replaced.

    Raises
    ------
    InputError
        On entering, when it is no folder or cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._made = False

    def __enter__(self) -> "OutputFolder":
        """Make both folders."""
        parent = self.out.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.intermediate = Path(tempfile.mkdtemp(dir=parent, prefix=f".{self.out.name}."))
            """For what is of no use after the run."""
            self._made = not self.out.exists()
            self.out.mkdir(exist_ok=True)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InputError(self.out, "", problem, "name another folder") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the intermediate files, and results that are none."""
        shutil.rmtree(self.intermediate, ignore_errors=True)
        if self._made and not any(p.is_file() for p in self.out.rglob("*")):
            shutil.rmtree(self.out, ignore_errors=True)

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file or a folder in place of what has its name.

        Parameters
        ----------
        name
            In the output folder.
        write
            Writes it to the path given.

        Raises
        ------
        InputError
            When it cannot be written; what was there before is there still.
        """
        target = self.out / name
        place = Path(tempfile.mkdtemp(dir=self.intermediate))
        new, aside = place / "new", place / "replaced"
        try:
            write(new)
            exchange(new, target, aside)
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error})"
            raise InputError(target, "", problem, "free space, or correct the folder's rights") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
