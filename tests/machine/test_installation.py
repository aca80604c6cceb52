import json

import pytest
from helpers.imports import ROOT

from cappuccino.machine import installation
from cappuccino.machine.installation import Installation, find_installation

REQUIRES = [
    "numpy>=2.0",
    'torch>=2.10; extra == "runtime"',
    'tensorboard>=2.18; python_version > "3" and extra == "dev"',
]


class Installed:
    """A distribution as importlib.metadata gives it."""

    def __init__(self, noted: dict[str, object] | None) -> None:
        self.noted, self.requires = noted, REQUIRES

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.noted is None else json.dumps(self.noted)


@pytest.fixture
def installed(monkeypatch):
    """Pretend that pip noted this of the installation, and that the package lies among others."""

    def pretend(noted: dict[str, object] | None) -> Installation:
        monkeypatch.setattr(installation, "distribution", lambda name: Installed(noted))
        monkeypatch.setattr(installation, "_checkout_around", lambda: None)
        monkeypatch.setattr(installation, "_pip", lambda folder: "pip")
        return find_installation()

    return pretend


def test_an_index_that_had_the_package_has_its_extras(installed):
    found = installed(None)
    assert (found.origin, found.editable) == ("index", False)
    assert found.install_command("runtime") == 'pip install "cappuccino-lora[runtime]"'
    assert found.install_command() == 'pip install "cappuccino-lora"'
    assert found.requirements["runtime"] == ("torch>=2.10",)
    assert found.requirements[""][0] == "numpy>=2.0"


@pytest.mark.parametrize("editable", [True, False])
def test_a_checkout_is_installed_from_its_folder(installed, editable, monkeypatch, tmp_path):
    found = installed({"url": ROOT.as_uri(), "dir_info": {"editable": editable}})
    edit = "-e " if editable else ""
    command = f'pip install -c constraints.txt {edit}".[report,runtime]"'
    monkeypatch.chdir(ROOT)
    assert found.install_command("report", "runtime") == command
    monkeypatch.chdir(tmp_path)
    assert found.install_command("report", "runtime") == f"cd {ROOT} && {command}"
    assert any(text.startswith("torch>=") for text in found.requirements["runtime"])


def test_a_checkout_that_is_gone_is_no_place_to_install_from(installed, tmp_path):
    found = installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert found.described == f"a checkout that is gone, {tmp_path / 'gone'}"
    assert found.install_command("gpu") == 'pip install -e ".[gpu]"  # in a checkout'


def test_files_and_repositories_are_named_again(installed):
    wheel = "file:///w/cappuccino_lora-0.1.0-py3-none-any.whl"
    found = installed({"url": wheel, "archive_info": {}})
    assert found.install_command("runtime") == f'pip install "cappuccino-lora[runtime] @ {wheel}"'
    url, commit = "https://host/cappuccino.git", "c" * 40
    found = installed({"url": url, "vcs_info": {"vcs": "git", "commit_id": commit}})
    assert found.install_command("runtime") == f'pip install "cappuccino-lora[runtime] @ git+{url}@{commit}"'


def test_this_checkout_is_found_without_a_note_of_pip(monkeypatch):
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(None))
    assert (find_installation().origin, find_installation().place) == ("checkout", str(ROOT))


def test_pip_is_that_of_this_python(monkeypatch, tmp_path):
    for name in ("python", "pip"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(installation.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installation._pip(ROOT) == "pip"
    (tmp_path / "pip").unlink()
    assert installation._pip(ROOT) == f"{tmp_path / 'python'} -m pip"
    assert installation._pip(tmp_path) == "python -m pip"


def test_commands_for_a_checkout_name_a_python_that_is_there_from_its_folder(monkeypatch, tmp_path):
    (tmp_path / "root" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "bin" / "python").touch(mode=0o755)
    monkeypatch.setattr(installation.sys, "executable", str(tmp_path / "root" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = Installation("checkout", str(tmp_path / "root"), True, {})
    assert found.install_command("x") == f'cd {tmp_path / "root"} && bin/python -m pip install -e ".[x]"'
