"""run-replica: what every rank of a cluster runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.cluster.inputs import read_inputs
from cappuccino.cli.options.run_options import (
    DIVERGED,
    BackboneOption,
    BaseModelOption,
    DataOption,
    DeviceOption,
    EveryOption,
    InstanceOption,
    KeepChoice,
    KeepOption,
    KeptOption,
    PlanArgument,
    RecomputeChoice,
    RecomputeOption,
    TableDtypeOption,
    checkpoint_options,
)
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag

if TYPE_CHECKING:
    from cappuccino.plan import Plan
    from cappuccino.runtime.launch.run_result import RunResult

_TENTHS = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run-replica")(run_replica)


def run_replica(
    plan: PlanArgument,
    instance: InstanceOption,
    backbone: BackboneOption,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for adapters, losses and trace, the same for all replicas.")
    ],
    replica: Annotated[int, typer.Option(min=0, help="Id of the replica in the plan.")],
    data: DataOption = None,
    device: DeviceOption = "cpu",
    dtype: TableDtypeOption = None,
    recompute: RecomputeOption = RecomputeChoice.AUTO,
    base_model_name: BaseModelOption = None,
    keep: KeepOption = KeepChoice.LAST,
    checkpoint_every: EveryOption = "auto",
    keep_checkpoints: KeptOption = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from checkpoints of this replica, where there are any.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Run one replica of a plan, one rank per pipeline stage: torchrun, srun or Kubernetes starts this on every rank.

    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT stand in the environment, LOCAL_RANK where a machine shows several
    GPUs. All ranks see the same files. Replicas of a plan may run at any time, also side by side, into one folder,
    which in the end is as `cappuccino run` leaves it. Exit codes are those of `cappuccino run`.
    """
    from cappuccino.plan import Plan  # noqa: PLC0415
    from cappuccino.runtime.cluster.leading import leading, replica_of_ranks  # noqa: PLC0415
    from cappuccino.runtime.cluster.leading import run_replica as lead  # noqa: PLC0415
    from cappuccino.runtime.cluster.ranks import Exchange, Ranks  # noqa: PLC0415
    from cappuccino.runtime.cluster.stages import follow  # noqa: PLC0415
    from cappuccino.runtime.launch.interruption import interruptible  # noqa: PLC0415

    ranks = Ranks.of_environment()
    checkpoints = checkpoint_options(checkpoint_every, keep_checkpoints)
    replica_of_ranks(Plan.load(plan), replica, plan, ranks.world_size)  # on every rank: none is to wait for others then
    with interruptible(_say_that_it_ends) as interruption:
        exchange = Exchange(ranks)
        if ranks.rank:
            with interruption.heeded():
                raise typer.Exit(follow(exchange, device, replica, interruption))
        with leading(exchange):
            inputs = read_inputs(plan, instance, backbone, device, dtype, recompute)
            result = lead(
                inputs.plan,
                inputs.instance,
                inputs.backbone,
                data,
                output,
                replica_of_ranks(inputs.plan, replica, plan, ranks.world_size),
                exchange,
                interruption,
                device=device,
                dtype=inputs.dtype,
                backbone_name=base_model_name or inputs.backbone_name,
                keep=keep.value,
                checkpoints=checkpoints,
                resume=resume,
                on_progress=_Progress(replica),
                on_note=console.warn,
            )
            _report(inputs.plan, replica, result, json=json)
            if result.diverged and result.timelines:  # started once more with nothing left to do, it is not told again
                raise typer.Exit(DIVERGED)


class _Progress:
    """Says how far a replica has come, a line for every tenth."""

    def __init__(self, replica: int) -> None:
        self._replica, self._told = replica, 0

    def __call__(self, done: int, total: int) -> None:
        tenth = _TENTHS * done // total
        if tenth > self._told:
            self._told = tenth
            console.note(f"replica {self._replica}: {done} of {total} operations")


def _report(plan: "Plan", replica: int, result: "RunResult", *, json: bool) -> None:
    """Say what became of the only replica that ran."""
    from cappuccino.cli.terminal.summary import print_run, run_summary  # noqa: PLC0415

    own = next(r for r in plan.replicas if r.id == replica)
    times = {"makespan_s": own.makespan_s, "gpu_time_s": own.num_stages * own.makespan_s}
    summary = run_summary(plan.model_copy(update={"replicas": (own,), **times}), result)
    if json:
        console.print_json(summary)
    else:
        print_run(summary)


def _say_that_it_ends() -> None:
    console.answer("asked to end: writing checkpoints")
