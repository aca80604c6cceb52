"""How this package was installed, and the command that adds an extra to it."""

import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

DISTRIBUTION = "cappuccino-lora"
_EXTRA = re.compile(r";\s*extra\s*==\s*[\"']([\w.-]+)[\"']\s*$")
_FROM = {"wheel": "a file", "checkout": "a checkout", "index": "a package index", "gone": "a checkout that is gone,"}


@dataclass(frozen=True)
class Installation:
    """Where this package came from."""

    origin: str
    """`checkout` (a folder with its source), `wheel` (a file, or an address with the source), `index`, or `gone` (a
    checkout that is there no longer)."""
    place: str
    """The folder, file or address; empty for an index."""
    editable: bool
    """Whether an edit of the checkout is an edit of what is installed."""
    requirements: dict[str, tuple[str, ...]]
    """By extra, what it needs, as pip reads it; those of planning have the key `""`."""

    @property
    def described(self) -> str:
        """Where it came from, in words."""
        return f"{_FROM[self.origin]} {self.place}".rstrip()

    def install_command(self, *extras: str) -> str:
        """Return the shell command that installs extras for this Python, from where the package itself came from.

        Parameters
        ----------
        extras
            Their names; none: the package with what planning needs.
        """
        with_extras = f"[{','.join(extras)}]" if extras else ""
        root = Path(self.place) if self.origin == "checkout" else Path.cwd()
        pip = f"{_pip(root)} install"
        if self.origin == "index":
            return f'{pip} "{DISTRIBUTION}{with_extras}"'
        if self.origin == "gone":
            return f'{pip} -e ".{with_extras}"  # in a checkout'
        if self.origin == "wheel":
            return f'{pip} "{DISTRIBUTION}{with_extras} @ {self.place}"'
        enter = "" if Path.cwd() == root else f"cd {_quoted(root)} && "
        constraints = "-c constraints.txt " if (root / "constraints.txt").is_file() else ""
        what = f'".{with_extras}"' if extras else "."
        return f"{enter}{pip} {constraints}{'-e ' if self.editable else ''}{what}"


def find_installation() -> Installation:
    """Return where this package came from, read from what pip noted of it and from the folder it lies in."""
    try:
        found: Distribution | None = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        found = None
    noted = json.loads((found and found.read_text("direct_url.json")) or "{}")
    url = str(noted.get("url", ""))
    around = _checkout_around()
    if "dir_info" in noted or around is not None:
        root = _local_path(url) if "dir_info" in noted else str(around)
        if (Path(root) / "pyproject.toml").is_file():
            editable = bool(noted.get("dir_info", {}).get("editable", "dir_info" not in noted))
            return Installation("checkout", root, editable, _requirements_of_checkout(Path(root)))
    requirements = _requirements_of_metadata(found)
    if "dir_info" in noted:
        return Installation("gone", _local_path(url), False, requirements)
    if "vcs_info" in noted:
        version_control = noted["vcs_info"]
        return Installation(
            "wheel", f"{version_control['vcs']}+{url}@{version_control['commit_id']}", False, requirements
        )
    return Installation("wheel" if url else "index", url, False, requirements)


def _checkout_around() -> Path | None:
    """Return the folder of this project that this file lies in; None where it lies among installed packages."""
    root = Path(__file__).resolve().parents[2]
    project = root / "pyproject.toml"
    return root if project.is_file() and f'name = "{DISTRIBUTION}"' in project.read_text(encoding="utf-8") else None


def _local_path(url: str) -> str:
    return unquote(urlparse(url).path)


def _requirements_of_checkout(root: Path) -> dict[str, tuple[str, ...]]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return {"": tuple(project["dependencies"])} | {name: tuple(needed) for name, needed in extras.items()}


def _requirements_of_metadata(found: Distribution | None) -> dict[str, tuple[str, ...]]:
    by_extra: dict[str, list[str]] = {"": []}
    for line in (found.requires if found else None) or ():
        extra = _EXTRA.search(line)
        by_extra.setdefault(extra[1] if extra else "", []).append(_EXTRA.sub("", line))
    return {extra: tuple(needed) for extra, needed in by_extra.items()}


def _pip(folder: Path) -> str:
    """Return `pip` where that is the one of this Python, else the module run by it, as it is called in a folder."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    python = Path(sys.executable)
    return f"{_quoted(python.relative_to(folder) if python.is_relative_to(folder) else python)} -m pip"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
