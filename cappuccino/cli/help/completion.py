"""Names that the shell completes."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import typer

from cappuccino.errors import InputError


def instance_names(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Yield the entries of the instance library, the shipped one or that of `--library`, that begin so.

    Only the index is read: a shell waits for this.
    """
    from cappuccino.files import read_json  # noqa: PLC0415

    folder = context.params.get("library") or Path(str(files("cappuccino.instances")))
    try:
        known = [str(entry["name"]) for entry in read_json(Path(folder) / "index.json")["entries"]]
    except (InputError, KeyError, TypeError):  # what is wrong with it is said when the command runs
        return
    already = context.params.get("names") or ()
    yield from (name for name in known if name.startswith(incomplete) and name not in already)
