"""Losses of steps, on the CPU and on a GPU that is there in name only."""

from typing import ClassVar

import pytest
import torch

from cappuccino.runtime.pipeline.step_losses import StepLosses


def test_losses_of_micro_batches_add_up_by_step() -> None:
    losses = StepLosses(torch.device("cpu"))
    losses.add(0, 0, torch.tensor(9.0))
    losses.forget()  # of a warm-up
    for adapter, step, part in ((0, 0, 1.0), (1, 0, 5.0), (0, 0, 0.5), (0, 1, 2.0)):
        losses.add(adapter, step, torch.tensor(part, dtype=torch.float64))
    assert losses.take() == []
    losses.complete(1, 0)
    losses.complete(0, 0)
    assert losses.take() == [(1, 0, 5.0), (0, 0, 1.5)]
    losses.complete(0, 1)
    assert losses.take(wait=True) == [(0, 1, 2.0)]
    assert losses.take(wait=True) == []


def test_on_a_gpu_what_is_not_done_yet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        made: ClassVar[list["Event"]] = []

        def __init__(self) -> None:
            self.done = False
            self.made.append(self)

        def record(self, stream: object) -> None:
            assert stream == "stream"

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.done = True

    pinned: list[bool] = []
    empty = torch.empty

    def pinned_empty(*size: object, pin_memory: bool, **options: object) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*size, **options)

    losses = StepLosses(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch, "empty", pinned_empty)
    for step in range(3):
        losses.add(0, step, torch.tensor(step + 0.5, dtype=torch.float64))
        losses.complete(0, step)
    assert pinned == [True] * 3
    assert losses.take() == []
    Event.made[0].done = Event.made[2].done = True
    assert losses.take() == [(0, 0, 0.5)]  # the order of the program holds
    assert losses.take(wait=True) == [(0, 1, 1.5), (0, 2, 2.5)]
