"""Replicas as ranks of two "nodes" on this machine: what they leave is what one run of the whole plan leaves."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cli.cluster.conftest import require_same_results, script_for
from cli.conftest import cappuccino, one_clear_error, run_tiny

pytest.importorskip("torch")
LIMIT_S = 240


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process of the block is there once it is over, whatever came of it."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    try:
        yield
    finally:
        left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        _, alive = psutil.wait_procs(left, timeout=10)
        for process in alive:
            process.kill()
    assert not alive


def start(*command: object, **environment: str) -> "subprocess.Popen[str]":
    whole = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        list(map(str, command)), env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(*processes: "subprocess.Popen[str]") -> list[tuple[int, str]]:
    """Return exit status and output of each."""
    deadline, found = time.monotonic() + LIMIT_S, []
    for process in processes:
        said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        found.append((process.returncode, said))
    return found


def ranks(folder: Path, out: Path, replica: int, *options: object) -> list["subprocess.Popen[str]"]:
    """Start a replica as torchrun would, without it: exit statuses come through."""
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    command = (sys.executable, "-m", "cappuccino", "run-replica", folder / "plan.json", *files, "-o", out)
    port = str(free_port())
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        start(*command, "--replica", replica, "--dtype", "float64", *options, RANK=str(rank), **place)
        for rank in range(2)
    ]


def test_the_torchrun_script_runs_replicas_across_two_nodes_into_one_folder(two_replicas, whole_run, tmp_path):
    out, script = tmp_path / "out", tmp_path / "train.sh"
    script_for(two_replicas, "torchrun", script, out, "--device", "cpu", "--gpus-per-node", 1)
    with nothing_left():
        for replica in (0, 1):
            endpoint = f"localhost:{free_port()}"
            nodes = [start("bash", script, replica, endpoint) for _ in range(2)]
            for status, said in ended(*nodes):
                assert status == 0, said
            assert list(json.loads((out / "losses.json").read_text())) == ["a", "b"][: replica + 1]
    require_same_results(whole_run, out)
    instance = ("--instance", two_replicas / "instance.json")
    against = cappuccino("simulate", two_replicas / "plan.json", *instance, "--against", out / "trace.json")
    assert against.code == 0, against.err
    operations = [
        sorted(
            (e["pid"], e["tid"], e["name"])
            for e in json.loads((f / "trace.json").read_text())["traceEvents"]
            if e["ph"] == "X"
        )
        for f in (whole_run, out)
    ]
    assert operations[0] == operations[1]
    # and `run` goes on from the folder: there is nothing left, and nothing is lost
    again = run_tiny(two_replicas, out, "--dtype", "float64", "--resume")
    assert again.code == 0, again.err
    require_same_results(whole_run, out)
    assert not (out / "replicas").exists()


@pytest.mark.slow
def test_a_replica_that_is_asked_to_end_goes_on_from_its_checkpoints(two_replicas, whole_run, tmp_path):
    out = tmp_path / "out"
    with nothing_left():
        started = ranks(two_replicas, out, 1, "--checkpoint-every", 1)
        while not list((out / "checkpoints").rglob("checkpoint.json")):
            assert all(process.poll() is None for process in started), ended(*started)
            time.sleep(0.02)
        for process in started:
            process.send_signal(signal.SIGTERM)
        results = ended(*started)
        statuses = {status for status, _ in results}
        assert statuses in ({75}, {0}), results  # 0: it was through before it heard
        for replica in (0, 1):
            for status, said in ended(*ranks(two_replicas, out, replica, "--resume")):
                assert status == 0, said
    require_same_results(whole_run, out)


def test_when_a_stage_dies_all_ranks_end_and_say_which(two_replicas, tmp_path):
    out = tmp_path / "out"
    with nothing_left():
        started = ranks(two_replicas, out, 0, "--checkpoint-every", 1)
        follower = psutil.Process(started[1].pid)
        while not follower.children():
            assert all(process.poll() is None for process in started), ended(*started)
            time.sleep(0.02)
        follower.children()[0].kill()
        (first, said), (second, _) = ended(*started)
    assert first == second == 1
    assert "replica 0, stage 1 failed: the process was ended by SIGKILL" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_what_is_wrong_with_the_input_ends_all_ranks(two_replicas, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "data").mkdir()
    with nothing_left():
        (first, said), (second, other) = ended(*ranks(two_replicas, out, 0, "--data", tmp_path / "data"))
    assert first == second == 1
    assert said.count("error: ") == 1
    assert "error: " not in other
    assert not out.exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("MASTER_ADDR", "is not set", "torchrun")),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "1", "RANK": "one"}, ("RANK", '"one" is no number')),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "1", "RANK": "2", "WORLD_SIZE": "2"}, ("RANK", "2 is none of 2 ranks")),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "3"}, ("has 2 stages, there are 3",)),
    ],
)  # fmt: skip
def test_an_environment_that_is_no_rank_s_is_refused(two_replicas, tmp_path, monkeypatch, environment, words):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = two_replicas
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    done = cappuccino("run-replica", folder / "plan.json", *files, "-o", tmp_path / "out", "--replica", 0)
    assert done.code == 1
    for word in words:
        assert word in done.err


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_clear_error(two_replicas, tmp_path, monkeypatch):
    folder = two_replicas
    files = ("--instance", folder / "instance.json", "--backbone", folder / "backbone", "--data", folder / "data")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        done = cappuccino("run-replica", folder / "plan.json", *files, "-o", tmp_path / "out", "--replica", 0)
    one_clear_error(done, "MASTER_ADDR", f"localhost:{port} cannot be opened", "free port")
