"""Trackers are told of every event by transformers' callbacks, and never end a run."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers.integrations

from cappuccino.errors import InputError
from cappuccino.runtime.monitoring import trackers
from cappuccino.runtime.monitoring.metrics import MetricEvent
from cappuccino.runtime.monitoring.trackers import Trackers, chosen_trackers

SETTINGS = {"a": {"rank": 8}, "b": {"rank": 4}}


def event(adapter: str, step: int, **fields: Any) -> MetricEvent:
    values = {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": None, "kind": "train"} | fields
    return MetricEvent(adapter=adapter, step=step, time_s=1.0, tokens=10 * (step + 1), **values)


class Callback:
    """Remembers what it is called with; the second step of b is too much for MLflow's."""

    made: list["Callback"]
    name = ""

    def __init__(self) -> None:
        self.logging_dir: str | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.made.append(self)

    def on_train_begin(self, args: Any, state: Any, control: Any) -> None:
        assert state.is_world_process_zero
        self.calls.append(("begin", args.to_dict(), args.run_name))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float]) -> None:
        if self.name == "mlflow" and "b/loss" in logs and state.global_step == 2:
            raise ConnectionError("no way there\nmore of it")
        self.calls.append(("log", logs, state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any) -> None:
        self.calls.append(("end",))
        print("see https://tracker.example/run")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callback]]:
    found: list[Callback] = []

    def classes(names: list[str]) -> list[type[Callback]]:
        return [type("Named", (Callback,), {"name": name, "made": found}) for name in names]

    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", classes)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    yield found


def tell(names: str, out: Path) -> list[str]:
    """Run two steps of two adapters; return the warnings."""
    warnings: list[str] = []
    told = Trackers(chosen_trackers(names), out, "sweep", SETTINGS, warnings.append)
    told.begin()
    told.begin()
    for step in range(2):
        for adapter in SETTINGS:
            told.on_event(event(adapter, step))
    told.on_event(event("a", 2, loss=None, grad_norm=0.5))
    told.on_event(event("a", 2, kind="eval", loss=3.0))
    told.end()
    return warnings


def figures(prefix: str = "", step: int = 0) -> dict[str, float]:
    return {f"{prefix}loss": 1.5, f"{prefix}learning_rate": 1e-3, f"{prefix}tokens": 10 * (step + 1)}


def test_tensorboard_has_a_folder_an_adapter_with_the_same_keys(
    made: list[Callback], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell("tensorboard", tmp_path) == []
    said = capsys.readouterr()
    assert ("tracker.example" in said.err, said.out) == (True, "")  # stdout is for results
    a, b = made
    assert [a.logging_dir, b.logging_dir] == [str(tmp_path / "tensorboard" / name) for name in "ab"]
    assert b.calls == [
        ("begin", {"rank": 4}, "sweep"),
        ("log", figures(), 1),
        ("log", figures(step=1), 2),
        ("end",),
    ]
    assert a.calls[3:5] == [
        ("log", {"learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 30}, 3),
        ("log", {"eval_loss": 3.0}, 3),
    ]


def test_mlflow_has_one_run_and_may_fail(made: list[Callback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    warnings = tell("mlflow,tensorboard", tmp_path)
    assert warnings == ["mlflow failed and is told nothing more of this run: no way there"]
    assert made[0].calls == [
        ("begin", {"a/rank": 8, "b/rank": 4}, "sweep"),
        ("log", figures("a/"), 1),
        ("log", figures("b/"), 1),
        ("log", figures("a/", 1), 2),
    ]
    assert [callback.calls[-1] for callback in made[1:]] == [("end",), ("end",)]  # the others go on


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_have_one_run_with_the_adapters_names_in_front(
    name: str, made: list[Callback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    client = SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))
    monkeypatch.setitem(sys.modules, name, client)
    assert tell(name, tmp_path) == []
    (callback,) = made
    assert callback.calls == [("begin", {"a/rank": 8, "b/rank": 4}, "sweep"), ("end",)]
    assert logged[:2] == [{**figures(f"{adapter}/"), "train/global_step": 1} for adapter in "ab"]
    assert logged[5] == {"a/eval_loss": 3.0, "train/global_step": 3}
    assert logged[6:] == (["finished"] if name == "wandb" else [])


def test_a_tracker_that_does_not_start_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def classes(names: list[str]) -> None:
        raise RuntimeError("")

    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", classes)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    warnings = tell("tensorboard", tmp_path)
    assert warnings == ["tensorboard failed and is told nothing more of this run: RuntimeError"]


def test_nothing_is_started_for_no_tracker_or_no_run(made: list[Callback], tmp_path: Path) -> None:
    assert tell("none", tmp_path) == []
    told = Trackers(("tensorboard",), tmp_path, "sweep", SETTINGS, pytest.fail)
    told.on_event(event("a", 0))
    told.end()
    assert not made


def test_trackers_that_are_not_known_or_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    assert chosen_trackers(None) == ("tensorboard",)
    assert chosen_trackers("trackio, mlflow,trackio") == ("trackio", "mlflow")
    with pytest.raises(InputError, match='--report-to: "wandb" is not installed; pip install wandb'):
        chosen_trackers("tensorboard,wandb")
    with pytest.raises(InputError, match='"comet" is not known; name some of tensorboard, wandb'):
        chosen_trackers("comet")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert chosen_trackers(None) == ()


def test_tensorboard_itself_shows_this_runs_curves_only(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        assert tell("tensorboard", tmp_path) == []
    for name, steps in (("a", [1, 2]), ("b", [1, 2])):
        assert len(list((tmp_path / "tensorboard" / name).iterdir())) == 1
        found = EventAccumulator(str(tmp_path / "tensorboard" / name))
        found.Reload()
        assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(step, 1.5) for step in steps]
