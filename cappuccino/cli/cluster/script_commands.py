"""launch-script: what is submitted to run a plan on a cluster."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cappuccino.cli.cluster.inputs import RunInputs, read_inputs
from cappuccino.cli.options.run_options import (
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
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_writable, write_atomically

if TYPE_CHECKING:
    from cappuccino.launch_scripts.command import ReplicaCommand
    from cappuccino.plan import Plan


class SchedulerChoice(StrEnum):
    """What starts the processes."""

    TORCHRUN = "torchrun"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


_USED_BY: dict[str, tuple[SchedulerChoice, ...]] = {
    "--gpus-per-node": (SchedulerChoice.TORCHRUN, SchedulerChoice.SLURM),
    "--gpu-name": (SchedulerChoice.SLURM, SchedulerChoice.KUBERNETES),
    "--set": (SchedulerChoice.SLURM,),
    "--image": (SchedulerChoice.KUBERNETES,),
    "--volume-claim": (SchedulerChoice.KUBERNETES,),
    "--mount-path": (SchedulerChoice.KUBERNETES,),
    "--namespace": (SchedulerChoice.KUBERNETES,),
    "--job-name": (SchedulerChoice.KUBERNETES,),
}
_NEEDED = ("--image", "--volume-claim", "--mount-path")
_GPUS_PER_NODE = 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("launch-script")(launch_script)


def launch_script(
    plan: PlanArgument,
    instance: InstanceOption,
    backbone: BackboneOption,
    results: Annotated[
        Path, typer.Option("--results", metavar="OUT", help="Folder for adapters, losses and trace (-o of `run`).")
    ],
    scheduler: Annotated[SchedulerChoice, typer.Option(help="What starts the processes.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="SCRIPT", help="Where the script is written.")],
    data: DataOption = None,
    device: DeviceOption = "cuda",
    dtype: TableDtypeOption = None,
    recompute: RecomputeOption = RecomputeChoice.AUTO,
    base_model_name: BaseModelOption = None,
    keep: KeepOption = KeepChoice.LAST,
    checkpoint_every: EveryOption = "auto",
    keep_checkpoints: KeptOption = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints in the results' folder.")
    ] = False,
    python: Annotated[
        str | None,
        typer.Option(help="Interpreter on the cluster; by default this one, in a container `python`."),
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks that a node has room for; 8. torchrun, Slurm.")
    ] = None,
    gpu_name: Annotated[
        list[str] | None,
        typer.Option(metavar="GPU=NAME", help="What the cluster calls a GPU type of the plan. Slurm, Kubernetes."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option of sbatch, as partition=long; may be repeated. Slurm."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Container image with cappuccino-lora[runtime]. Kubernetes.")
    ] = None,
    volume_claim: Annotated[
        str | None, typer.Option(help="Persistent volume claim that all pods mount. Kubernetes.")
    ] = None,
    mount_path: Annotated[
        Path | None, typer.Option(help="Where they do, and where its files are here. Kubernetes.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="By default that of the context. Kubernetes.")] = None,
    job_name: Annotated[str | None, typer.Option(help="Name of the JobSet; cappuccino. Kubernetes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a script that is there.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write what runs a plan on a cluster: a torchrun script, a Slurm job array, or a JobSet for Kubernetes.

    Plan, instance, backbone and data are looked at as `run` does it before it trains. Every replica is a job of its
    own, with a rank a stage, and all write to one folder, which in the end is as `run` leaves it.
    """
    given = {
        "--gpus-per-node": gpus_per_node,
        "--gpu-name": gpu_name,
        "--set": settings,
        "--image": image,
        "--volume-claim": volume_claim,
        "--mount-path": mount_path,
        "--namespace": namespace,
        "--job-name": job_name,
    }
    _require_used(scheduler, {name for name, value in given.items() if value})
    require_writable(output, plan, instance)
    if output.exists() and not force:
        raise InputError(output, "", "is there already", "name another file, or pass --force")
    checkpoint_options(checkpoint_every, keep_checkpoints)
    if keep is KeepChoice.BEST and scheduler is not SchedulerChoice.TORCHRUN:
        problem = f'"best" is lost where {scheduler.value} starts a job again: checkpoints do not know those weights'
        raise InputError("--keep", "", problem, "keep the last weights, or use torchrun")
    inputs = read_inputs(plan, instance, backbone, device, dtype, recompute)
    names = _gpu_names(inputs.plan, gpu_name or (), device)
    files = {"--instance": instance.resolve(), "-o": results.resolve()}
    options = {
        "--device": device,
        "--dtype": inputs.dtype,
        "--recompute": recompute.value,
        "--keep": keep.value,
        "--checkpoint-every": checkpoint_every,
        "--keep-checkpoints": str(keep_checkpoints),
        "--base-model-name": base_model_name or inputs.backbone_name,
    }
    if data is not None:
        files["--data"] = data.resolve()
    if Path(backbone).exists():
        files["--backbone"] = Path(backbone).resolve()
    else:
        options["--backbone"] = backbone
    in_container = scheduler is SchedulerChoice.KUBERNETES
    command_made = _command(python or ("python" if in_container else sys.executable), plan, files, options)
    on_gpus = device != "cpu"
    if scheduler is SchedulerChoice.KUBERNETES:
        text = _kubernetes(inputs.plan, command_made, given, names, on_gpus=on_gpus)
    elif scheduler is SchedulerChoice.SLURM:
        from cappuccino.launch_scripts.slurm import slurm_options, slurm_script  # noqa: PLC0415

        room = gpus_per_node or _GPUS_PER_NODE
        chosen = slurm_options(settings or ())
        text = slurm_script(inputs.plan, command_made, chosen, names, room, on_gpus=on_gpus, resume=resume)
    else:
        from cappuccino.launch_scripts.torchrun import torchrun_script  # noqa: PLC0415

        text = torchrun_script(inputs.plan, command_made, gpus_per_node or _GPUS_PER_NODE, resume=resume)
    _require_trainable(inputs, data, results, device, keep, resume=resume, always_resumes=in_container)
    write_atomically(output, text)
    _report(inputs.plan, scheduler, output, results, json=json)


