"""Reading and writing files: clear errors on the way in, nothing half-written on the way out."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cappuccino.errors import InputError

M = TypeVar("M", bound=BaseModel)
_MOST_BYTES = 255
"""Of a name in a path."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text or bytes to `path`, making its folder, so that a reader sees the old file or the whole new one.

    Raises
    ------
    InputError
        When the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".cappuccino-", suffix=".tmp")
    except OSError as error:
        raise InputError(path, "", f"cannot be written ({error.strerror})", "name another folder") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                path, "", f"cannot be written ({error.strerror})", "free the path or name another"
            ) from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `path` when the block ends without an error, and is gone otherwise.

    Raises
    ------
    InputError
        When there is something at `path` already, or no folder can be made there.
    """
    _require_short_parts(path)
    if os.path.lexists(path):
        raise InputError(path, "", "is there already", "name another folder, or remove it first")
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{path.name[:100]}."))
    except OSError as error:
        raise InputError(path, "", f"cannot be written ({error.strerror})", "name another folder") from error
    try:
        folder = temporary / "new"  # with the rights that folders get here; those of the temporary one are narrower
        folder.mkdir()
        yield folder
        folder.rename(path)
    except OSError as error:
        raise InputError(
            path, "", f"cannot be written ({error.strerror or error})", "free space, or name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def renewed_folder(path: Path, own: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder that takes the place of the one at `path` when the block ends without an error.

    Parameters
    ----------
    own
        Says whether a file may be replaced.

    Raises
    ------
    InputError
        As `require_renewable`, and when there is no room.
    """
    require_renewable(path, own)
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}."))
    except OSError as error:
        raise InputError(path, "", f"cannot be written ({error.strerror})", "name another folder") from error
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        require_renewable(path, own)  # the work takes its time
        exchange(new, path, old)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(path, "", problem, "free space, or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(new: Path, target: Path, aside: Path) -> None:
    """Put `new` in the place of what is at `target`, which goes to `aside`; where that fails, it is back in its place.

    All three are on one file system.
    """
    try:
        if os.path.lexists(target):
            target.rename(aside)
        new.rename(target)
    except BaseException:  # also where the user interrupts
        if os.path.lexists(aside) and not os.path.lexists(target):
            aside.rename(target)
        raise


def require_renewable(path: Path, own: Callable[[Path], bool]) -> None:
    """Raise InputError when `renewed_folder` could not replace what is at `path`: before the work, not after it."""
    require_folder(path)
    if not os.path.lexists(path):
        return
    try:
        others = sorted(p.name for p in path.iterdir() if not (p.is_file() and own(p)))
    except OSError as error:
        raise InputError(path, "", f"cannot be read ({error.strerror})", "name another folder") from error
    if others:
        problem = f'is a folder that holds other files ("{others[0]}")'
        raise InputError(path, "", problem, "name one that is empty, or is not there yet")
    if path.resolve().is_mount():
        raise InputError(path, "", "is a mount point, which cannot be replaced", "name a folder in it")
    require_folder(path.resolve().parent)


def require_writable(path: Path, *others: Path | None) -> None:
    """Raise InputError when a file could not be written at `path`: before the work, not after it.

    Parameters
    ----------
    others
        Files that are read, or written besides: it is to be none of them.
    """
    for other in others:
        if other is not None and path.resolve() == other.resolve():
            raise InputError(path, "", "is also read, or written as something else", "name another file")
    _require_short_parts(path)
    require_folder(path.absolute().parent)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputError(path, "", f"cannot be written ({error.strerror})", "name another file") from error
    if is_folder:
        raise InputError(path, "", "is a folder", "name a file")


def require_folder(path: Path) -> None:
    """Raise InputError when `path` is no folder and cannot become one: before the work, not after it."""
    _require_short_parts(path)
    existing = path.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
    except OSError as error:
        raise InputError(path, "", f"cannot be reached ({error.strerror})", "name another") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(path, "", f'"{existing}" is no folder that can be written', "name another")


def _require_short_parts(path: Path) -> None:
    """Refuse a name that is too long for a file system, also in a folder that is not there yet."""
    for part in path.parts:
        if len(os.fsencode(part)) > _MOST_BYTES:
            raise InputError(path, "", f"File name too long (over {_MOST_BYTES} bytes)", "name another")


def read_text(path: Path) -> str:
    """Return the text of a file, without the byte order mark that Windows tools put in front.

    Raises
    ------
    InputError
        When the file is missing, unreadable or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(path, "", "file not found", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(path, "", f"is not UTF-8 text (byte {error.start})", "give a text file") from error
    except OSError as error:
        raise InputError(path, "", f"cannot be read ({error.strerror})", "check the path and its rights") from error


def read_json(path: Path) -> Any:
    """Return the parsed JSON of a file.

    Raises
    ------
    InputError
        When the file is missing or not JSON; a truncated file is named as such.
    """
    text = read_text(path)
    try:
        _require_text(text)
        return json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_object)
    except _RepeatedKeyError as error:
        raise InputError(path, str(error), "is given twice in one object", "keep one of the two") from error
    except _NotANumberError as error:
        raise InputError(
            path, "", f"contains {error}", "JSON has no such number: write null or a finite value"
        ) from error
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        problem = (
            f"is {'truncated' if cut else 'not valid JSON'} at line {error.lineno} column {error.colno} ({error.msg})"
        )
        raise InputError(path, "", problem, "write the file again" if cut else "correct it there") from error
    except _NoTextError as error:
        raise InputError(path, "", f"holds {error}, which is no text", "write the character itself, or none") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, "", f"is JSON that cannot be held ({error})", "correct the file") from error


class _NotANumberError(ValueError):
    """JSON text used NaN or Infinity."""


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_MAY_BE_NO_TEXT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


class _NoTextError(ValueError):
    """JSON text has an escape that stands for no character of a text."""


def _require_text(text: str) -> None:
    """Raise an error at an escape of NUL or of half a character: no name, path or digest can hold these."""
    if not _MAY_BE_NO_TEXT.search(text):
        return
    high = None  # an escape that another one must follow
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else -1
        is_low = 0xDC00 <= code < 0xE000
        if code == 0 or is_low != (high is not None and high.end() == escape.start()):
            raise _NoTextError(escape[0] if high is None or is_low else high[0])
        high = escape if 0xD800 <= code < 0xDC00 else None
    if high is not None:
        raise _NoTextError(high[0])


class _RepeatedKeyError(ValueError):
    """An object of JSON text has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


def _reject_constant(name: str) -> None:
    raise _NotANumberError(name)


class Record(BaseModel):
    """What stands in a file of ours: it does not change, and holds no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse_model(model: type[M], data: Any, source: object, within: str = "") -> M:
    """Validate parsed JSON against a pydantic model.

    Parameters
    ----------
    within
        Path in the file of the field that the data stands in; empty for the whole of it.

    Raises
    ------
    InputError
        Naming the file, the first offending field, its value and the remedy.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = _field_path((*([within] if within else []), *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":  # the message names a class that only we know
            message = "give an object with the fields of docs/formats.md"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "missing":
            raise InputError(source, field, f"is missing{more}", "add it") from error
        if first["type"] == "extra_forbidden":
            raise InputError(source, field, f"is not a known field{more}", "remove it or correct its name") from error
        value = json.dumps(first["input"], default=str)
        value = value if len(value) <= 80 else value[:77] + "..."
        raise InputError(source, field, f"{value} is not allowed{more}", message[0].lower() + message[1:]) from error


def _field_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
    return path


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
