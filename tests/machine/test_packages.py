from importlib.machinery import ModuleSpec

import pytest

from cappuccino.machine import packages
from cappuccino.machine.packages import PackageNotFoundError, package_states, torch_build

THERE = {"numpy": "2.4.6", "peft": "0.22.0", "PyYAML": "6.0", "ghost": "1.0"}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    def version(name: str) -> str:
        if name not in THERE:
            raise PackageNotFoundError(name)
        return THERE[name]

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "ghost" else ModuleSpec(name, None))


def test_packages_are_there_or_it_is_said_what_is_wrong():
    wanted = ("numpy>=2.0", "peft>=0.21,<0.22", "flash-attn>=2.7", "PyYAML>=6", "ghost")
    found = {p.name: (p.state, p.described) for p in package_states(wanted)}
    assert found == {
        "numpy": ("ok", "numpy 2.4.6"),
        "peft": ("wrong version", "peft 0.22.0 (needed: <0.22,>=0.21)"),
        "flash-attn": ("missing", "flash-attn (missing)"),
        "PyYAML": ("ok", "PyYAML 6.0"),
        "ghost": ("broken", "ghost (broken)"),
    }


def test_packages_of_other_systems_are_not_asked_for():
    assert package_states(('numpy; sys_platform == "nowhere"',)) == ()


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", "cpu"),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n", "cuda 13.0"),
        ("cuda = None\nhip = '6.4'\n", "rocm 6.4"),
    ],
)
def test_torch_says_what_it_was_built_for_without_being_imported(monkeypatch, tmp_path, text, build):
    (tmp_path / "version.py").write_text(text)
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(packages, "find_spec", lambda name: spec)
    assert torch_build() == build
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert torch_build() is None
