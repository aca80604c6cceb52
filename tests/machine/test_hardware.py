import math
import os

from cappuccino.machine.hardware import memory_gib, num_cores, nvidia_gpus


def driver(folder, monkeypatch, script):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_gpus_are_those_that_the_driver_names(tmp_path, monkeypatch):
    lines = "NVIDIA A100, SXM4, 40960, 20480, 570.1\nNVIDIA GB10, [N/A], [N/A], 580.2"
    driver(tmp_path, monkeypatch, f"echo '{lines}'")
    (first, second), why = nvidia_gpus()
    assert (first.name, first.memory_gib, first.free_gib, first.driver) == ("NVIDIA A100, SXM4", 40, 20, "570.1")
    assert second.name == "NVIDIA GB10"
    assert math.isnan(second.memory_gib)
    assert not why


def test_why_there_are_none_is_said(tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, "echo 'driver not loaded' >&2; exit 9")
    assert nvidia_gpus() == ((), "nvidia-smi fails: driver not loaded")
    driver(tmp_path, monkeypatch, "true")
    assert nvidia_gpus() == ((), "nvidia-smi names none")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_gpus() == ((), "nvidia-smi is not there")


def test_cores_and_memory_are_those_of_this_process():
    assert num_cores() >= 1
    total, free = memory_gib()
    assert 0 < free <= total
