"""What the launcher and the process of a stage say to each other over two pipes, and where ranks find each other."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from cappuccino.errors import InputError

if TYPE_CHECKING:
    import torch.distributed as dist

OPERATION, PART = b".", b"w"
"""What a stage writes on standard output: an operation is finished, a part of a checkpoint is written."""
CHECKPOINTS = b"c"
"""What it reads on standard input: write checkpoints after every step. The end of the input ends it."""
PATIENCE = timedelta(days=7)
"""How long stages wait for each other: the launcher ends the others when one fails, so none needs to give up."""

_MEETING = timedelta(minutes=30)
"""How long ranks wait for the first one to come: they need not start together."""


def store_of_ranks(part: str, *, host: bool = False) -> "dist.Store":  # type: ignore[name-defined]
    """Return the store that the environment of a rank names: MASTER_ADDR and MASTER_PORT.

    Parameters
    ----------
    part
        What the keys belong to, so that they are nobody else's.
    host
        Whether this process is to open it, unless torchrun has.

    Raises
    ------
    InputError
        When it cannot be opened, or is not there half an hour later.
    """
    import torch.distributed as dist  # noqa: PLC0415

    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = "/".join(os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    address, port, opens = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), host and not by_torchrun
    try:
        store = dist.TCPStore(address, port, is_master=opens, timeout=_MEETING, wait_for_workers=False)  # type: ignore[attr-defined]
    except RuntimeError as error:
        problem = f"{address}:{port} cannot be {'opened' if opens else 'reached'} ({str(error).splitlines()[0]})"
        remedy = "let MASTER_ADDR and MASTER_PORT name a free port on the machine of rank 0, which all ranks reach"
        raise InputError("environment", "MASTER_ADDR", problem, remedy) from error
    store.set_timeout(PATIENCE)
    return dist.PrefixStore(f"cappuccino/{attempt}/{part}", store)  # type: ignore[attr-defined]


class StageProgress:
    """How far a stage has come.

    Parameters
    ----------
    descriptor
        Of the file that gets one byte per operation, and one per part of a checkpoint.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.done: int | None = None
        """Operations finished; None before the program's begin."""

    def begin(self) -> None:
        """Note that the program begins."""
        self.done = 0

    def advance(self) -> None:
        """Note that an operation is finished."""
        self.done = (self.done or 0) + 1
        os.write(self._descriptor, OPERATION)

    def wrote_part(self) -> None:
        """Note that a part of a checkpoint is written; any thread may."""
        os.write(self._descriptor, PART)
