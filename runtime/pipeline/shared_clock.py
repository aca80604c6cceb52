"""The clock of the first stage on the machines of the others, whose monotonic clocks begin when they please."""

import time
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

_EXCHANGES = 25
"""Of which the fastest counts: messages are never early, but often late."""


class SharedClock:
    """Compares this stage's clock with that of the first stage, once when it is made.

    All stages make and call it together. Clocks drift apart, by seconds a day: times between two comparisons are
    converted by a straight line.

    Parameters
    ----------
    stage, num_stages
        Which stage this is, of how many.
    """

    def __init__(self, stage: int, num_stages: int) -> None:
        self._stage, self._num_stages = stage, num_stages
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        self._moments: list[float] = []
        self._offsets: list[float] = []
        self.compare()

    def compare(self) -> None:
        """Find how far the clocks are apart now."""
        own, first = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        if self._stage == 0:
            for other in range(1, self._num_stages):
                for _ in range(_EXCHANGES):
                    dist.recv(own, other, group=self._group)
                    dist.send(first.fill_(time.perf_counter()), other, group=self._group)
            return
        found = []
        for _ in range(_EXCHANGES):
            asked = time.perf_counter()
            dist.send(own, 0, group=self._group)
            dist.recv(first, 0, group=self._group)
            answered = time.perf_counter()
            middle = (asked + answered) / 2
            found.append((answered - asked, middle, first.item() - middle))
        _, moment, offset = min(found)
        self._moments.append(moment)
        self._offsets.append(offset)

    def of_first(self, times: Sequence[float]) -> tuple[float, ...]:
        """Return times on this machine's clock, seconds, on that of the first stage."""
        if self._stage == 0:
            return tuple(times)
        at = np.asarray(times, dtype=float)
        return tuple((at + np.interp(at, self._moments, self._offsets)).tolist())
