"""A call in a process of its own, so that its peak memory is its own."""

import multiprocessing
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

from cappuccino.errors import CappuccinoError

P = ParamSpec("P")
R = TypeVar("R")

_LOOK_EVERY_S = 0.2


class ProcessError(RuntimeError):
    """The process ended without a result, or with an error that no user can cure; its traceback went to stderr."""


def run_isolated(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
    """Call a function in a new process and wait for it.

    Parameters
    ----------
    function
        Of a module that the new process can import; arguments and result are pickled.

    Returns
    -------
    tuple
        The result, and the peak memory in GiB: the new process and everything that it starts, looked at five times a
        second.

    Raises
    ------
    CappuccinoError
        With the message of the one that the function raised.
    ProcessError
        When it raised any other error, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args, kwargs))
    process.start()
    sender.close()
    peak = 0.0
    try:
        while not receiver.poll(_LOOK_EVERY_S):
            peak = max(peak, _tree_memory(process.pid or 0))
        outcome, value, own_peak = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessError(f"{function.__name__} ended without a result (exit code {process.exitcode})") from None
    finally:
        receiver.close()
        if sys.exc_info()[0] is not None:
            process.terminate()
        process.join()
    if outcome == "refused":
        raise CappuccinoError(value)
    if outcome == "failed":
        raise ProcessError(f"{function.__name__} failed: {value}")
    return value, max(peak, own_peak) / 2**30


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        result = ("done", function(*args, **kwargs))
    except CappuccinoError as error:  # errors with several arguments do not survive pickling, their messages do
        result = ("refused", str(error))
    except Exception as error:
        traceback.print_exc()
        result = ("failed", f"{type(error).__name__}: {error}")
    sender.send((*result, _own_peak()))
    sender.close()


def _own_peak() -> float:
    """Return the peak resident memory of this process, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # the other figure starts at what the parent had when it started this process
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024.0 * int(kib)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _tree_memory(root: int) -> float:
    """Return the resident memory of a process and its descendants, bytes; pages they share count once for each."""
    total = 0.0
    try:
        process = psutil.Process(root)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for member in family:
        with suppress(psutil.NoSuchProcess):  # ended meanwhile
            total += member.memory_info().rss
    return total
