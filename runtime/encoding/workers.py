"""Encoding in several processes where there is much to do."""

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from types import TracebackType
from typing import Any

from cappuccino.runtime.encoding.encoder import EncodedSample, SampleEncoder
from cappuccino.runtime.encoding.forms import Form, LossOn, Row, RowError

MANY = 4096
"""Chats from which on processes are worth their start."""
_CHUNK = 64
"""Rows that a process gets at a time."""
_MOST = 16
"""Processes."""

Settings = tuple[Path, Form, LossOn, tuple[str, ...]]
"""Arguments of `SampleEncoder`."""


class Encoding:
    """Encodes rows here, or in processes of its own: texts by the threads of the tokenizer, chats by processes.

    Parameters
    ----------
    settings
        Of the encoder.
    expected
        Rows that will be encoded, about.
    """

    def __init__(self, settings: Settings, expected: int) -> None:
        self.encoder = SampleEncoder(*settings)
        self._settings = settings
        self._pool: Pool | None = None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.processes = min(cores, _MOST) if self.encoder.chats is not None and expected >= MANY else 1
        """Processes that encode; 1 for this one."""

    def __enter__(self) -> "Encoding":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    @property
    def started(self) -> bool:
        """Whether processes of its own run."""
        return self._pool is not None

    def encode(self, rows: Sequence[Row]) -> list[EncodedSample | RowError]:
        """Return every row's tokens and labels, or what is wrong with it, in the order of the rows."""
        if self.processes == 1 or len(rows) <= _CHUNK:
            return self.encoder.encode(rows)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = context.Pool(self.processes, _begin, (self._settings,))
        waiting: deque[Any] = deque()
        result: list[EncodedSample | RowError] = []
        for first in range(0, len(rows), _CHUNK):
            waiting.append(self._pool.apply_async(_encode, (rows[first : first + _CHUNK],)))
            if len(waiting) > 2 * self.processes:
                result += waiting.popleft().get()
        while waiting:
            result += waiting.popleft().get()
        return result


_encoder: SampleEncoder


def _begin(settings: Settings) -> None:
    global _encoder  # noqa: PLW0603 -- a process has one
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are what runs side by side
    _encoder = SampleEncoder(*settings)


def _encode(rows: Sequence[Row]) -> list[EncodedSample | RowError]:
    return _encoder.encode(rows)
