"""A manifest for Kubernetes: a JobSet (jobset.sigs.k8s.io) with a job a replica, and a pod a stage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cappuccino.errors import InputError
from cappuccino.launch_scripts.command import ReplicaCommand, comment, described
from cappuccino.plan import Plan, Replica

_PORT = 29500
_MAX_RESTARTS = 5
_GRACE_S = 60
"""For checkpoints, which a run that is asked to end writes within 20 seconds."""
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LONGEST_NAME = 30
"""Of a JobSet: names of its pods are longer, and hold at most 63 characters."""
_GPU = "nvidia.com/gpu"
_PRODUCT = "nvidia.com/gpu.product"
"""Label that NVIDIA's GPU feature discovery puts on nodes."""


@dataclass(frozen=True)
class KubernetesSettings:
    """What a manifest says besides the plan."""

    image: str
    """Of the containers, with this package and its extra `runtime`."""
    volume_claim: str
    """Persistent volume claim that all pods mount, to read and write."""
    mount_path: Path
    """Where they do."""
    namespace: str | None = None
    """None: that of the context."""
    name: str = "cappuccino"
    """Of the JobSet."""

    def __post_init__(self) -> None:
        for option, value in (("--job-name", self.name), ("--namespace", self.namespace or "a")):
            if not _NAME.fullmatch(value):
                problem = f'"{value}" is no name in Kubernetes'
                raise InputError(option, "", problem, "use lower-case letters, digits and hyphens, a letter first")
        if len(self.name) > _LONGEST_NAME:
            problem = f'"{self.name}" is longer than {_LONGEST_NAME} characters'
            raise InputError("--job-name", "", problem, "give a shorter one")


def require_mounted(files: Mapping[str, Path], mount_path: Path) -> None:
    """Refuse files that pods would not see.

    Parameters
    ----------
    files
        By option.
    mount_path
        Where pods mount the volume.
    """
    for option, file in files.items():
        if not file.is_relative_to(mount_path):
            problem = f"{file} is not below --mount-path {mount_path}"
            raise InputError(option, "", problem, "put it on the volume that pods mount, and mount it where it is here")


def kubernetes_manifest(
    plan: Plan, command: ReplicaCommand, settings: KubernetesSettings, gpu_names: Mapping[str, str], *, on_gpus: bool
) -> str:
    """Return the manifest.

    Parameters
    ----------
    plan
        What is run.
    command
        What every rank runs; replicas go on from what is in the folder of the results.
    settings
        What the manifest says besides.
    gpu_names
        By GPU type of the plan, the product that nodes are labelled with; replicas of others run on any node.
    on_gpus
        Whether ranks run on GPUs.
    """
    metadata = {"name": settings.name} | ({"namespace": settings.namespace} if settings.namespace else {})
    document = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {"maxRestarts": _MAX_RESTARTS},
            "replicatedJobs": [_job(r, command, settings, gpu_names, on_gpus=on_gpus) for r in plan.replicas],
        },
    }
    head = comment(
        [
            "Written by `cappuccino launch-script --scheduler kubernetes`; kubectl apply -f FILE submits it.",
            "",
            "A job is a replica, a pod a stage. When a pod fails or is evicted, JobSet makes all pods anew: replicas",
            "go on from their checkpoints, and finished ones end at once.",
            "",
            *map(described, plan.replicas),
        ]
    )
    text: str = yaml.safe_dump(document, sort_keys=False, width=120)
    return head + text


def _job(
    replica: Replica,
    command: ReplicaCommand,
    settings: KubernetesSettings,
    gpu_names: Mapping[str, str],
    *,
    on_gpus: bool,
) -> dict[str, Any]:
    """Return the replicated job of a replica."""
    name = f"replica-{replica.id}"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    container: dict[str, Any] = {
        "name": "stage",
        "image": settings.image,
        "command": [*command.words(), "--replica", str(replica.id), "--resume"],
        "env": [
            {"name": "RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "WORLD_SIZE", "value": str(replica.num_stages)},
            {"name": "MASTER_ADDR", "value": f"{settings.name}-{name}-0-0.{settings.name}"},
            {"name": "MASTER_PORT", "value": str(_PORT)},
        ],
        "volumeMounts": [{"name": "shared", "mountPath": str(settings.mount_path)}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": settings.volume_claim}}],
    }
    if on_gpus:
        container["resources"] = {"limits": {_GPU: 1}}
        if replica.gpu in gpu_names:
            pod["nodeSelector"] = {_PRODUCT: gpu_names[replica.gpu]}
    job = {
        "completionMode": "Indexed",
        "parallelism": replica.num_stages,
        "completions": replica.num_stages,
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {"name": name, "replicas": 1, "template": {"spec": job}}
