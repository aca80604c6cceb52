"""The processes of one replica: started together, watched, and ended together; needs no torch."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cappuccino.errors import CappuccinoError, InputError
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.protocol import CHECKPOINTS, OPERATION, PART
from cappuccino.runtime.launch.results import StageFailure, read_failure
from cappuccino.runtime.launch.specification import ReplicaSpecification

_LOG_LINES = 8
_GRACE_S = 5.0
"""How long a process may take to end when it is asked to."""
_SETTLE_S = 3.0
"""How long to wait, once one stage failed, for the others to fail as well: the first is the cause."""
_POLL_S = 0.05


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
    """

    def __init__(self, specification: ReplicaSpecification, folder: Path, logs: Path) -> None:
        self.specification = specification
        self._done = [0] * specification.replica.num_stages
        self._written = False
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        path = folder / "specification.json"
        path.write_text(specification.model_dump_json(), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(specification.threads), "TOKENIZERS_PARALLELISM": "false"}
        if sys.platform == "linux":
            # Otherwise gloo looks for the address of the host's name, which need not lead anywhere.
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
            # Activations come and go all the time: given back to the system, every page of them would be zeroed anew.
            environment.setdefault("MALLOC_MMAP_MAX_", "0")
            environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**46))
        try:
            for stage in range(specification.replica.num_stages):
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
        for stage, process in enumerate(self._processes):
            assert process.stdout is not None
            said = process.stdout.read() or b""
            self._done[stage] += said.count(OPERATION)
            self._written |= PART in said
        codes = [process.poll() for process in self._processes]
        if any(code not in (None, 0) for code in codes):
            raise self._failure()
        return all(code == 0 for code in codes)

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
        return self._logs / f"replica-{self.specification.replica.id}-stage-{stage}.log"

    def _failure(self) -> CappuccinoError:
        """Return what the stage that failed first says; the others fail because it is gone."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
            time.sleep(_POLL_S)
        replica = self.specification.replica.id
        failed = [stage for stage, process in enumerate(self._processes) if process.poll() not in (None, 0)]
        said: dict[int, StageFailure] = {}
        for stage in failed:
            record = read_failure(self.specification.results, stage)
            if record is None:
                return RunError(replica, stage, self._silent_end(stage), log=self._log(stage))
            said[stage] = record
        first = min(said, key=lambda stage: said[stage].time_s)
        fields = said[first].input_error
        if fields is not None:
            return InputError(*fields)
        return RunError(replica, first, said[first].reason, said[first].operation, log=self._log(first))

    def _silent_end(self, stage: int) -> str:
        """Describe the end of a process that left no record."""
        code = self._processes[stage].returncode
        how = f"the process exited with status {code}"
        if code < 0:
            how = f"the process was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        lines = self._log(stage).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join([how, *lines[-_LOG_LINES:]])
