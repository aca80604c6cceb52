"""What the first rank of a replica does: it runs the replica, joins what is recorded and says how it all ended."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cappuccino.errors import CappuccinoError, InputError, counted
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Replica
from cappuccino.runtime.cluster.ranks import Exchange
from cappuccino.runtime.cluster.stages import StagesOfRanks, place_of
from cappuccino.runtime.launch.interruption import Interruption
from cappuccino.runtime.launch.keeper import CheckpointOptions
from cappuccino.runtime.launch.local import Share, run_plan
from cappuccino.runtime.launch.run_result import Keep, RunResult
from cappuccino.runtime.monitoring.records import join_records


def replica_of_ranks(plan: Plan, replica: int, source: object, world_size: int) -> Replica:
    """Return a replica of a plan by its id.

    Raises
    ------
    InputError
        When there is none, or there are not as many ranks as it has stages.
    """
    found = next((r for r in plan.replicas if r.id == replica), None)
    if found is None:
        known = ", ".join(str(r.id) for r in plan.replicas)
        raise InputError(source, "replicas", f"there is no replica {replica}", f"name one of {known}")
    if found.num_stages != world_size:
        problem = f"replica {replica} has {counted(found.num_stages, 'stage')}, there are {counted(world_size, 'rank')}"
        raise InputError("environment", "WORLD_SIZE", problem, "start one rank per stage")
    return found


@contextmanager
def leading(exchange: Exchange) -> Iterator[None]:
    """Tell the other ranks how it ended when the context is left, whichever way."""
    status = 1
    try:
        yield
        status = 0
    except CappuccinoError as error:
        status = error.exit_status
        raise
    except BaseException as error:
        status = getattr(error, "exit_code", 1)  # of a command that ends with a status of its own
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # whatever is to be kept is
            signal.signal(number, signal.SIG_IGN)
        with suppress(RuntimeError):  # of a store that is gone, and whoever is connected to it notes that
            exchange.conclude(status)


def run_replica(
    plan: Plan,
    instance: Instance,
    backbone: Path,
    data: Path | None,
    out: Path,
    replica: Replica,
    exchange: Exchange,
    interruption: Interruption,
    *,
    device: str,
    dtype: str,
    backbone_name: str | None = None,
    keep: Keep = "last",
    checkpoints: CheckpointOptions | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> RunResult:
    """Train the adapters of one replica on the ranks that were started for it; called on the first one.

    Other replicas of the plan may be run into the same folder before, after, or at the same time.

    Parameters
    ----------
    replica
        Of the plan.
    exchange
        With the other ranks.
    interruption
        Signals that this rank gets.
    plan, instance, backbone, data, out, device, dtype, backbone_name, keep, checkpoints, resume, on_progress, on_note
        As of `run_plan`; to go on where nothing was done is to begin.

    Raises
    ------
    InputError, RunError, InterruptedRunError
        As of `run_plan`; or when a finished adapter is not to be seen in the folder.
    """
    start = partial(StagesOfRanks, exchange=exchange, own=place_of(exchange.ranks, device), interruption=interruption)
    try:
        result = run_plan(
            plan,
            instance,
            backbone,
            data,
            out,
            device=device,
            dtype=dtype,
            backbone_name=backbone_name,
            keep=keep,
            checkpoints=checkpoints,
            resume=resume,
            interruption=interruption,
            share=Share(replica.id, start),
            on_progress=on_progress,
            on_note=on_note,
        )
    except BaseException:
        with suppress(CappuccinoError, OSError):  # what ended the run is what is to be told
            join_records(out, plan)
        raise
    join_records(out, plan)
    missing = [name for name in replica.adapters if name not in result.adapters]
    if missing:
        problem = f'what other machines wrote of adapter "{missing[0]}" is not to be seen'
        raise InputError(out, "", problem, "go on with --resume, into a folder that all machines share")
    return result
