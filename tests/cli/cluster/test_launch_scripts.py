"""launch-script: every scheduler's options, what it refuses, and the manifest for Kubernetes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.cluster.conftest import script_for
from cli.conftest import Outcome, cappuccino, one_clear_error
from jsonschema import Draft202012Validator

pytest.importorskip("torch")

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(items: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


STRING, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
FIELD = closed("fieldRef", fieldRef=closed("fieldPath", fieldPath=STRING))
CONTAINER = closed(
    "name image command env volumeMounts",
    name=NAME,
    image=STRING,
    command=some(STRING),
    env=some(
        {
            "oneOf": [
                closed("name value", name=STRING, value={"type": "string"}),
                closed("name valueFrom", name=STRING, valueFrom=FIELD),
            ]
        }
    ),
    volumeMounts=some(closed("name mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
    resources=closed("limits", limits={"type": "object", "additionalProperties": {"type": ["integer", "string"]}}),
)
POD = closed(
    "restartPolicy containers volumes",
    restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=COUNT,
    containers=some(CONTAINER),
    volumes=some(
        closed("name persistentVolumeClaim", name=NAME, persistentVolumeClaim=closed("claimName", claimName=NAME))
    ),
    nodeSelector={"type": "object", "additionalProperties": {"type": "string"}},
)
JOB = closed(
    "template",
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit=COUNT,
    template=closed("spec", spec=POD),
)
JOB_SET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name=NAME, namespace=NAME),
    spec=closed(
        "replicatedJobs",
        network=closed("", enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=NAME),
        successPolicy=closed("operator", operator={"enum": ["All", "Any"]}),
        failurePolicy=closed("", maxRestarts=COUNT),
        replicatedJobs=some(closed("name template", name=NAME, replicas=COUNT, template=closed("spec", spec=JOB))),
    ),
)  # fmt: skip
"""The fields that manifests use, by hand after the reference of JobSet v1alpha2, batch/v1 Job and core/v1 PodSpec."""
POD_OPTIONS = ("--image", "registry/cappuccino:1", "--volume-claim", "shared")


def write(folder: Path, scheduler: str, script: Path, *options: object) -> Outcome:
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    named = ("--results", folder / "results", "--scheduler", scheduler, "-o", script)
    return cappuccino("launch-script", folder / "plan.json", *files, *named, *options)


def manifest(folder: Path, script: Path, *options: object) -> dict[str, Any]:
    made = script_for(folder, "kubernetes", script, folder / "new", *POD_OPTIONS, "--mount-path", folder, *options)
    return yaml.safe_load(made)


def test_a_job_set_has_a_job_a_replica_and_a_pod_a_stage(two_replicas, tmp_path):
    options = ("--namespace", "research", "--job-name", "fine-tuning", "--gpu-name", "cpu=NVIDIA-A100-SXM4-40GB")
    made = manifest(two_replicas, tmp_path / "jobs.yaml", *options)
    Draft202012Validator.check_schema(JOB_SET)
    assert [error.message for error in Draft202012Validator(JOB_SET).iter_errors(made)] == []
    assert made["metadata"] == {"name": "fine-tuning", "namespace": "research"}
    jobs = made["spec"]["replicatedJobs"]
    assert [job["name"] for job in jobs] == ["replica-0", "replica-1"]
    for replica, job in enumerate(jobs):
        spec = job["template"]["spec"]
        assert (job["replicas"], spec["completions"], spec["parallelism"]) == (1, 2, 2)
        assert spec["completionMode"] == "Indexed"
        pod = spec["template"]["spec"]
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["WORLD_SIZE"] == "2"
        # JobSet calls a pod <JobSet>-<replicated job>-<job>-<pod>, in a subdomain with the JobSet's name
        assert environment["MASTER_ADDR"] == f"fine-tuning-replica-{replica}-0-0.fine-tuning"
        words = container["command"]
        assert words[:4] == ["python", "-m", "cappuccino", "run-replica"]
        assert words[words.index("--replica") + 1] == str(replica)
        assert words[words.index("-o") + 1] == str(two_replicas / "new")
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        assert mount["mountPath"] == str(two_replicas)


def test_on_the_cpu_pods_ask_for_no_gpu(two_replicas, tmp_path):
    made = manifest(two_replicas, tmp_path / "jobs.yaml", "--device", "cpu")
    for job in made["spec"]["replicatedJobs"]:
        pod = job["template"]["spec"]["template"]["spec"]
        assert "resources" not in pod["containers"][0]
        assert "nodeSelector" not in pod


@pytest.mark.parametrize(
    ("scheduler", "options", "words"),
    [
        ("torchrun", ("--set", "time=1"), ("--set", "not used by torchrun", "slurm")),
        ("torchrun", ("--gpu-name", "cpu=x"), ("--gpu-name", "not used by torchrun")),
        ("slurm", ("--image", "x"), ("--image", "not used by slurm", "kubernetes")),
        ("kubernetes", ("--gpus-per-node", 4), ("--gpus-per-node", "not used by kubernetes")),
        ("kubernetes", (), ("kubernetes needs --image and --volume-claim and --mount-path",)),
        ("kubernetes", (*POD_OPTIONS, "--mount-path", "/elsewhere"), ("is not below --mount-path /elsewhere",)),
        ("kubernetes", (*POD_OPTIONS, "--mount-path", "/", "--job-name", "Über"), ("--job-name", "no name")),
        ("kubernetes", (*POD_OPTIONS, "--mount-path", "/", "--keep", "best"), ("--keep", "starts a job again")),
        ("slurm", ("--gpu-name", "h100=x"), ("--gpu-name", "names no GPU type of the plan", "one of cpu")),
        ("slurm", ("--gpu-name", "cpu=x", "--device", "cpu"), ("--gpu-name", "not used on device cpu")),
        ("slurm", ("--dtype", "float16"), ("dtype", "float16")),
        ("slurm", ("--checkpoint-every", "0"), ("--checkpoint-every",)),
        ("slurm", ("--resume",), ("holds no checkpoint",)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_error_and_nothing_is_written(two_replicas, tmp_path, scheduler, options, words):
    one_clear_error(write(two_replicas, scheduler, tmp_path / "script", *options), *words)
    assert not (tmp_path / "script").exists()


def test_data_that_a_run_would_refuse_are_refused(two_replicas, tmp_path):
    (tmp_path / "data").mkdir()
    for file in (two_replicas / "data").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (tmp_path / "data" / file.name).write_text("".join(lines[1:]))
    one_clear_error(write(two_replicas, "slurm", tmp_path / "script", "--data", tmp_path / "data"), "data")
    assert not (tmp_path / "script").exists()


def test_a_script_that_is_there_stays_unless_forced(two_replicas, tmp_path):
    script = tmp_path / "script"
    script.write_text("mine")
    one_clear_error(write(two_replicas, "torchrun", script), "is there already", "--force")
    assert script.read_text() == "mine"
    done = write(two_replicas, "torchrun", script, "--force", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["groups"] == [{"gpu": "cpu", "num_stages": 2, "replicas": [0, 1]}]
    assert said["submit"] == f"bash {script}"
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_the_torchrun_script_refuses_what_it_cannot_start(two_replicas, tmp_path):
    script = tmp_path / "train.sh"
    script_for(two_replicas, "torchrun", script, tmp_path / "out", "--gpus-per-node", 1)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    for arguments, words in (((), "replica 0 runs on 2 nodes"), (("7",), "has no replica")):
        done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


@pytest.mark.parametrize(("stages", "room", "each"), [(2, 8, 2), (6, 4, 3), (5, 4, 1), (8, 4, 4), (1, 8, 1)])
def test_torchrun_has_as_many_ranks_on_every_node(stages, room, each):
    from cappuccino.launch_scripts.torchrun import processes_per_node

    assert processes_per_node(stages, room) == each
