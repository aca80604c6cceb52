"""How long a search may go on: seconds, or iterations where results must be repeatable."""

import time
from dataclasses import dataclass


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
        return None if self._seconds is None else max(0.0, self._seconds - self.elapsed)

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return self._seconds is not None and self.elapsed >= self._seconds

    def part(self, fraction: float) -> "Clock":
        """Return a clock that runs for this fraction of what is left."""
        return Clock(None if self.left is None else self.left * fraction)
