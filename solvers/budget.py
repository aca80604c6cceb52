"""How long a search may go on: seconds, or iterations where results must be repeatable, or an interrupt by the user."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cappuccino.errors import CappuccinoError

_interrupt = threading.Event()


class InterruptedSearchError(CappuccinoError):
    """The user has ended a search that had found nothing yet."""

    def __init__(self) -> None:
        super().__init__("interrupted before a first plan was found: nothing was written")


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C end all searches as if their time were up; the next one interrupts as usual.

    Only the main thread may enter.

    Parameters
    ----------
    on_interrupt
        Called with that first one.
    """

    def end_searches(number: int, frame: FrameType | None) -> None:
        _interrupt.set()
        signal.signal(signal.SIGINT, before)
        on_interrupt()

    before = signal.signal(signal.SIGINT, end_searches)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _interrupt.clear()


def interrupted() -> bool:
    """Return whether the user has ended the searches."""
    return _interrupt.is_set()


@dataclass(frozen=True)
class Budget:
    """Limits of the search on one replica; the first one reached ends a phase."""

    seconds: float | None
    """Wall-clock seconds from the start of the search; None: iterations only, so that equal seeds give equal plans."""
    constructions: int = 96
    """Schedules built from nothing."""
    moves: int = 10**9
    """Steps of the local search."""
    windows: int = 10**9
    """CP-SAT models solved."""


class Clock:
    """Runs from its creation to a limit."""

    def __init__(self, seconds: float | None) -> None:
        self._begin = time.monotonic()
        self._seconds = seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the creation."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        if _interrupt.is_set():
            return 0.0
        return None if self._seconds is None else max(0.0, self._seconds - self.elapsed)

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return _interrupt.is_set() or (self._seconds is not None and self.elapsed >= self._seconds)

    def part(self, fraction: float) -> "Clock":
        """Return a clock that runs for this fraction of what is left."""
        return Clock(None if self.left is None else self.left * fraction)
