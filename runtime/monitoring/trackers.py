"""Experiment trackers, told of a run's events by the callbacks that transformers has for them."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from cappuccino.errors import InputError
from cappuccino.runtime.monitoring.metrics import MetricEvent
from cappuccino.runtime.monitoring.monitor import TENSORBOARD

if TYPE_CHECKING:
    from transformers import TrainerCallback

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_PROJECT = "cappuccino"


def chosen_trackers(names: str | None) -> tuple[str, ...]:
    """Return the trackers that a comma-separated list names.

    Parameters
    ----------
    names
        `none`, or some of `TRACKERS`; None: TensorBoard where it is installed.

    Raises
    ------
    InputError
        When one is not known or not installed.
    """
    if names is None:
        return ("tensorboard",) if find_spec("tensorboard") else ()
    if names == "none":
        return ()
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in TRACKERS:
            remedy = f"name some of {', '.join(TRACKERS)}, separated by commas, or none"
            raise InputError("--report-to", "", f'"{name}" is not known', remedy)
        if find_spec(name) is None:
            raise InputError("--report-to", "", f'"{name}" is not installed', f"pip install {name}, or leave it out")
    return chosen


class Trackers:
    """Hands events to trackers, beside the run: neither a slow one nor one that fails keeps it up.

    Parameters
    ----------
    names
        As `chosen_trackers` gives them.
    out
        Output folder of the run; TensorBoard's files go to `tensorboard/<adapter>` in it.
    run_name
        What the run is called.
    settings
        By adapter, what is to be known of it.
    on_warning
        Told, from another thread, of a tracker that failed and gets nothing more.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        out: Path,
        run_name: str,
        settings: Mapping[str, Mapping[str, Any]],
        on_warning: Callable[[str], None],
    ) -> None:
        self._names, self._out, self._run_name, self._settings = names, out, run_name, settings
        self._on_warning = on_warning
        self._events: SimpleQueue[MetricEvent | None] = SimpleQueue()
        self._thread: Thread | None = None

    def begin(self) -> None:
        """Start the trackers, once the run is sure to start; further calls do nothing."""
        if self._names and self._thread is None:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()

    def on_event(self, event: MetricEvent) -> None:
        """Hand on an event."""
        self._events.put(event)

    def end(self) -> None:
        """Wait until the trackers have all events, and end their runs."""
        if self._thread is not None:
            self._events.put(None)
            self._thread.join()

    def _work(self) -> None:
        with redirect_stdout(sys.stderr):  # of the whole process: some print there, where results belong
            self._serve()

    def _serve(self) -> None:
        working: dict[str, _Tracker] = {}
        for name in self._names:
            kind = _TensorBoard if name == "tensorboard" else _OneRun
            with _Guard(name, working, self._on_warning):
                working[name] = kind(name, self._out, self._run_name, self._settings)
        while (event := self._events.get()) is not None:
            for name, tracker in list(working.items()):
                with _Guard(name, working, self._on_warning):
                    tracker.log(event)
        for name, tracker in list(working.items()):
            with _Guard(name, working, self._on_warning):
                tracker.end()


class _Guard:
    """Turns what a tracker raises into one warning, and takes it out of those at work."""

    def __init__(self, name: str, working: "dict[str, _Tracker]", on_warning: Callable[[str], None]) -> None:
        self._name, self._working, self._on_warning = name, working, on_warning

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._working.pop(self._name, None)
        what = str(error).strip().partition("\n")[0] or type(error).__name__
        self._on_warning(f"{self._name} failed and is told nothing more of this run: {what}")
        return True


class _Callback:
    """One of transformers' callbacks, called as its trainer would."""

    def __init__(self, callback: "TrainerCallback", out: Path, run_name: str, settings: Mapping[str, Any]) -> None:
        from transformers import TrainerControl, TrainerState, TrainingArguments  # noqa: PLC0415

        class Arguments(TrainingArguments):
            """Says of the settings only what is so: its own defaults are those of another trainer."""

            def to_dict(self) -> dict[str, Any]:
                return dict(settings)

        self._callback = callback
        self._arguments = Arguments(
            output_dir=str(out), run_name=run_name, project=_PROJECT, report_to="none", use_cpu=True
        )
        self._state, self._control = TrainerState(), TrainerControl()
        callback.on_train_begin(self._arguments, self._state, self._control)

    def log(self, logs: Mapping[str, float], step: int) -> None:
        self._state.global_step = step
        self._callback.on_log(self._arguments, self._state, self._control, logs=dict(logs))

    def end(self) -> None:
        self._callback.on_train_end(self._arguments, self._state, self._control)


class _TensorBoard:
    """One folder an adapter, under the same keys, so that curves lie over each other."""

    def __init__(self, name: str, out: Path, run_name: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._callbacks = {}
        for adapter, fields in settings.items():
            folder = out / TENSORBOARD / adapter
            for earlier in folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            callback = _callback_of(name)
            callback.logging_dir = str(folder)
            self._callbacks[adapter] = _Callback(callback, out, run_name, fields)

    def log(self, event: MetricEvent) -> None:
        self._callbacks[event.adapter].log(_figures(event), event.step + 1)

    def end(self) -> None:
        for callback in self._callbacks.values():
            callback.end()


class _OneRun:
    """One run for all adapters, whose names begin the keys."""

    def __init__(self, name: str, out: Path, run_name: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
        os.environ.setdefault("WANDB_PROJECT", _PROJECT)
        flat = {f"{adapter}/{key}": value for adapter, fields in settings.items() for key, value in fields.items()}
        self._name = name
        self._client = importlib.import_module(name)
        self._callback = _Callback(_callback_of(name), out, run_name, flat)

    def log(self, event: MetricEvent) -> None:
        figures = {f"{event.adapter}/{key}": value for key, value in _figures(event).items()}
        if self._name == "mlflow":
            self._callback.log(figures, event.step + 1)
        else:  # their callbacks put "train/" before every key; the steps are those that they set up
            self._client.log({**figures, "train/global_step": event.step + 1})

    def end(self) -> None:
        self._callback.end()
        if self._name == "wandb":  # its callback leaves the run open
            self._client.finish()


_Tracker = _TensorBoard | _OneRun


def _callback_of(name: str) -> Any:
    from transformers.integrations import get_reporting_integration_callbacks  # noqa: PLC0415

    return get_reporting_integration_callbacks([name])[0]()


def _figures(event: MetricEvent) -> dict[str, float]:
    """Return what is plotted of an event, by transformers' names; what is not known, or not finite, is left out."""
    if event.kind == "eval":
        found = {"eval_loss": event.loss}
    elif event.kind == "train":
        found = {name: getattr(event, name) for name in ("loss", "learning_rate", "grad_norm", "tokens")}
    else:
        found = {}
    return {name: value for name, value in found.items() if value is not None}
