import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cappuccino.errors import InputError
from cappuccino.runtime.monitoring.lines import LineWriter
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent
from cappuccino.runtime.monitoring.requests import (
    RUN,
    STOP,
    announced,
    ask_to_stop,
    find_run,
    forget_requests,
    fulfilled,
    require_no_run,
)


def event(adapter: str, step: int, kind: str) -> MetricEvent:
    return MetricEvent(
        time_s=0, adapter=adapter, step=step, kind=kind, loss=1.0, learning_rate=None, grad_norm=None, tokens=3
    )


def test_a_run_is_known_while_it_goes_on(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    with announced(tmp_path, {"a": 3, "b": 5}):
        run = find_run(tmp_path)
        assert run is not None
        assert run.adapters == {"a": 3, "b": 5}
        ask_to_stop(tmp_path, ["b"])
        assert [p.name for p in (tmp_path / STOP).iterdir()] == ["b"]
        require_no_run(tmp_path)  # its own
    assert find_run(tmp_path) is None
    fulfilled(tmp_path, "b")
    assert not list(tmp_path.iterdir())


def test_requests_can_be_forgotten(tmp_path: Path) -> None:
    with announced(tmp_path, {"a": 3, "b": 5}):
        ask_to_stop(tmp_path, ["a", "b"])
    fulfilled(tmp_path, "a")
    assert (tmp_path / STOP / "b").is_file()
    forget_requests(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_stopped_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run goes on in it; name the output folder"):
        ask_to_stop(tmp_path, ["a"])
    writer = LineWriter(tmp_path / METRICS)
    with announced(tmp_path, {"a": 3, "b": 5, "c": 2}):
        with pytest.raises(InputError, match=r'does not train "d"; name one of a, b, c'):
            ask_to_stop(tmp_path, ["a", "d"])
        writer.write(event("a", 1, "train"))
        writer.write(event("c", 1, "train"))
        writer.write(event("b", 2, "stop"))
        for name in ("c", "b"):
            with pytest.raises(InputError, match=f'training of "{name}" has ended already'):
                ask_to_stop(tmp_path, ["a", name])
        assert not (tmp_path / STOP).exists()


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    written = {"pid": process.pid, "started_s": started, "adapters": {"a": 1}}
    (tmp_path / RUN).write_text(json.dumps(written))
    with pytest.raises(InputError, match=rf"another run goes on in it \(process {process.pid}\); wait for its end"):
        require_no_run(tmp_path)
    (tmp_path / RUN).write_text(json.dumps(written | {"started_s": started - 60}))  # the number was another's then
    require_no_run(tmp_path)
    process.communicate(b"\n")
    (tmp_path / RUN).write_text(json.dumps(written))
    require_no_run(tmp_path)
