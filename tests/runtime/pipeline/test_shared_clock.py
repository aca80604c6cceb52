"""Times of a stage on the first stage's clock, with a first stage that is made of what the test lets it answer."""

import time

import pytest

from cappuccino.runtime.pipeline import shared_clock
from cappuccino.runtime.pipeline.shared_clock import SharedClock


class FirstStage:
    """Answers with its clock, which is ahead, now and then late."""

    def __init__(self) -> None:
        self.ahead, self.asked = 0.0, 0

    def new_group(self, **options: object) -> None:
        return None

    def send(self, tensor: object, to: int, group: object) -> None:
        assert to == 0
        self.asked += 1

    def recv(self, tensor, source: int, group: object) -> None:
        assert source == 0
        tensor.fill_(time.perf_counter() + self.ahead)
        if self.asked % 3:
            time.sleep(0.002)  # on the way back


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> FirstStage:
    made = FirstStage()
    monkeypatch.setattr(shared_clock, "dist", made)
    return made


def test_times_are_those_of_the_first_stage_s_clock(first):
    first.ahead = 1000.0
    clock = SharedClock(1, 2)
    begin = time.perf_counter()
    first.ahead = 1000.5  # it gains half a second until the second comparison
    time.sleep(0.01)
    clock.compare()
    end = time.perf_counter()
    at_begin, middle, at_end = clock.of_first((begin, (begin + end) / 2, end))
    assert at_begin - begin == pytest.approx(1000.0, abs=0.3)
    assert at_end - end == pytest.approx(1000.5, abs=1e-3)
    assert at_begin < middle < at_end
    assert clock.of_first(()) == ()


def test_the_first_stage_s_own_times_stay(first, monkeypatch):
    answers: list[float] = []
    monkeypatch.setattr(first, "recv", lambda tensor, source, group: None)
    monkeypatch.setattr(first, "send", lambda tensor, to, group: answers.append(tensor.item()))
    clock = SharedClock(0, 3)
    assert clock.of_first((1.0, 2.0)) == (1.0, 2.0)
    assert answers == sorted(answers)
    assert len(answers) == 2 * 25  # for two others
