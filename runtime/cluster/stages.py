"""The stages of a replica on the ranks of a cluster: how the first rank sees all, and how the others run theirs."""

import os
import time
from contextlib import suppress
from pathlib import Path

from cappuccino.files import parse_model, read_json
from cappuccino.runtime.cluster.ranks import Exchange, RankPlace, Ranks, RankStatus, ReplicaBegin
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.interruption import InterruptedRunError, Interruption
from cappuccino.runtime.launch.preparation import num_gpus
from cappuccino.runtime.launch.processes import SETTLE_S, ReplicaProcesses, StageEnd, cause
from cappuccino.runtime.launch.specification import ReplicaSpecification

_POLL_S = 0.1
_ASK_S = 0.25
"""How often the first rank asks how far the others have come."""


def place_of(ranks: Ranks, device: str) -> RankPlace:
    """Return what a rank has to run on.

    Whatever starts ranks either shows each its own GPU, or all those of the machine.
    """
    gpus = num_gpus(device) or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    index = ranks.local_rank if gpus > 1 else 0
    return RankPlace(device_index=index, threads=max(1, cores // ranks.local_world_size))


class StagesOfRanks(ReplicaProcesses):
    """All stages as the first rank sees them: its own as a process here, the others by what their ranks tell.

    Parameters
    ----------
    specification, folder, logs
        As of `ReplicaProcesses`.
    exchange
        With the other ranks.
    own
        What the first rank has to run on.
    interruption
        Told of signals that other ranks got.
    """

    def __init__(
        self,
        specification: ReplicaSpecification,
        folder: Path,
        logs: Path,
        *,
        exchange: Exchange,
        own: RankPlace,
        interruption: Interruption,
    ) -> None:
        self._exchange, self._interruption = exchange, interruption
        self._statuses = [RankStatus() for _ in exchange.others]
        self._asked = 0.0
        while (places := exchange.places()) is None:
            if interruption.signals:
                raise InterruptedRunError
            time.sleep(_POLL_S)
        placed = {"device_indices": tuple(place.device_index for place in (own, *places)), "threads": own.threads}
        super().__init__(specification.model_copy(update=placed), folder, logs, (0,))
        exchange.begin(ReplicaBegin(folder=folder.resolve(), logs=logs.resolve()))

    def poll(self) -> bool:
        """Take note of progress, here and elsewhere; return whether all stages are done."""
        failed = self.look()
        if failed or time.monotonic() >= self._asked + _ASK_S:
            self._ask()
        if failed or any(status.ends for status in self._statuses):
            raise cause(self.specification.replica.id, self._all_failures(), self._logs)
        return all(process.poll() == 0 for process in self._processes) and all(s.over for s in self._statuses)

    def ask_for_checkpoints(self) -> None:
        """Ask all stages to write a checkpoint after every optimizer step from now on."""
        super().ask_for_checkpoints()
        self._exchange.command("write checkpoints")

    def stop(self, *, at_once: bool = False) -> None:
        """End the stage here, and let the others end theirs."""
        with suppress(RuntimeError):  # of a store that is gone, and whoever is connected to it notes that
            self._exchange.command("end at once" if at_once else "end")
        super().stop(at_once=at_once)

    def _ask(self) -> None:
        """Take note of what the other ranks say."""
        self._asked = time.monotonic()
        before, self._statuses = self._statuses, self._exchange.statuses()
        for stage, (old, new) in enumerate(zip(before, self._statuses, strict=True), start=1):
            self._done[stage] = new.done
            self._written |= new.written > old.written
            if new.signals and not self._interruption.signals:
                self._interruption.signals = 1

    def _all_failures(self) -> list[StageEnd]:
        """Return how all stages failed that do so soon."""
        deadline = time.monotonic() + SETTLE_S
        ends = self.failures()
        while time.monotonic() < deadline and not all(s.ends or s.over for s in self._statuses):
            time.sleep(_POLL_S)
            self._ask()
        return ends + [end for status in self._statuses for end in status.ends]


def follow(exchange: Exchange, device: str, replica: int, interruption: Interruption) -> int:
    """Run the stage of a rank that is not the first, as that one says; return the exit status that it gives.

    Parameters
    ----------
    device
        "cpu" or "cuda".
    replica
        Id of the replica.
    interruption
        Signals that this rank gets; the first rank decides what comes of them.

    Raises
    ------
    RunError
        When the first rank is gone.
    """
    rank = exchange.ranks.rank
    processes: ReplicaProcesses | None = None
    try:
        exchange.arrive(place_of(exchange.ranks, device))
        while (begin := exchange.begun()) is None:
            status = exchange.concluded()
            if status is not None:
                return status
            time.sleep(_POLL_S)
        file = begin.folder / "specification.json"
        specification = parse_model(ReplicaSpecification, read_json(file), file)
        processes = ReplicaProcesses(specification, begin.folder, begin.logs, (rank,))
        return _look_after(processes, exchange, interruption)
    except RuntimeError as error:  # of the store
        raise RunError(replica, 0, f"the process of the first rank is gone ({error})") from error
    finally:
        if processes is not None:
            processes.stop()


def _look_after(processes: ReplicaProcesses, exchange: Exchange, interruption: Interruption) -> int:
    """Report how the stage goes until the first rank says that all is over; return the exit status."""
    told, asked = RankStatus(), False
    while (status := exchange.concluded()) is None:
        command = exchange.commanded()
        if command == "write checkpoints" and not asked:
            asked = True
            processes.ask_for_checkpoints()
        if command.startswith("end"):
            processes.stop(at_once=command == "end at once")
        now = told.model_copy(update={"signals": interruption.signals})
        if not (told.over or told.ends or command.startswith("end")):
            ends = tuple(processes.failures()) if processes.look() else ()
            now = now.model_copy(
                update={
                    "done": processes.done,
                    "written": told.written + processes.take_written(),
                    "over": not ends and not processes.running,
                    "ends": ends,
                }
            )
        if now != told:
            exchange.report(now)
            told = now
        time.sleep(_POLL_S)
    return status
