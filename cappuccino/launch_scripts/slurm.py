"""A Slurm batch script: a job array whose tasks are the replicas of a plan."""

import re
import shlex
from collections.abc import Mapping, Sequence

from cappuccino.errors import InputError
from cappuccino.launch_scripts.command import ReplicaCommand, ReplicaGroup, comment, described, groups
from cappuccino.plan import Plan

OWN_OPTIONS = ("array", "ntasks", "ntasks-per-node", "gpus-per-task", "gpus-per-node", "nodes")
"""Options of sbatch that follow from the plan."""
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_BODY = r"""
set -euo pipefail
@submission@
resume=@resume@
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    resume=(--resume)
fi
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself
fi

status=0
srun --kill-on-bad-exit=0 --distribution=block @binding@\
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' bash \
    @command@ \
    --replica "$SLURM_ARRAY_TASK_ID" ${resume[@]+"${resume[@]}"} || status=$?
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID" # asked to end, with checkpoints written: it goes on where it was
fi
exit "$status"
"""
_SUBMISSION = r"""
if [ -z "${SLURM_JOB_ID:-}" ]; then
    script=$(readlink -f "$0")
@submits@
    exit
fi
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "error: replicas of several sizes are several arrays; submit them by: bash SCRIPT" >&2
    exit 1
fi
"""


def slurm_options(settings: Sequence[str]) -> dict[str, str | None]:
    """Return options of sbatch given as KEY=VALUE, or as KEY where they have none.

    Raises
    ------
    InputError
        When one is no such option, or follows from the plan.
    """
    found: dict[str, str | None] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.removeprefix("--")
        if not _NAME.fullmatch(name) or "\n" in value or (equals and not value):
            raise InputError("--set", "", f"{setting!r} is no option of sbatch", "give KEY=VALUE, as time=01:00:00")
        if name in OWN_OPTIONS:
            problem = f'"{name}" follows from the plan'
            raise InputError("--set", "", problem, "leave it out; --gpus-per-node says how many ranks a node has")
        found[name] = value if equals else None
    return found


def slurm_script(
    plan: Plan,
    command: ReplicaCommand,
    settings: Mapping[str, str | None],
    gpu_names: Mapping[str, str],
    gpus_per_node: int,
    *,
    on_gpus: bool,
    resume: bool,
) -> str:
    """Return the script.

    All tasks of an array want the same; replicas of several sizes, or GPU types, are therefore several arrays, which
    the script submits itself.

    Parameters
    ----------
    plan
        What is run.
    command
        What every rank runs.
    settings
        Further options of sbatch, or other values than the script's.
    gpu_names
        By GPU type of the plan, what the cluster calls it; those left out are not asked for by name.
    gpus_per_node
        Ranks that a node has room for.
    on_gpus
        Whether ranks run on GPUs.
    resume
        Whether replicas go on from what is in the folder of the results.
    """
    found = groups(plan)
    options: dict[str, str | None] = {
        "job-name": "cappuccino",
        "output": "cappuccino-%A_%a.log",
        "open-mode": "append",
        "requeue": None,
        "signal": "TERM@60",
    }
    options |= settings
    submission = ""
    if len(found) == 1:
        options |= _sizes(found[0], gpu_names, gpus_per_node, on_gpus=on_gpus)
        how = ["sbatch SCRIPT submits it: one job array, a task a replica."]
    else:
        submits = []
        for group in found:
            sizes = _sizes(group, gpu_names, gpus_per_node, on_gpus=on_gpus)
            submits.append(f'    sbatch {shlex.join(f"--{name}={value}" for name, value in sizes.items())} "$script"')
        submission = _SUBMISSION.replace("@submits@", "\n".join(submits))
        how = [
            "bash SCRIPT submits it: tasks of an array are of one size, so that there is an array for every depth and",
            "GPU type of the plan's replicas.",
        ]
    lines = "".join(
        f"#SBATCH --{name}" + ("" if value is None else f"={value}") + "\n" for name, value in options.items()
    )
    head = comment(
        [
            "Written by `cappuccino launch-script --scheduler slurm`.",
            "",
            *how,
            "The number of a task is that of its replica. A task that is preempted, or comes to its time limit, writes",
            "checkpoints and is queued again. All nodes see the same files.",
            "",
            *map(described, plan.replicas),
        ]
    )
    replaced = {
        "@submission@": submission,
        "@resume@": "(--resume)" if resume else "()",
        "@binding@": "--gpu-bind=none " if on_gpus else "",
        "@command@": command.lines(),
    }
    body = _BODY
    for name, text in replaced.items():
        body = body.replace(name, text)
    return f"#!/usr/bin/env bash\n{lines}{head}{body}"


def _sizes(
    group: ReplicaGroup, gpu_names: Mapping[str, str], gpus_per_node: int, *, on_gpus: bool
) -> dict[str, str | None]:
    """Return what the tasks of an array want."""
    sizes: dict[str, str | None] = {
        "array": ",".join(str(replica.id) for replica in group.replicas),
        "ntasks": str(group.num_stages),
        "ntasks-per-node": str(min(group.num_stages, gpus_per_node)),
    }
    if on_gpus:
        name = gpu_names.get(group.gpu)
        sizes["gpus-per-task"] = "1" if name is None else f"{name}:1"
    return sizes
