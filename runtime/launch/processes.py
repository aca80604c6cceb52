"""The processes of one replica: started together, watched, and ended together; needs no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cappuccino.errors import CappuccinoError, InputError
from cappuccino.files import Record, write_atomically
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.protocol import CHECKPOINTS, OPERATION, PART
from cappuccino.runtime.launch.results import StageFailure, read_failure
from cappuccino.runtime.launch.specification import ReplicaSpecification

_LOG_LINES = 8
_GRACE_S = 5.0
"""How long a process may take to end when it is asked to."""
SETTLE_S = 3.0
"""How long to wait, once one stage failed, for the others to fail as well: the first is the cause."""
_POLL_S = 0.05


class StageEnd(Record):
    """How the process of a stage failed."""

    stage: int
    """Which stage."""
    failure: StageFailure
    """Why; its moment is in seconds since the epoch."""
    silent: bool
    """Whether the process left no record itself: it is the first to have failed then."""


def cause(replica: int, ends: Sequence[StageEnd], logs: Path) -> CappuccinoError:
    """Return what the stage that failed first says; the others fail because it is gone.

    Parameters
    ----------
    replica
        Id of the replica.
    ends
        Of the stages that failed, at least one.
    logs
        Folder of what they printed.
    """
    first = min(ends, key=lambda end: (not end.silent, end.failure.time_s, end.stage))
    fields = first.failure.input_error
    if fields is not None:
        return InputError(*fields)
    log = _log_file(logs, replica, first.stage)
    return RunError(replica, first.stage, first.failure.reason, first.failure.operation, log=log)


def _log_file(logs: Path, replica: int, stage: int) -> Path:
    return logs / f"replica-{replica}-stage-{stage}.log"


class ReplicaProcesses:
    """One process per stage.

    Parameters
    ----------
    specification
        What they are to do.
    folder
        For the specification.
    logs
        For what they print.
    stages
        Those that run on this machine, where others run elsewhere; None: all.
    """

    def __init__(
        self, specification: ReplicaSpecification, folder: Path, logs: Path, stages: Sequence[int] | None = None
    ) -> None:
        self.specification = specification
        self._stages = list(range(specification.replica.num_stages) if stages is None else stages)
        self._done = [0] * specification.replica.num_stages
        self._written = False
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        path = folder / "specification.json"
        if 0 in self._stages:
            write_atomically(path, specification.model_dump_json())
        environment = os.environ | {"OMP_NUM_THREADS": str(specification.threads), "TOKENIZERS_PARALLELISM": "false"}
        if sys.platform == "linux":
            if stages is None:
                # Otherwise gloo looks for the address of the host's name, which need not lead anywhere.
                environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            # Activations come and go all the time: given back to the system, every page of them would be zeroed anew.
            environment.setdefault("MALLOC_MMAP_MAX_", "0")
            environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**46))
        try:
            for stage in self._stages:
                command = [sys.executable, "-m", "cappuccino.runtime.launch.worker", str(path), str(stage)]
                with self._log(stage).open("ab") as log:
                    process = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
                    )
                self._processes.append(process)
                assert process.stdout is not None  # by PIPE
                os.set_blocking(process.stdout.fileno(), False)
        except BaseException:
            self.stop()
            raise

    @property
    def done(self) -> int:
        """Operations finished so far, over all stages."""
        return sum(self._done)

    @property
    def running(self) -> bool:
        """Whether a process that was started here has not ended."""
        return any(process.poll() is None for process in self._processes)

    def steps_done(self) -> dict[str, int]:
        """Return the optimizer steps of every adapter that some stage has done, those before this run included."""
        replica = self.specification.replica
        steps: dict[str, int] = {}
        for program, done in zip(replica.programs, self._done, strict=True):
            for operation in program[:done]:
                if operation[0] == "S":
                    name = replica.adapters[operation[1]]
                    steps[name] = max(steps.get(name, 0), operation[2] + 1)
        return steps

    def take_written(self) -> bool:
        """Return whether a stage has written a part of a checkpoint since this was asked last."""
        written, self._written = self._written, False
        return written

    def ask_for_checkpoints(self) -> None:
        """Ask the stages to write a checkpoint after every optimizer step from now on."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # a process that is gone is found by the next poll
                process.stdin.write(CHECKPOINTS)
                process.stdin.flush()

    def poll(self) -> bool:
        """Take note of progress; return whether all stages are done.

        Raises
        ------
        InputError
            When a stage found the input to be wrong.
        RunError
            When a stage failed otherwise.
        """
        if self.look():
            raise cause(self.specification.replica.id, self.failures(), self._logs)
        return all(process.poll() == 0 for process in self._processes)

    def look(self) -> bool:
        """Take note of progress; return whether a process has failed."""
        for stage, process in zip(self._stages, self._processes, strict=True):
            assert process.stdout is not None
            said = process.stdout.read() or b""
            self._done[stage] += said.count(OPERATION)
            self._written |= PART in said
        return any(process.poll() not in (None, 0) for process in self._processes)

    def failures(self) -> list[StageEnd]:
        """Return how the processes that failed ended; a failure of one soon is one of others, which are waited for."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
            time.sleep(_POLL_S)
        ends = []
        for stage, process in zip(self._stages, self._processes, strict=True):
            if process.poll() in (None, 0):
                continue
            said = read_failure(self.specification.results, stage)
            if said is None:
                said = StageFailure(time_s=0.0, operation=None, reason=self._silent_end(stage), input_error=None)
                ends.append(StageEnd(stage=stage, failure=said, silent=True))
            else:  # the monotonic clocks of machines begin when they please
                moment = time.time() - (time.perf_counter() - said.time_s)
                ends.append(StageEnd(stage=stage, failure=said.model_copy(update={"time_s": moment}), silent=False))
        return ends

    def stop(self, *, at_once: bool = False) -> None:
        """End every process that still runs, by asking, unless at once, and then by force, and wait for it."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        deadline = time.monotonic() + (0 if at_once else _GRACE_S)
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _log(self, stage: int) -> Path:
        return _log_file(self._logs, self.specification.replica.id, stage)

    def _silent_end(self, stage: int) -> str:
        """Describe the end of a process that left no record."""
        code = self._processes[self._stages.index(stage)].returncode
        how = f"the process exited with status {code}"
        if code < 0:
            how = f"the process was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        lines = self._log(stage).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join([how, *lines[-_LOG_LINES:]])
