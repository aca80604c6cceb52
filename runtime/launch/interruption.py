"""Ending a run by a signal so that it can be gone on with."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cappuccino.errors import CappuccinoError

SAVING_LIMIT_S = 20.0
"""How long checkpoints may take once a run is asked to end: schedulers kill what has not ended after 30 seconds."""


class InterruptedRunError(CappuccinoError):
    """The user, or the system, has ended the run.

    Parameters
    ----------
    kept
        What it leaves and how to go on, in words.
    """

    exit_status = 75
    """What sysexits.h calls a temporary failure: the same command may be run again."""

    def __init__(self, kept: str = "nothing was kept; run again") -> None:
        super().__init__(f"interrupted: {kept}")


class Interruption:
    """Counts the signals that ask the run to end.

    Those that come while nobody looks, as `heeded` says, raise InterruptedRunError where the program is.

    Parameters
    ----------
    on_first
        Called with the first one that somebody looks for.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.signals = 0
        """How many came."""
        self._on_first = on_first
        self._heeded = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Count only: whoever enters looks at `signals` some times a second."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.signals += 1
        if not self._heeded:
            raise InterruptedRunError("training was not under way; run again, with --resume if it had begun")
        if self.signals == 1:
            self._on_first()


@contextmanager
def interruptible(on_first: Callable[[], None]) -> Iterator[Interruption]:
    """Note SIGINT and SIGTERM while the context is entered; only the main thread may enter.

    Parameters
    ----------
    on_first
        Called with the first one that a run takes note of.
    """
    interruption = Interruption(on_first)
    before = {number: signal.signal(number, interruption.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
