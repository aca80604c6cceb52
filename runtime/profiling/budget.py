"""The time that a profile may take."""

import math
import time
from collections.abc import Callable

Clock = Callable[[], float]
_SHARE_TO_CLOSE, _MOST_TO_CLOSE_S = 0.05, 5.0


class Budget:
    """Time from now on.

    Parameters
    ----------
    seconds
        None for no limit.
    clock
        Tells the time, seconds.
    """

    def __init__(self, seconds: float | None, clock: Clock = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._begin = clock()
        self._to_close = 0.0 if seconds is None else min(_SHARE_TO_CLOSE * seconds, _MOST_TO_CLOSE_S)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self.seconds is not None

    @property
    def spent(self) -> float:
        """Seconds since the begin."""
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        """Seconds left for measuring, without what ending processes and writing the table take; infinite if none."""
        if self.seconds is None:
            return math.inf
        return self.seconds - self._to_close - self.spent

    def part(self, count: int) -> "Budget":
        """Return the time for one of so many parts of what is left to do."""
        return (
            self if count == 1 else Budget(None if self.seconds is None else max(self.left, 0.0) / count, self._clock)
        )

    def keep(self, seconds: float) -> None:
        """Keep so much time at least for what is left to do when the measuring ends."""
        self._to_close = max(self._to_close, seconds)
