"""A script that starts replicas by torchrun, on one machine or on several."""

import shlex

from cappuccino.launch_scripts.command import ReplicaCommand, comment, described
from cappuccino.plan import Plan

_BODY = r"""
set -euo pipefail

resume=@resume@
if [ "${1:-}" = --resume ]; then
    resume=(--resume)
    shift
fi
replicas=(@replicas@)
if [ $# -gt 0 ]; then
    replicas=("$1")
fi
endpoint=${2:-}

for replica in "${replicas[@]}"; do
    case $replica in
@cases@
        *)
            echo "error: the plan has no replica \"$replica\"; name one of @replicas@" >&2
            exit 1
            ;;
    esac
    if [ -n "$endpoint" ]; then
        meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "cappuccino-$replica")
    elif [ "$nodes" -eq 1 ]; then
        meeting=(--standalone)
    else
        echo "error: replica $replica runs on $nodes nodes; on each of them: bash $0 $replica HOST:PORT" >&2
        exit 1
    fi
    @python@ -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$processes" --max-restarts 0 \
        @command@ \
        --replica "$replica" ${resume[@]+"${resume[@]}"}
done
"""


def processes_per_node(num_stages: int, gpus_per_node: int) -> int:
    """Return how many ranks each node has: as many as there is room for, and as many on every node."""
    return max(count for count in range(1, min(num_stages, gpus_per_node) + 1) if num_stages % count == 0)


def torchrun_script(plan: Plan, command: ReplicaCommand, gpus_per_node: int, *, resume: bool) -> str:
    """Return the script.

    Parameters
    ----------
    plan
        What is run.
    command
        What every rank runs.
    gpus_per_node
        Ranks that a node has room for.
    resume
        Whether replicas go on from what is in the folder of the results.
    """
    cases = []
    for replica in plan.replicas:
        each = processes_per_node(replica.num_stages, gpus_per_node)
        cases.append(f"        {replica.id}) nodes={replica.num_stages // each} processes={each} ;;")
    head = comment(
        [
            "Written by `cappuccino launch-script --scheduler torchrun`.",
            "",
            "bash SCRIPT                     all replicas, one after another, where each has room on this machine",
            "bash SCRIPT REPLICA             one of them, on this machine",
            "bash SCRIPT REPLICA HOST:PORT   one of them on several machines: the same on each, HOST being one of them",
            "--resume before all that goes on from the checkpoints of a run that ended.",
            "",
            "Replicas may run at any time, also side by side, each on machines of its own. All machines see the same",
            "files. torchrun ends with 1 when a replica was interrupted (75) or an adapter diverged (3).",
            "",
            *map(described, plan.replicas),
        ]
    )
    replaced = {
        "@resume@": "(--resume)" if resume else "()",
        "@replicas@": " ".join(str(replica.id) for replica in plan.replicas),
        "@cases@": "\n".join(cases),
        "@python@": shlex.quote(command.python),
        "@command@": command.lines(start=False, indent=" " * 8),
    }
    body = _BODY
    for name, text in replaced.items():
        body = body.replace(name, text)
    return f"#!/usr/bin/env bash\n{head}{body}"
