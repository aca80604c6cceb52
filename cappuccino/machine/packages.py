"""Which of the packages that this one needs are there, told by their metadata: none of them is imported."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

State = Literal["ok", "missing", "wrong version", "broken"]
_MODULES = {"pyyaml": "yaml", "megatron-core": "megatron"}
"""Top-level modules that are not called like their distribution."""


@dataclass(frozen=True)
class PackageState:
    """A package that is needed, and whether it is there."""

    name: str
    wanted: str
    """Versions that will do, as pip writes them; empty for any."""
    version: str | None
    """That is installed; None where there is none."""
    state: State
    """`broken`: listed as installed, and its files are gone."""

    @property
    def described(self) -> str:
        """What there is to say of it, in a few words."""
        if self.state == "ok":
            return f"{self.name} {self.version}"
        if self.state == "wrong version":
            return f"{self.name} {self.version} (needed: {self.wanted})"
        return f"{self.name} ({self.state})"


def package_states(requirements: Iterable[str]) -> tuple[PackageState, ...]:
    """Return the state of every package that applies to this system.

    Parameters
    ----------
    requirements
        As pip reads them, such as `torch>=2.10`.
    """
    wanted = [Requirement(text) for text in requirements]
    return tuple(_state(found) for found in wanted if found.marker is None or found.marker.evaluate())


def _state(requirement: Requirement) -> PackageState:
    wanted = str(requirement.specifier)
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        return PackageState(requirement.name, wanted, None, "missing")
    state: State = "ok"
    if not requirement.specifier.contains(there, prereleases=True):
        state = "wrong version"
    elif find_spec(_MODULES.get(requirement.name.lower(), requirement.name.replace("-", "_"))) is None:
        state = "broken"
    return PackageState(requirement.name, wanted, there, state)


def torch_build() -> str | None:
    """Return what the installed torch was built for: `cpu`, `cuda 12.8`, `rocm 6.4`; None where there is no torch.

    Read from the file in which torch keeps it: importing torch takes seconds.
    """
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "version.py"
    stated: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else ()
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            stated |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
    if "cuda" in stated:
        return f"cuda {stated['cuda']}"
    return f"rocm {stated['hip']}" if "hip" in stated else "cpu"
