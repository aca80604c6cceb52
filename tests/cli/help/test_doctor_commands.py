import subprocess
import sys
from dataclasses import replace

import pytest
from cli.conftest import cappuccino
from helpers.imports import ROOT

from cappuccino.machine import checkup
from cappuccino.machine.hardware import Gpu
from cappuccino.machine.installation import find_installation

GPU = Gpu("NVIDIA H100", 80.0, 79.5, "570.1")


@pytest.fixture
def machine(monkeypatch):
    """Pretend: GPUs, torch's build, and requirements of an extra."""

    def pretend(gpus=(), build="cpu", **requirements):
        found = find_installation()
        changed = replace(found, requirements=found.requirements | {k.strip("_"): v for k, v in requirements.items()})
        monkeypatch.setattr(checkup, "find_installation", lambda: changed)
        monkeypatch.setattr(checkup, "nvidia_gpus", lambda: (tuple(gpus), "" if gpus else "nvidia-smi is not there"))
        monkeypatch.setattr(checkup, "torch_build", lambda: build)

    monkeypatch.chdir(ROOT)
    return pretend


def test_a_machine_that_plans_is_healthy(machine):
    machine(runtime=("numpy",))
    done = cappuccino("doctor")
    assert done.code == 0, done.err
    assert all(len(line) <= 80 for line in done.out.splitlines() if " install " not in line)
    headings = [line[:12].strip() for line in done.out.splitlines() if line[:12].strip()]
    kinds = ["planning", "training", "flash-attn", "report", "tracking", "Ray", "kernels", "instances"]
    assert headings == ["cappuccino", "machine", "GPU", *kinds]
    assert "training    works on the CPU (torch built for cpu): numpy " in done.out


def test_what_is_missing_comes_with_the_command_that_brings_it(machine):
    machine(runtime=("no-such-package>=3", "numpy"), report=("neither-this",))
    done = cappuccino("doctor")
    assert done.code == 0  # planning works
    assert "training    DOES NOT WORK: no-such-package (missing)" in done.out
    lines = [line.strip() for line in done.out.splitlines()]
    assert find_installation().install_command("runtime") in lines
    assert find_installation().install_command("report") in lines
    found = cappuccino("doctor", "--json").json
    assert (found["planning"], found["training"]) == (True, False)
    command = next(e["command"] for e in found["extras"] if e["extra"] == "runtime")
    assert command.endswith('install -c constraints.txt -e ".[runtime]"')


def test_a_machine_that_cannot_plan_is_not(machine):
    machine(_=("numpy>=99",))
    done = cappuccino("doctor")
    assert done.code == 1
    assert "planning    DOES NOT WORK: numpy " in done.out
    found = cappuccino("doctor", "--json")
    assert found.code == 1
    assert found.json["problems"][0].startswith("planning lacks numpy ")


@pytest.mark.parametrize(
    ("build", "words", "on_gpus"),
    [("cuda 12.8", "on GPUs too (torch built for cuda 12.8)", True), ("cpu", "on the CPU only", False)],
)
def test_gpus_need_a_torch_that_is_built_for_them(machine, build, words, on_gpus):
    machine(gpus=[GPU], build=build, runtime=("numpy",))
    done = cappuccino("doctor")
    assert "GPU         NVIDIA H100, 79.5 of 80.0 GiB free, driver 570.1" in done.out
    assert words in done.out
    assert cappuccino("doctor", "--json").json["training_on_gpus"] is on_gpus


def test_no_large_package_is_imported():
    large = ("torch", "numba", "pandas", "scipy", "pyomo", "highspy", "ortools", "matplotlib", "transformers", "bokeh")
    code = (
        "import sys\nfrom cappuccino.cli import main\nsys.argv = ['cappuccino', 'doctor']\n"
        f"try:\n    main()\nexcept SystemExit:\n    print([m for m in {large!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
