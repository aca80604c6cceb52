"""When operations of a device begin and end, without slowing it down."""

import time
from abc import ABC, abstractmethod

import numpy as np
import torch


class DeviceClock(ABC):
    """Marks moments and tells their times afterwards."""

    @abstractmethod
    def mark(self) -> None:
        """Remember the moment when the device has done all that it was given so far."""

    @abstractmethod
    def times(self, first: int = 0) -> np.ndarray:
        """Return the moments marked so far on this machine's monotonic clock, seconds, shape (marks,).

        Parameters
        ----------
        first
            Marks that are left out: those before this one.
        """

    @staticmethod
    def of(device: torch.device) -> "DeviceClock":
        """Return the clock of a device."""
        return CudaClock(device) if device.type == "cuda" else CpuClock()


class CpuClock(DeviceClock):
    """The process itself does the work, so now is the moment."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def mark(self) -> None:
        """Remember now."""
        self._times.append(time.perf_counter())

    def times(self, first: int = 0) -> np.ndarray:
        """Return the moments, shape (marks,)."""
        return np.array(self._times[first:])


class CudaClock(DeviceClock):
    """Events on the GPU's stream: the process runs ahead of the GPU and need not wait."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._events: list[torch.cuda.Event] = []
        torch.cuda.synchronize(device)
        self._origin = torch.cuda.Event(enable_timing=True)
        self._origin.record(self._stream)
        self._origin.synchronize()
        self._origin_s = time.perf_counter()

    def mark(self) -> None:
        """Put an event on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._events.append(event)

    def times(self, first: int = 0) -> np.ndarray:
        """Wait for the stream and return the moments, shape (marks,)."""
        self._stream.synchronize()
        return np.array([self._origin_s + self._origin.elapsed_time(event) / 1e3 for event in self._events[first:]])
