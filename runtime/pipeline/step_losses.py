"""Losses of optimizer steps on the last stage, without making it wait for its GPU."""

from collections import defaultdict, deque

import torch


class StepLosses:
    """Adds up the losses of micro-batches by step, and hands them out when they are known.

    Parameters
    ----------
    device
        Where the losses are worked out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
        self._totals: dict[tuple[int, int], tuple[torch.Tensor, torch.cuda.Event | None]] = {}
        self._values: dict[tuple[int, int], float] = {}
        self._untold: deque[tuple[int, int]] = deque()

    def add(self, adapter: int, step: int, part: torch.Tensor) -> None:
        """Take what a micro-batch contributes to the loss of a step, a scalar."""
        self._parts[adapter, step].append(part)

    def forget(self) -> None:
        """Drop what was added so far."""
        self._parts.clear()

    def complete(self, adapter: int, step: int) -> None:
        """Note that all micro-batches of a step have been added."""
        total = torch.stack(self._parts.pop((adapter, step))).sum()
        event = None
        if self._device.type == "cuda":
            # Reading the number would wait for all that the GPU has still to do: it is copied in its turn.
            copy = torch.empty((), dtype=total.dtype, pin_memory=True)
            copy.copy_(total, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            total = copy
        self._totals[adapter, step] = total, event
        self._untold.append((adapter, step))

    def value(self, adapter: int, step: int) -> float:
        """Return the loss of a complete step, once the GPU knows it."""
        key = adapter, step
        if key in self._totals:
            total, event = self._totals.pop(key)
            if event is not None:
                event.synchronize()
            self._values[key] = total.item()
        return self._values[key]

    def of(self, adapter: int) -> dict[int, float]:
        """Return the losses of an adapter's complete steps, by step."""
        steps = sorted(step for a, step in self._totals.keys() | self._values.keys() if a == adapter)
        return {step: self.value(adapter, step) for step in steps}

    def take(self, *, wait: bool = False) -> list[tuple[int, int, float]]:
        """Return (adapter, step, loss) of the steps that became known since the last call, in the order of the program.

        Parameters
        ----------
        wait
            Whether to wait for the GPU until all complete steps are known.
        """
        found = []
        while self._untold:
            key = self._untold[0]
            event = self._totals[key][1] if key in self._totals else None
            if event is not None and not wait and not event.query():
                break
            self._untold.popleft()
            found.append((*key, self.value(*key)))
        return found
