"""Backbones by name: from the Hugging Face hub, or this machine's copy of it."""

import re
from pathlib import Path

from cappuccino.errors import InputError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


def find_backbone(name: str) -> Path:
    """Return the folder of a backbone, downloading it where `name` is no path but looks like ORGANISATION/MODEL.

    Raises
    ------
    InputError
        When there is neither such a path nor such a model.
    """
    path = Path(name)
    if path.exists() or not _NAME.fullmatch(name):
        return path  # what is wrong with a path is said by whoever reads it
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        problem = f"is no folder, and the hub does not give it ({reason})"
        raise InputError(
            "--backbone", name, problem, "name a folder, or a model of the hub that you may read"
        ) from error


def backbone_name(given: str, folder: Path) -> str:
    """Return the name by which an adapter refers to its backbone: on the hub where it is from there, else the path.

    What `config.json` says of itself (`_name_or_path`) is not asked: there stands what the checkpoint was made from.

    Parameters
    ----------
    given
        Name or path, as the user gave it.
    folder
        Where the backbone was found.
    """
    cached = _CACHED.search(folder.absolute().as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else given


def table_name(folder: Path) -> str:
    """Return what cost tables and instances call a backbone: the last part of its name on the hub, or its folder.

    Parameters
    ----------
    folder
        Where the backbone was found; or a `config.json`, which stands for its folder.
    """
    cached = _CACHED.search(folder.absolute().as_posix())
    if cached:
        return cached[2]
    return (folder.resolve().parent if folder.suffix == ".json" else folder.resolve()).name


def is_hub_name(name: str) -> bool:
    """Return whether a backbone's name is that of a model of the hub, as far as one can tell here."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()
