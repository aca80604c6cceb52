"""What one sees of a run while it trains: a line an adapter on a terminal, a line now and then elsewhere."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cappuccino.cli.terminal import console
from cappuccino.reports.remaining_time import RemainingTime

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cappuccino.runtime.monitoring.metrics import MetricEvent

COLUMNS = ("adapter", "step", "loss", "eval loss", "learning rate", "norm", "tokens/s")
MOST_SHOWN = 12
"""Adapters with a line of their own: those that had a step last."""
_RECENT = 10
"""Steps over which tokens per second are averaged."""
_UNKNOWN = "-"
_REFRESHES_PER_S = 4


class TrainingView:
    """What is known of a run so far.

    Parameters
    ----------
    steps
        By adapter, its optimizer steps.
    remaining
        Told of every step.
    """

    def __init__(self, steps: Mapping[str, int], remaining: RemainingTime) -> None:
        self._steps, self._remaining = steps, remaining
        self._recent: dict[str, deque[MetricEvent]] = {}
        self._evaluated: dict[str, str] = {}
        self._stopped: dict[str, str] = {}
        self._begun = False
        self._done, self._total = 0, 1

    @property
    def fraction(self) -> float:
        """How much of the run is done, in operations."""
        return self._done / max(1, self._total)

    def on_progress(self, done: int, total: int) -> None:
        """Take note of the operations done and the operations in all."""
        self._begun = True
        self._done, self._total = done, total

    def on_event(self, event: "MetricEvent") -> None:
        """Take note of an event; before the first progress, of one of the run that this one goes on from."""
        if event.kind == "eval":
            self._evaluated[event.adapter] = _shown(event.loss)
            return
        if not self._begun:
            self._remaining.note_earlier(event.adapter, event.step)
            return
        if event.kind == "stop":
            self._stopped[event.adapter] = "stopped" if event.reason is None else event.reason.value
            self._remaining.note_stop(event.adapter, event.step)
            return
        self._remaining.note(event.adapter, event.step, event.time_s)
        recent = self._recent.pop(event.adapter, None) or deque(maxlen=_RECENT + 1)
        recent.append(event)
        self._recent[event.adapter] = recent  # the last one is that of the last step

    def rows(self) -> list[tuple[str, ...]]:
        """Return the adapters' lines, by `COLUMNS`, most recent first."""
        rows: list[tuple[str, ...]] = []
        for name, recent in list(reversed(self._recent.items()))[:MOST_SHOWN]:
            event, first = recent[-1], recent[0]
            seconds = event.time_s - first.time_s
            rows.append(
                (
                    name,
                    self._stopped.get(name) or f"{event.step + 1}/{self._steps[name]}",
                    _shown(event.loss),
                    self._evaluated.get(name, _UNKNOWN),
                    _UNKNOWN if event.learning_rate is None else f"{event.learning_rate:.3g}",
                    _UNKNOWN if event.grad_norm is None else f"{event.grad_norm:.3g}",
                    f"{(event.tokens - first.tokens) / seconds:.0f}" if seconds > 0 else _UNKNOWN,
                )
            )
        return rows

    def text(self) -> str:
        """Return how far the run is, in a line."""
        done = f"{self._done} of {self._total} operations"
        if self._done >= self._total:
            return done
        if not self._recent:
            return f"{done}, {_duration(self._remaining.total_s)} predicted"
        return f"{done}, {_duration(self._remaining.seconds())} left"

    def latest(self) -> str:
        """Return the step that came last, in a line; empty before the first."""
        if not self._recent:
            return ""
        name, step, loss, *_ = self.rows()[0]
        return f"{name} step {step}, loss {loss}"


def _shown(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


@contextmanager
def show_training(view: TrainingView) -> Iterator[Callable[[], None]]:
    """Show a run on stderr while the context lasts.

    Yields
    ------
    Callable
        To be called when something was done: elsewhere than on a terminal, which is kept fresh, it prints now and then.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    terminal = Console(stderr=True)
    if console.is_quiet() or not terminal.is_terminal:
        with console.progress_bar("training") as show:
            yield lambda: show(view.fraction, ", ".join(filter(None, (view.text(), view.latest()))))
        return
    with Live(
        console=terminal,
        get_renderable=lambda: _render(view),
        refresh_per_second=_REFRESHES_PER_S,
        transient=True,
        redirect_stdout=False,
    ):
        yield lambda: None
    console.note(f"training: {view.text()}")


def _render(view: TrainingView) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in view.rows():
        table.add_row(*map(Text, row))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(Text("training"), ProgressBar(completed=100 * view.fraction, width=40), Text(view.text()))
    return Group(*([table] if view.rows() else []), bar)


def _duration(seconds: float) -> str:
    """Return a time in the two largest units that it has."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
