"""Runs in processes of their own, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cappuccino.instance import Instance, save_instance
from cappuccino.plan import Plan

_CODE = """
import sys
from pathlib import Path
from cappuccino.errors import CappuccinoError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime.launch.interruption import interruptible
from cappuccino.runtime.launch.keeper import CheckpointOptions
from cappuccino.runtime.launch.local import run_plan
plan, instance, backbone, data, out, every, *resume = sys.argv[1:]
try:
    with interruptible(lambda: None) as interruption:
        run_plan(
            Plan.load(plan), Instance.load(instance), Path(backbone), Path(data), Path(out), dtype="float64",
            checkpoints=CheckpointOptions(int(every)), resume=bool(resume), interruption=interruption,
        )
except CappuccinoError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""


@dataclass(frozen=True)
class Ended:
    """How a run in a process of its own ended."""

    status: int
    said: str
    left_running: list[int]
    """Processes that were there ten seconds later."""


@dataclass(frozen=True)
class Launching:
    """How to start a run again and again."""

    folder: Path
    """For the files that the processes read."""
    plan: Plan
    instance: Instance
    backbone: Path
    data: Path
    out: Path
    every: int

    def start(self, *, resume: bool) -> "Launched":
        """Start the run."""
        self.plan.save(self.folder / "plan.json")
        save_instance(self.instance, self.folder / "instance.json")
        files = (self.folder / "plan.json", self.folder / "instance.json", self.backbone, self.data, self.out)
        command = [sys.executable, "-c", _CODE, *map(str, files), str(self.every), *(["resume"] if resume else [])]
        return Launched(subprocess.Popen(command, stderr=subprocess.PIPE, text=True), self.out)

    def steps(self) -> dict[str, int]:
        """Return by adapter the newest step with a manifest."""
        found: dict[str, int] = {}
        for manifest in (self.out / "checkpoints").glob("*/step-*/checkpoint.json"):
            name, step = manifest.parent.parent.name, int(manifest.parent.name.removeprefix("step-"))
            found[name] = max(found.get(name, 0), step)
        return found


class Launched:
    """A run under way."""

    def __init__(self, launcher: "subprocess.Popen[str]", out: Path) -> None:
        self.launcher, self._out = launcher, out

    def stages(self) -> list[psutil.Process]:
        """Return the processes of the stages."""
        try:
            return psutil.Process(self.launcher.pid).children()
        except psutil.NoSuchProcess:
            return []

    def wait_for_new_checkpoint(self) -> None:
        """Wait until a checkpoint is complete that was not there before."""
        folder = self._out / "checkpoints"
        before = set(folder.rglob("checkpoint.json"))
        while set(folder.rglob("checkpoint.json")) <= before:
            assert self.launcher.poll() is None, "the run ended before it wrote a checkpoint"
            time.sleep(0.01)

    def wait_for_write(self) -> None:
        """Wait until something is being written to a checkpoint; as long as that can be seen."""
        while self.launcher.poll() is None:
            if any(name.endswith(".tmp") for _, _, names in os.walk(self._out / "checkpoints") for name in names):
                return

    def end(self, number: int, stage: int | None = None) -> Ended:
        """Send a signal to the launcher, or to one of its stages, and wait until all is over."""
        stages = self.stages()
        target = self.launcher if stage is None else stages[stage] if stage < len(stages) else None
        if target is not None:  # otherwise the stage has ended already
            with suppress(psutil.NoSuchProcess):
                target.send_signal(number)
        _, said = self.launcher.communicate()
        _, alive = psutil.wait_procs(stages, timeout=10)
        for process in alive:
            process.kill()
        return Ended(self.launcher.returncode, said, [process.pid for process in alive])

    def wait(self) -> Ended:
        """Wait until the run is done."""
        stages: list[psutil.Process] = []
        while self.launcher.poll() is None:
            stages = stages or self.stages()
            time.sleep(0.05)
        return Ended(
            self.launcher.returncode, self.launcher.communicate()[1], [p.pid for p in stages if p.is_running()]
        )


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
