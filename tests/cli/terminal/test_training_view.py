"""What one sees of a run: lines of the adapters, how long it still takes, on a terminal and elsewhere."""

import re
from types import SimpleNamespace

import pytest

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.training_view import MOST_SHOWN, TrainingView, show_training
from cappuccino.runtime.monitoring.metrics import MetricEvent


class Remaining(SimpleNamespace):
    """An estimate of 200 seconds, and of as many minutes as steps were made."""

    total_s = 200.0
    noted: list[tuple[str, int, float]]
    earlier: list[tuple[str, int]]

    def note(self, *step: object) -> None:
        self.noted.append(step)

    def note_earlier(self, adapter: str, step: int) -> None:
        self.earlier.append((adapter, step))

    def seconds(self) -> float:
        return 60.0 * len(self.noted)


def event(adapter: str, step: int, time_s: float, tokens: int = 100, **fields: object) -> MetricEvent:
    values = {"loss": 1.25, "learning_rate": 1e-4, "grad_norm": None, "kind": "train"} | fields
    return MetricEvent(adapter=adapter, step=step, time_s=time_s, tokens=tokens, **values)


@pytest.fixture
def remaining() -> Remaining:
    return Remaining(noted=[], earlier=[])


@pytest.fixture
def view(remaining: Remaining) -> TrainingView:
    made = TrainingView({"a": 9, "b": 3, **{f"other{i}": 1 for i in range(20)}}, remaining)
    made.on_progress(0, 8)
    return made


def test_steps_before_the_begin_are_of_an_earlier_run(remaining: Remaining) -> None:
    view = TrainingView({"a": 9}, remaining)
    view.on_event(event("a", 0, 1.0))
    view.on_event(event("a", 0, 1.5, loss=2.5, kind="eval"))
    view.on_progress(0, 8)
    assert view.rows() == []
    view.on_event(event("a", 1, 0.5))
    assert (remaining.earlier, remaining.noted) == ([("a", 0)], [("a", 1, 0.5)])
    assert view.rows()[0][:4] == ("a", "2/9", "1.2500", "2.5000")


def test_adapters_stand_in_lines_most_recent_first(view: TrainingView) -> None:
    view.on_event(event("a", 0, 1.0, 100))
    view.on_event(event("b", 0, 1.5, grad_norm=0.5))
    view.on_event(event("a", 1, 3.0, 500, loss=None))
    view.on_event(event("b", 0, 4.0, loss=0.75, kind="eval"))  # no step
    assert view.rows() == [
        ("a", "2/9", "not finite", "-", "0.0001", "-", "200"),  # 400 tokens in two seconds
        ("b", "1/3", "1.2500", "0.7500", "0.0001", "0.5", "-"),
    ]
    for i in range(20):
        view.on_event(event(f"other{i}", 0, 5.0))
    assert [row[0] for row in view.rows()] == [f"other{i}" for i in range(19, 19 - MOST_SHOWN, -1)]


def test_tokens_per_second_are_of_late(view: TrainingView) -> None:
    view.on_event(event("a", 0, 0.0, 0))
    for step in range(1, 12):
        view.on_event(event("a", step, 100.0 + step, 10 * step))  # the first one took long
    assert view.rows()[0][-1] == "10"


def test_the_time_left_is_said_until_the_end(view: TrainingView) -> None:
    assert view.text() == "0 of 8 operations, 3 min 20 s predicted"
    view.on_event(event("a", 0, 1.0))
    view.on_progress(4, 8)
    assert (view.text(), view.fraction) == ("4 of 8 operations, 1 min 0 s left", 0.5)
    view.on_progress(8, 8)
    assert view.text() == "8 of 8 operations"


def test_elsewhere_than_on_a_terminal_a_line_now_and_then(
    view: TrainingView, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PAUSE_S", 0.0)
    with show_training(view) as refresh:
        view.on_event(event("a", 0, 1.0))
        view.on_progress(4, 8)
        refresh()
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "training: 50%, 4 of 8 operations, 1 min 0 s left, a step 1/9, loss 1.2500"
    assert not said.out


def test_on_a_terminal_there_are_a_bar_and_a_table(
    view: TrainingView, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take anything for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    with show_training(view) as refresh:
        view.on_event(event("a", 0, 1.0))
        view.on_progress(4, 8)
        refresh()
    said = capsys.readouterr()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.err)
    assert re.search(r"^a +1/9 +1\.2500 +- +0\.0001 +- +-", plain, re.MULTILINE)
    assert "4 of 8 operations, 1 min 0 s left" in plain
    assert not said.out
