"""What others may know and ask of a run that goes on: who trains in this folder, and which adapters are to end.

Needs no torch.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cappuccino.errors import InputError
from cappuccino.files import Record, parse_model, read_json, require_folder, write_atomically
from cappuccino.runtime.monitoring.metrics import METRICS, read_events

RUN, STOP = "run.json", "stop"
"""Names in a run's output folder: of the file that is there while it goes on, and of the folder of requests."""


class RunningRun(Record):
    """A run that goes on."""

    pid: int
    """Of the process that looks after it, on the machine that it runs on."""
    started_s: float
    """When that process was started, seconds since the epoch: numbers of processes come again."""
    adapters: dict[str, int]
    """By adapter, its optimizer steps."""

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started_s) < 1
        except psutil.Error:
            return False


def find_run(out: Path) -> RunningRun | None:
    """Return the run that goes on in a folder, None where there is none."""
    file = out / RUN
    if not file.is_file():
        return None
    found = parse_model(RunningRun, read_json(file), file)
    return found if found.alive else None


def require_no_run(out: Path) -> None:
    """Refuse a folder in which another process trains."""
    run = find_run(out)
    if run is not None and run.pid != os.getpid():
        problem = f"another run goes on in it (process {run.pid})"
        raise InputError(out, "", problem, "wait for its end, or name another folder")


@contextmanager
def announced(out: Path, adapters: Mapping[str, int]) -> Iterator[None]:
    """Let others know of a run while the context lasts."""
    own = RunningRun(pid=os.getpid(), started_s=psutil.Process().create_time(), adapters=dict(adapters))
    write_atomically(out / RUN, own.model_dump_json() + "\n")
    try:
        yield
    finally:
        with suppress(OSError):
            (out / RUN).unlink(missing_ok=True)


def ask_to_stop(out: Path, names: Sequence[str]) -> None:
    """Ask the run in a folder to end the training of adapters before their next optimizer step.

    Raises
    ------
    InputError
        When no run goes on there, or it does not train such an adapter, or not any more; nothing is asked then.
    """
    run = find_run(out)
    if run is None:
        remedy = "name the output folder of a run that goes on; a run that has ended has nothing to stop"
        raise InputError(out, "", "no run goes on in it", remedy)
    for name in names:
        if name not in run.adapters:
            known = ", ".join(run.adapters)
            raise InputError(out, "", f'the run in it does not train "{name}"', f"name one of {known}")
    for event in read_events(out / METRICS):
        last = event.kind == "train" and event.step + 1 == run.adapters.get(event.adapter)
        if event.adapter in names and (last or event.kind == "stop"):
            raise InputError(out, "", f'the training of "{event.adapter}" has ended already', "leave it out")
    folder = out / STOP
    require_folder(folder)
    for name in names:
        write_atomically(folder / name, f"{time.time():.0f}\n")


def forget_requests(out: Path) -> None:
    """Take all requests back."""
    shutil.rmtree(out / STOP, ignore_errors=True)


def fulfilled(out: Path, name: str) -> None:
    """Take a request back that the run has fulfilled, or that comes too late."""
    with suppress(OSError):
        (out / STOP / name).unlink(missing_ok=True)
        (out / STOP).rmdir()  # once it is empty
