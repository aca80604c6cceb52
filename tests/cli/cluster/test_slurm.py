"""The Slurm script: what it asks for, and its body for one task of the array, in a Slurm made of two shell scripts."""

import subprocess
from pathlib import Path

import pytest
from cli.cluster.conftest import script_for
from cli.cluster.test_ranks import ended, nothing_left, start
from cli.conftest import cappuccino, one_clear_error
from helpers.plans import joined

from cappuccino.instance import Instance
from cappuccino.plan import Plan

pytest.importorskip("torch")

SRUN = """#!/usr/bin/env bash
# starts as many tasks as the job has, here, and ends with their highest exit status
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task"; status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'localhost\\nother\\n'; else echo "$@" >> "$(dirname "$0")/asked"; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with `srun` and `scontrol`, to be the first of the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_task(script: Path, slurm: Path, task: int, **environment: str) -> tuple[int, str]:
    place = {
        "PATH": f"{slurm}:/usr/bin:/bin",
        "SLURM_JOB_ID": str(4000 + task),
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
    }
    with nothing_left():
        (found,) = ended(start("bash", script, **(place | environment)))
    return found


def directives(script: str) -> dict[str, str | None]:
    """Return the options of sbatch: they stand before the first command."""
    found: dict[str, str | None] = {}
    for line in script.splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH --"):
            name, equals, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in found
            found[name] = value if equals else None
    return found


def require_shell(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_replicas_of_one_size_are_one_array(two_replicas, tmp_path):
    script = tmp_path / "train.sbatch"
    options = ("--set", "account=physics", "--set", "exclusive", "--set", "time=02:00:00", "--set", "signal=TERM@120")
    asked = directives(script_for(two_replicas, "slurm", script, tmp_path / "out", *options, "--gpu-name", "cpu=a100"))
    require_shell(script)
    assert asked["array"] == "0,1"
    assert asked["ntasks"] == asked["ntasks-per-node"] == "2"
    assert asked["gpus-per-task"] == "a100:1"
    assert (asked["account"], asked["exclusive"], asked["time"]) == ("physics", None, "02:00:00")
    assert asked["signal"] == "TERM@120"  # instead of the script's own
    assert "requeue" in asked


def test_a_task_runs_its_replica_and_one_that_was_queued_again_goes_on(two_replicas, slurm, tmp_path):
    out, script = tmp_path / "out", tmp_path / "train.sbatch"
    script_for(two_replicas, "slurm", script, out, "--device", "cpu")
    status, said = run_task(script, slurm, 1)
    assert status == 0, said
    assert (out / "b" / "adapter_model.safetensors").is_file()
    assert not (out / "a").exists()
    assert not (slurm / "asked").exists()
    written = (out / "b" / "adapter_model.safetensors").read_bytes()
    status, said = run_task(script, slurm, 1, SLURM_RESTART_COUNT="1")  # there is nothing left to do
    assert status == 0, said
    assert (out / "b" / "adapter_model.safetensors").read_bytes() == written
    assert (out / "trace.json").is_file()


def test_a_task_that_ends_with_75_is_queued_again_and_no_other(two_replicas, slurm, tmp_path):
    script = tmp_path / "train.sbatch"
    script_for(two_replicas, "slurm", script, tmp_path / "out", "--device", "cpu")
    for code, asked in ((75, "requeue 4000\n"), (1, None)):
        (slurm / "srun").write_text(f"#!/usr/bin/env bash\nexit {code}\n")
        (slurm / "asked").unlink(missing_ok=True)
        status, _ = run_task(script, slurm, 0)
        assert status == code
        assert ((slurm / "asked").read_text() if (slurm / "asked").exists() else None) == asked


def test_replicas_of_several_sizes_are_several_arrays_that_the_script_submits(two_replicas, slurm, tmp_path):
    folder = tmp_path / "unlike"
    folder.mkdir()
    for name in ("backbone", "data", "instance.json", "table.csv"):
        (folder / name).symlink_to(two_replicas / name)
    instance = Instance.load(folder / "instance.json")
    part, one = two_replicas / "b", tmp_path / "one.json"
    options = ("-o", one, "--num-stages", 1, "--time-limit", 1)
    assert cappuccino("plan", part / "instance.json", *options).code == 0
    plans = [Plan.load(two_replicas / "a" / "plan.json"), Plan.load(one)]
    plan = joined(instance, plans)
    replicas = tuple(r.model_copy(update={"savings": None}) for r in plan.replicas)
    times = {"gpu_time_s": sum(p.gpu_time_s for p in plans), "makespan_s": max(p.makespan_s for p in plans)}
    plan.model_copy(update={**times, "replicas": replicas}).save(folder / "plan.json")
    script = tmp_path / "train.sbatch"
    text = script_for(folder, "slurm", script, tmp_path / "out", "--gpus-per-node", 1)
    require_shell(script)
    assert "array" not in directives(text)
    (slurm / "sbatch").write_text('#!/usr/bin/env bash\necho "$@" >> "$(dirname "$0")/submitted"\n')
    (slurm / "sbatch").chmod(0o755)
    subprocess.run(["bash", script], env={"PATH": f"{slurm}:/usr/bin:/bin"}, check=True)
    submitted = [line.split() for line in (slurm / "submitted").read_text().splitlines()]
    assert [line[-1] for line in submitted] == [str(script)] * 2
    sizes = [dict(word.removeprefix("--").split("=") for word in line[:-1]) for line in submitted]
    assert [(s["array"], s["ntasks"], s["ntasks-per-node"]) for s in sizes] == [("0", "2", "1"), ("1", "1", "1")]
    place = {"PATH": f"{slurm}:/usr/bin:/bin", "SLURM_JOB_ID": "1"}
    by_sbatch = subprocess.run(["bash", script], env=place, capture_output=True, text=True, check=False)
    assert by_sbatch.returncode == 1
    assert "submit them by: bash" in by_sbatch.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("array=0-9", ('"array" follows from the plan',)),
        ("ntasks=3", ('"ntasks" follows from the plan',)),
        ("two words", ("'two words' is no option of sbatch",)),
        ("time=", ("'time=' is no option of sbatch",)),
        ("comment=a\nrm -rf", ("is no option of sbatch",)),
    ],
)
def test_settings_that_are_none_or_follow_from_the_plan_are_refused(two_replicas, tmp_path, setting, words):
    folder = two_replicas
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    named = ("--results", tmp_path / "out", "--scheduler", "slurm", "-o", tmp_path / "s", "--set", setting)
    one_clear_error(cappuccino("launch-script", folder / "plan.json", *files, *named), "--set", *words)
    assert not (tmp_path / "s").exists()
