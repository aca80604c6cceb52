"""Cores, memory and GPUs of this machine."""

import os
import shutil
import subprocess
from dataclasses import dataclass

_PATIENCE_S = 5.0
"""For `nvidia-smi`, which takes a moment where no program uses the GPUs."""
_QUERY = ("--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits")
_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory_gib: float
    free_gib: float
    driver: str


def num_cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> tuple[float, float] | None:
    """Return memory in all and what is free of it, GiB; None where psutil, which tells it, is missing."""
    try:
        import psutil  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    found = psutil.virtual_memory()
    return found.total / 2**30, found.available / 2**30


def nvidia_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that the driver names, and why there are none; torch is not asked, importing it takes seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), "nvidia-smi is not there"
    try:
        done = subprocess.run(
            [program, *_QUERY],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi fails: {error}"
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        return (), f"nvidia-smi fails: {said[0] if said else f'exit code {done.returncode}'}"
    found = tuple(_gpu(line) for line in done.stdout.splitlines() if line.count(",") >= 3)
    return found, "" if found else "nvidia-smi names none"


def _gpu(line: str) -> Gpu:
    name, total, free, driver = (part.strip() for part in line.rsplit(",", 3))
    return Gpu(name, _gib(total), _gib(free), driver)


def _gib(mebibytes: str) -> float:
    """Return memory in GiB; NaN for what the driver does not tell (`[N/A]`)."""
    return float(mebibytes) / _MIB_PER_GIB if mebibytes.replace(".", "", 1).isdigit() else float("nan")
