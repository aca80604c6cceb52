"""All replicas of a run, each as soon as its devices are free; needs no torch."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cappuccino.errors import CappuccinoError
from cappuccino.runtime.launch.interruption import SAVING_LIMIT_S, InterruptedRunError, Interruption
from cappuccino.runtime.launch.keeper import AdapterKeeper
from cappuccino.runtime.launch.processes import ReplicaProcesses
from cappuccino.runtime.launch.specification import ReplicaSpecification
from cappuccino.runtime.monitoring.monitor import RunMonitor

_POLL_S = 0.05


class _Saving:
    """Waits, once the run is asked to end, for checkpoints of what was trained since the last ones.

    Parameters
    ----------
    running
        The replicas at work.
    keeper
        Knows the checkpoints.
    """

    def __init__(self, running: list[ReplicaProcesses], keeper: AdapterKeeper) -> None:
        self._keeper = keeper
        self._deadline = time.monotonic() + SAVING_LIMIT_S
        self._wanted: dict[str, int] = {}
        for processes in running:
            processes.ask_for_checkpoints()
            self._wanted.update(processes.steps_done())

    def over(self) -> bool:
        """Return whether there is nothing more to wait for, or no time."""
        saved = all(
            name in self._keeper.losses or self._keeper.steps.get(name, 0) >= step
            for name, step in self._wanted.items()
        )
        return saved or time.monotonic() >= self._deadline


def run_replicas(
    pending: list[tuple[ReplicaSpecification, Path]],
    capacity: int | None,
    keeper: AdapterKeeper,
    monitor: RunMonitor,
    *,
    resumable: bool,
    interruption: Interruption | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_poll: Callable[[], None] | None = None,
) -> None:
    """Run replicas until all are done.

    Parameters
    ----------
    pending
        What is to be run, with a folder for each.
    capacity
        GPUs that there are; None on the CPU, where replicas run in turn.
    keeper
        Told of what the stages wrote.
    monitor
        Collects what they say of steps, and is closed.
    resumable
        Whether checkpoints are written.
    interruption
        Looked at for signals that ask the run to end.
    on_progress
        Called with the operations done and the operations in all.
    on_poll
        Called some times a second; what it raises ends the run.

    Raises
    ------
    InputError, RunError
        As of `ReplicaProcesses.poll` and `AdapterKeeper.look`.
    InterruptedRunError
        When the run was asked to end.
    """
    total = sum(len(program) for specification, _ in pending for program in specification.replica.programs)
    waiting = list(pending)
    running: list[ReplicaProcesses] = []
    saving: _Saving | None = None
    finished = told = 0
    if on_progress is not None and pending:
        on_progress(0, total)
    try:
        while waiting or running:
            if interruption is not None and interruption.signals:
                saving = saving or _Saving(running if resumable else [], keeper)
                if interruption.signals > 1 or saving.over():
                    raise InterruptedRunError
            elif waiting:
                _start(waiting, running, capacity, monitor.logs)
            for processes in list(running):
                done = processes.poll()
                monitor.collect()
                keeper.stop(monitor.stops)
                if processes.take_written() or done or keeper.awaits_stopped:
                    keeper.look(processes.specification.replica.adapters)
                if done:
                    processes.stop()
                    running.remove(processes)
                    finished += sum(map(len, processes.specification.replica.programs))
            now = finished + sum(processes.done for processes in running)
            if on_progress is not None and now > told:
                on_progress(now, total)
                told = now
            if on_poll is not None:
                on_poll()
            time.sleep(_POLL_S)
    finally:
        for processes in running:
            processes.stop(at_once=interruption is not None and interruption.signals > 0)
        with suppress(CappuccinoError, OSError):
            monitor.collect()
        keeper.stop(monitor.stops)
        for processes in running:
            with suppress(CappuccinoError):  # what ended the run is what is to be told
                keeper.look(processes.specification.replica.adapters)
        with suppress(CappuccinoError):
            keeper.tidy()
        monitor.close()


def _start(
    waiting: list[tuple[ReplicaSpecification, Path]], running: list[ReplicaProcesses], capacity: int | None, logs: Path
) -> None:
    """Start the first of the waiting replicas as far as there are devices for them."""
    busy = {index for processes in running for index in processes.specification.device_indices}
    while waiting:
        specification, place = waiting[0]
        free = [index for index in range(capacity or 0) if index not in busy]
        stages = specification.replica.num_stages
        if running if capacity is None else len(free) < stages:
            return
        mine = tuple(free[:stages])
        busy.update(mine)
        running.append(ReplicaProcesses(specification.model_copy(update={"device_indices": mine}), place, logs))
        waiting.pop(0)
