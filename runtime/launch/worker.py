"""What the process of one stage does: `python -m cappuccino.runtime.launch.worker SPECIFICATION STAGE`.

The launcher holds the other ends of two pipes: standard input, which asks for checkpoints and closes when the launcher
dies, and standard output, on which the process writes one byte per finished operation and part of a checkpoint. Signals
to end go to the launcher, and reach the process, which terminals and schedulers send them to as well, in this way.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from cappuccino.files import parse_model, read_json
from cappuccino.runtime.launch.protocol import CHECKPOINTS, PATIENCE, StageProgress
from cappuccino.runtime.launch.results import as_failure, failure_file, report_file, write_record
from cappuccino.runtime.launch.specification import ReplicaSpecification

_REASON_LINES = 8
_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def main(arguments: list[str]) -> NoReturn:
    """Run one stage and leave with exit status 0, or 1 when it failed."""
    path, stage = Path(arguments[0]), int(arguments[1])
    progress = StageProgress(os.dup(1))
    os.dup2(2, 1)  # whatever libraries print must not look like progress
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    asked = threading.Event()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    specification = parse_model(ReplicaSpecification, read_json(path), path)
    try:
        run_stage(specification, stage, progress, asked)
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        reason = "\n".join(lines[-_REASON_LINES:])
        failure = as_failure(error, time.perf_counter(), reason, progress.done)
        write_record(failure_file(specification.results, stage), failure)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the destructors of process groups would wait for the other stages
    sys.stderr.flush()
    os._exit(0)  # all is written, and taking down what was imported takes seconds


def _listen(asked: threading.Event) -> None:
    """Take note that checkpoints are asked for, and end the process with its launcher."""
    while said := os.read(0, 1):
        if said == CHECKPOINTS:
            asked.set()
    os._exit(1)


def _die_with_parent() -> None:
    """Let the system end the process with its launcher, should no thread of it get to run, where it can do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_stage(specification: ReplicaSpecification, stage: int, progress: StageProgress, asked: threading.Event) -> None:
    """Build a stage, run its program and write its results.

    Parameters
    ----------
    specification
        Of the replica.
    stage
        Which stage.
    progress
        Told of every operation.
    asked
        Set when checkpoints are wanted after every step.
    """
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(specification.threads)
    on_gpu = specification.device == "cuda"
    device = torch.device("cuda", specification.device_indices[stage]) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # by its path: torch does not decode the URL of a file whose name has a space in it
    store = dist.FileStore(str(specification.rendezvous.absolute()), specification.replica.num_stages)  # type: ignore[attr-defined]
    store.set_timeout(PATIENCE)
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        store=store,
        rank=stage,
        world_size=specification.replica.num_stages,
        timeout=PATIENCE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # megatron-core warns of every optional kernel that is not there
        from cappuccino.runtime.launch.stage_training import train_stage  # noqa: PLC0415

        report = train_stage(specification, stage, progress, asked, device)
    write_record(report_file(specification.results, stage), report)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
