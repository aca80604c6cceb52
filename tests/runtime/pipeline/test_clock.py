"""Clocks and part meters, the GPU's with a device that is there in name only."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from cappuccino.runtime.pipeline import clock as clocks
from cappuccino.runtime.pipeline.clock import CpuClock, CudaClock, DeviceClock
from cappuccino.runtime.pipeline.part_meter import PartMeter


class FakeGpu:
    """A stream whose time stands still until an event is recorded, and that has to be waited for."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.waited = False

    def step(self, milliseconds: float) -> None:
        self.now_ms += milliseconds


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    fake = FakeGpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            assert stream is not None
            self.at = fake.now_ms

        def synchronize(self) -> None:
            fake.waited = True

        def elapsed_time(self, other: "Event") -> float:
            assert fake.waited
            return other.at - self.at

    class Stream:
        def synchronize(self) -> None:
            fake.waited = True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: 100.0)
    yield fake


def test_the_gpus_moments_are_on_the_machines_clock(gpu: FakeGpu) -> None:
    clock = DeviceClock.of(torch.device("cuda", 0))
    assert isinstance(clock, CudaClock)
    for milliseconds in (5.0, 20.0, 0.0):
        gpu.step(milliseconds)
        clock.mark()
    gpu.waited = False
    np.testing.assert_allclose(clock.times(), [100.005, 100.025, 100.025])
    assert gpu.waited  # events are read only once the stream has passed them


def test_parts_on_a_gpu_are_what_lies_between_their_events(gpu: FakeGpu) -> None:
    meter = PartMeter(torch.device("cuda", 0))
    gpu.step(3)
    meter.begin("F", 7)
    for part, milliseconds in (("input", 1.0), ("layers", 10.0), ("head", 4.0), ("loss", 2.0)):
        gpu.step(milliseconds)
        meter.mark(part)  # type: ignore[arg-type]
    gpu.step(50)
    meter.begin("B", 7)
    gpu.step(20)
    meter.mark("layers")
    found = [(c.kind, c.micro_batch, c.part, round(c.seconds * 1e3, 6), c.held_bytes) for c in meter.costs()]
    assert found == [
        ("F", 7, "input", 1.0, None),
        ("F", 7, "layers", 10.0, None),
        ("F", 7, "head", 4.0, None),
        ("F", 7, "loss", 2.0, None),
        ("B", 7, "layers", 20.0, None),
    ]


def test_the_cpus_clock_goes_on() -> None:
    clock = DeviceClock.of(torch.device("cpu"))
    assert isinstance(clock, CpuClock)
    clock.mark()
    clock.mark()
    first, second = clock.times()
    assert first <= second


def test_the_backwards_parts_end_with_the_gradients() -> None:
    meter = PartMeter(torch.device("cpu"))
    weight = torch.ones(3, requires_grad=True)
    hidden = weight * 2
    logits = hidden * 3
    meter.mark_gradient(hidden, "head")
    meter.mark_gradient(logits, "loss")
    meter.mark_gradient(torch.ones(1), "layers")  # nothing flows there
    meter.begin("B", 0)
    logits.sum().backward()
    meter.mark("layers")
    assert [c.part for c in meter.costs()] == ["loss", "head", "layers"]
    assert all(c.seconds >= 0 for c in meter.costs())


def test_bytes_held_are_those_of_activations_each_once() -> None:
    layer = nn.Linear(4, 5, bias=False)  # its weight is saved for the backward, and is no activation
    meter = PartMeter(torch.device("cpu"))
    inputs = torch.ones(2, 4, requires_grad=True)
    meter.begin("F", 0)
    with meter.weighed(layer):
        outputs = layer(inputs)  # keeps its input, 2 x 4 floats
        meter.mark("layers")
        (outputs * outputs).sum()  # keeps the output, twice the same storage
        meter.mark("loss")
    meter.begin("F", 1)
    layer(inputs)
    meter.mark("layers")
    assert [c.held_bytes for c in meter.costs()] == [2 * 4 * 4, 2 * 5 * 4, None]
