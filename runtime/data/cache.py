"""Encoded samples kept in the user's cache folder, named by everything that they are made of."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cappuccino.runtime.data.sources import digest_of_files
from cappuccino.runtime.encoding.encoder import EncodedSample

MOST_BYTES = 4 * 2**30
"""Of all that is kept; what was not used for longest goes first."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".onnx", ".msgpack")
"""Files of a backbone that no tokenizer reads."""
_SUFFIX = ".npz"


@dataclass(frozen=True)
class Block:
    """Samples of some rows, and what is to be said of these."""

    samples: list[EncodedSample]
    unused: list[str]
    """Columns that are not used."""


def cache_folder() -> Path:
    """Return where encoded samples are kept: in XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return base / "cappuccino" / "samples"


class SampleCache:
    """Blocks of encoded samples; one that cannot be read or written is as good as none.

    Parameters
    ----------
    made_of
        What all blocks are made of, as JSON: digests of the data, the tokenizer and the settings.
    on_note
        Told once that nothing can be kept.
    """

    def __init__(self, made_of: Any, on_note: Callable[[str], None]) -> None:
        self._folder = cache_folder()
        self._made_of = json.dumps([made_of, software()], sort_keys=True)
        self._on_note, self._told = on_note, False

    def get(self, rows: Sequence[int]) -> Block | None:
        """Return the block of these rows, by number; None where it is not kept."""
        path = self._path(rows)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                ids, labels, offsets, ends = (arrays[name] for name in ("ids", "labels", "offsets", "ends"))
                unused = json.loads(str(arrays["unused"]))
            os.utime(path)
        except Exception:  # whatever a damaged file leads to: it is made anew
            return None
        if len(ids) != len(labels) or len(offsets) != len(ends) + 1 or offsets[-1] != len(ids):
            return None
        pairs = zip(offsets[:-1], offsets[1:], ends, strict=True)
        return Block([EncodedSample(ids[a:b], labels[a:b], bool(end)) for a, b, end in pairs], unused)

    def put(self, rows: Sequence[int], block: Block) -> None:
        """Keep a block."""
        path, samples = self._path(rows), block.samples
        offsets = np.cumsum([0, *(len(sample.ids) for sample in samples)])
        empty = np.zeros(0, dtype=np.int64)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as stream:
                    np.savez(
                        stream,
                        ids=np.concatenate([empty, *(s.ids for s in samples)]),
                        labels=np.concatenate([empty, *(s.labels for s in samples)]),
                        offsets=offsets,
                        ends=np.array([s.end_added for s in samples], dtype=bool),
                        unused=np.array(json.dumps(block.unused)),
                    )
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _forget_oldest(self._folder)
        except OSError as error:
            if not self._told:
                self._on_note(f"{self._folder}: encoded samples are not kept ({error.strerror or error})")
            self._told = True

    def _path(self, rows: Sequence[int]) -> Path:
        name = hashlib.sha256(f"{self._made_of} {json.dumps(list(rows))}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}{_SUFFIX}"


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of every file of a backbone that its tokenizer may be made of."""
    found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    files = sorted(f for f in found if f.is_file() and f.suffix not in _WEIGHTS)
    names = [str(f.relative_to(folder)) for f in files]
    return hashlib.sha256(json.dumps([names, digest_of_files(files)]).encode()).hexdigest()


def today() -> str:
    """Return the day, for templates that write it into samples."""
    return time.strftime("%Y-%m-%d")


@cache
def software() -> list[str]:
    """Return the versions of what encodes: of the libraries, and the digest of this package's own modules."""
    runtime = Path(__file__).parents[1]
    own = digest_of_files(sorted([*runtime.glob("data/*.py"), *runtime.glob("encoding/*.py")]))
    versions = [own]
    for package in ("transformers", "tokenizers", "jinja2"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(package)
    return versions


def _forget_oldest(folder: Path) -> None:
    """Remove what was not used for longest until `MOST_BYTES` are kept."""
    kept = []
    for file in folder.glob(f"*/*{_SUFFIX}"):
        with suppress(OSError):  # another process may remove it
            status = file.stat()
            kept.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if total <= MOST_BYTES:
            return
        with suppress(OSError):
            file.unlink()
            total -= size
