"""Which rank this process is, and what ranks tell each other; needs torch only where they do.

The first rank prepares the run, looks after it and says how it ended. The others start a stage each, as it says, and
tell it how that goes. All of it goes over the store that torchrun, or the first rank, has opened.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cappuccino.errors import InputError
from cappuccino.files import Record
from cappuccino.runtime.launch.processes import StageEnd
from cappuccino.runtime.launch.protocol import store_of_ranks

if TYPE_CHECKING:
    import torch.distributed as dist

_POLL_S = 0.05
_GOODBYE_S = 10.0
"""How long the first rank waits, once all is over, until the others know."""
Command = Literal["go on", "write checkpoints", "end", "end at once"]


@dataclass(frozen=True)
class Ranks:
    """One process among those of a replica, as torchrun says it in the environment."""

    rank: int
    """Which one it is; of a stage, its number."""
    world_size: int
    """How many there are."""
    local_rank: int
    """Which one it is on its machine."""
    local_world_size: int
    """How many there are on its machine."""

    @staticmethod
    def of_environment() -> "Ranks":
        """Return what RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say.

        Raises
        ------
        InputError
            When one of them, or the address of the first rank, is missing or is no number.
        """
        remedy = "start it by torchrun, or by a script of `cappuccino launch-script`"
        if not os.environ.get("MASTER_ADDR"):
            raise InputError("environment", "MASTER_ADDR", "is not set", remedy)
        found = {}
        names = {"RANK": None, "WORLD_SIZE": None, "MASTER_PORT": None, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        for name, default in names.items():
            value = os.environ.get(name, default)
            if value is None or not (value.isascii() and value.isdigit()):
                said = "is not set" if value is None else f'"{value}" is no number'
                raise InputError("environment", name, said, remedy)
            found[name] = int(value)
        if found["RANK"] >= found["WORLD_SIZE"]:
            problem = f"{found['RANK']} is none of {found['WORLD_SIZE']} ranks, which count from 0"
            raise InputError("environment", "RANK", problem, remedy)
        return Ranks(found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"])


class RankPlace(Record):
    """What a rank has to run on."""

    device_index: int
    """Number of its GPU on its machine; unused on the CPU."""
    threads: int
    """CPU threads of its process."""


class ReplicaBegin(Record):
    """What the first rank tells the others to begin with."""

    folder: Path
    """Where the specification is."""
    logs: Path
    """Folder for what stages print."""


class RankStatus(Record):
    """How far another rank has come."""

    done: int = 0
    """Operations finished."""
    written: int = 0
    """How many times it saw that parts of checkpoints were written."""
    over: bool = False
    """Whether its stage has done all."""
    ends: tuple[StageEnd, ...] = ()
    """How its stage failed, if so."""
    signals: int = 0
    """How many signals asked it to end."""


class Exchange:
    """What the ranks of a replica tell each other.

    Parameters
    ----------
    ranks
        Which of them this is.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._store: dist.Store = store_of_ranks("ranks", host=ranks.rank == 0)  # type: ignore[name-defined]

    @property
    def others(self) -> range:
        """All but the first rank."""
        return range(1, self.ranks.world_size)

    # what the first rank says

    def begin(self, what: ReplicaBegin) -> None:
        """Let the others begin."""
        self.command("go on")
        self._store.set("begin", what.model_dump_json())

    def command(self, what: Command) -> None:
        """Tell the others what to do from now on."""
        self._store.set("command", what)

    def conclude(self, status: int) -> None:
        """Tell the others that all is over, and the exit status of all; wait until they know, or are gone."""
        self._store.set("over", str(status))
        deadline = time.monotonic() + _GOODBYE_S
        while time.monotonic() < deadline and not self._has(f"goodbye/{rank}" for rank in self.others):
            time.sleep(_POLL_S)

    def places(self) -> list[RankPlace] | None:
        """Return by other rank what it has to run on; None while not all are there."""
        keys = [f"place/{rank}" for rank in self.others]
        if not self._has(keys):
            return None
        return [RankPlace.model_validate_json(self._store.get(key)) for key in keys]

    def statuses(self) -> list[RankStatus]:
        """Return by other rank how far it has come."""
        keys = [f"status/{rank}" for rank in self.others]
        return [RankStatus.model_validate_json(said) for said in self._store.multi_get(keys)] if keys else []

    # what the others say

    def arrive(self, place: RankPlace) -> None:
        """Tell the first rank what there is to run on here."""
        self.report(RankStatus())
        self._store.set(f"place/{self.ranks.rank}", place.model_dump_json())

    def report(self, status: RankStatus) -> None:
        """Tell the first rank how far this one has come."""
        self._store.set(f"status/{self.ranks.rank}", status.model_dump_json())

    def begun(self) -> ReplicaBegin | None:
        """Return what there is to begin with; None as long as there is nothing."""
        return ReplicaBegin.model_validate_json(self._store.get("begin")) if self._has(["begin"]) else None

    def commanded(self) -> str:
        """Return what the first rank has told this one to do."""
        return self._store.get("command").decode()

    def concluded(self) -> int | None:
        """Return the exit status once all is over, and say that it is known."""
        if not self._has(["over"]):
            return None
        status = int(self._store.get("over"))
        self._store.set(f"goodbye/{self.ranks.rank}", "")
        return status

    def _has(self, keys: Iterable[str]) -> bool:
        wanted = list(keys)
        return not wanted or bool(self._store.check(wanted))