def _require_used(scheduler: SchedulerChoice, given: set[str]) -> None:
    """Refuse options that a scheduler does not use, and a scheduler without those that it needs."""
    for name in sorted(given):
        if scheduler not in _USED_BY[name]:
            used = " and ".join(choice.value for choice in _USED_BY[name])
            raise InputError(name, "", f"is not used by {scheduler.value}", f"leave it out; it is for {used}")
    missing = [name for name in _NEEDED if name not in given] if scheduler is SchedulerChoice.KUBERNETES else []
    if missing:
        raise InputError("--scheduler", "", f"kubernetes needs {' and '.join(missing)}", "give what is missing")


def _gpu_names(plan: "Plan", given: "list[str] | tuple[str, ...]", device: str) -> dict[str, str]:
    """Return what the cluster calls the GPU types of a plan."""
    types = list(dict.fromkeys(replica.gpu for replica in plan.replicas))
    found = {}
    for setting in given:
        gpu, equals, name = setting.rpartition("=")
        if not equals or not name or gpu not in types:
            problem = f'"{setting}" names no GPU type of the plan'
            raise InputError("--gpu-name", "", problem, f"give GPU=NAME, with GPU one of {', '.join(types)}")
        if device == "cpu":
            raise InputError("--gpu-name", "", "is not used on device cpu", "leave it out")
        found[gpu] = name
    missing = [gpu for gpu in types if gpu not in found]
    if len(types) > 1 and missing and device != "cpu":
        problem = (
            f'the plan has {counted(len(types), "GPU type")}, and what the cluster calls "{missing[0]}" is not known'
        )
        raise InputError("--gpu-name", "", problem, f'give --gpu-name "{missing[0]}=NAME"')
    return found


def _command(python: str, plan: Path, files: dict[str, Path], options: dict[str, str]) -> "ReplicaCommand":
    """Return what every rank runs."""
    from cappuccino.launch_scripts.command import ReplicaCommand  # noqa: PLC0415

    return ReplicaCommand(python, plan.resolve(), tuple(files.items()), tuple(options.items()))


def _kubernetes(
    plan: "Plan", command: "ReplicaCommand", given: Mapping[str, object], names: dict[str, str], *, on_gpus: bool
) -> str:
    """Return the manifest, of options that are there."""
    from cappuccino.launch_scripts.kubernetes import (  # noqa: PLC0415
        KubernetesSettings,
        kubernetes_manifest,
        require_mounted,
    )

    namespace, mount_path = given["--namespace"], Path(str(given["--mount-path"]))
    settings = KubernetesSettings(
        image=str(given["--image"]),
        volume_claim=str(given["--volume-claim"]),
        mount_path=mount_path,
        namespace=None if namespace is None else str(namespace),
        name=str(given["--job-name"] or "cappuccino"),
    )
    require_mounted({"PLAN": command.plan, **dict(command.files)}, mount_path)
    return kubernetes_manifest(plan, command, settings, names, on_gpus=on_gpus)


def _require_trainable(
    inputs: RunInputs,
    data: Path | None,
    results: Path,
    device: str,
    keep: KeepChoice,
    *,
    resume: bool,
    always_resumes: bool,
) -> None:
    """Look at backbone, data and results as a run does before it trains."""
    from cappuccino.runtime.checkpoint.progress import CHECKPOINTS  # noqa: PLC0415
    from cappuccino.runtime.launch.preparation import prepare  # noqa: PLC0415

    if always_resumes and not resume and (results / CHECKPOINTS).exists():
        problem = "holds checkpoints, and pods go on from those that they find"
        raise InputError(results, "", problem, "pass --resume if that is wanted, or name another folder")
    prepare(
        inputs.plan,
        inputs.instance,
        inputs.backbone,
        data,
        results,
        device=device,
        dtype=inputs.dtype,
        best=keep is KeepChoice.BEST,
        resume=resume,
        on_note=console.warn,
    )


def _report(plan: "Plan", scheduler: SchedulerChoice, output: Path, results: Path, *, json: bool) -> None:
    """Say what was written, and what comes next."""
    from cappuccino.launch_scripts.command import groups  # noqa: PLC0415

    found = groups(plan)
    submit = {
        SchedulerChoice.TORCHRUN: f"bash {output}",
        SchedulerChoice.SLURM: f"{'sbatch' if len(found) == 1 else 'bash'} {output}",
        SchedulerChoice.KUBERNETES: f"kubectl apply -f {output}",
    }[scheduler]
    if json:
        sizes = [
            {"gpu": group.gpu, "num_stages": group.num_stages, "replicas": [r.id for r in group.replicas]}
            for group in found
        ]
        entry = {"script": str(output), "scheduler": scheduler.value, "submit": submit, "results": str(results)}
        console.print_json({**entry, "groups": sizes})
        return
    ranks = sum(replica.num_stages for replica in plan.replicas)
    print(f"{output}: {counted(len(plan.replicas), 'replica')}, {counted(ranks, 'rank')}; results in {results}")
    print(f"submit: {submit}")
