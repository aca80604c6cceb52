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
        self._totals: deque[tuple[int, int, torch.Tensor, torch.cuda.Event | None]] = deque()

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
        self._totals.append((adapter, step, total, event))

    def take(self, *, wait: bool = False) -> list[tuple[int, int, float]]:
        """Return (adapter, step, loss) of the steps that became known since the last call, in the order of the program.

        Parameters
        ----------
        wait
            Whether to wait for the GPU until all complete steps are known.
        """
        found = []
        while self._totals:
            adapter, step, total, event = self._totals[0]
            if event is not None and wait:
                event.synchronize()
            elif event is not None and not event.query():
                break
            self._totals.popleft()
            found.append((adapter, step, total.item()))
        return found
