"""What this machine can do with this package, and the command that brings what is missing."""

import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cappuccino.errors import InputError
from cappuccino.files import read_json
from cappuccino.machine.hardware import Gpu, memory_gib, num_cores, nvidia_gpus
from cappuccino.machine.installation import Installation, find_installation
from cappuccino.machine.kernels import KernelCache, kernel_cache
from cappuccino.machine.packages import PackageState, package_states, torch_build

OLDEST_PYTHON = (3, 11)
PURPOSES = {
    "": "planning",
    "runtime": "training and profiling",
    "gpu": "attention kernels of GPUs",
    "report": "pages of `cappuccino report`",
    "tracking": "TensorBoard, which `run` tells where it is installed",
}
"""What the extras that are looked at are for; the first one is no extra."""


@dataclass(frozen=True)
class ExtraState:
    """What one extra brings, and what of it is missing."""

    extra: str
    """Empty for what planning needs."""
    purpose: str
    packages: tuple[PackageState, ...]
    command: str | None
    """What brings the rest; None where nothing is missing."""

    @property
    def lacking(self) -> tuple[PackageState, ...]:
        """The packages that are not there, or not in a version that will do."""
        return tuple(p for p in self.packages if p.state != "ok")


@dataclass(frozen=True)
class Checkup:
    """What was found."""

    installation: Installation
    python: str
    cores: int
    memory: tuple[float, float] | None
    """In all and free, GiB; None where it cannot be told."""
    gpus: tuple[Gpu, ...]
    no_gpus: str
    """Why there are none."""
    extras: tuple[ExtraState, ...]
    torch_build: str | None
    """`cpu`, or what it was built for; None without torch."""
    ray: str | None
    """Version of Ray, which nothing here needs."""
    kernels: KernelCache
    instances: int
    """Shipped with the package."""
    problems: tuple[str, ...]
    """Why planning cannot work; none where it works."""

    @property
    def plans(self) -> bool:
        """Whether planning works."""
        return not self.problems

    @property
    def trains(self) -> bool:
        """Whether `run` and `profile` work, on the CPU at least."""
        return self.plans and not self._state("runtime").lacking

    @property
    def trains_on_gpus(self) -> bool:
        """Whether they work on GPUs."""
        return self.trains and bool(self.gpus) and (self.torch_build or "").startswith("cuda")

    def _state(self, extra: str) -> ExtraState:
        return next(state for state in self.extras if state.extra == extra)

    def figures(self) -> dict[str, Any]:
        """Return all of it as values of JSON."""
        return {
            "planning": self.plans,
            "training": self.trains,
            "training_on_gpus": self.trains_on_gpus,
            "problems": list(self.problems),
            "installation": {key: getattr(self.installation, key) for key in ("origin", "place", "editable")},
            "python": self.python,
            "cores": self.cores,
            "memory_gib": self.memory and self.memory[0],
            "free_memory_gib": self.memory and self.memory[1],
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "torch_build": self.torch_build,
            "ray": self.ray,
            "extras": [
                {"extra": s.extra, "for": s.purpose, "packages": [asdict(p) for p in s.packages], "command": s.command}
                for s in self.extras
            ],
            "kernels": asdict(self.kernels),
            "instances": self.instances,
        }


def check_up() -> Checkup:
    """Look at this machine; takes a moment, for no large package is imported."""
    installation = find_installation()
    extras = tuple(_extra_state(installation, extra, purpose) for extra, purpose in PURPOSES.items())
    gpus, why_none = nvidia_gpus()
    instances, unreadable = _shipped_instances()
    return Checkup(
        installation=installation,
        python=platform.python_version(),
        cores=num_cores(),
        memory=memory_gib(),
        gpus=gpus,
        no_gpus=why_none,
        extras=extras,
        torch_build=torch_build(),
        ray=_version("ray"),
        kernels=kernel_cache(),
        instances=instances,
        problems=tuple(filter(None, (_old_python(), _lacking(extras[0]), unreadable))),
    )


def _extra_state(installation: Installation, extra: str, purpose: str) -> ExtraState:
    packages = package_states(installation.requirements.get(extra, ()))
    complete = all(p.state == "ok" for p in packages)
    command = None if complete else installation.install_command(*filter(None, [extra]))
    return ExtraState(extra, purpose, packages, command)


def _old_python() -> str:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return f"Python is older than {oldest}" if sys.version_info < OLDEST_PYTHON else ""


def _lacking(needed: ExtraState) -> str:
    return f"planning lacks {', '.join(p.described for p in needed.lacking)}" if needed.lacking else ""


def _shipped_instances() -> tuple[int, str]:
    """Return how many instances the index of the library names, and what is wrong with it."""
    found = find_spec("cappuccino.instances")
    if found is None or found.origin is None:
        return 0, "the shipped instances are missing"
    try:
        return len(read_json(Path(found.origin).parent / "index.json")["entries"]), ""
    except (InputError, KeyError, TypeError) as error:
        return 0, f"the shipped instances cannot be read: {error}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
