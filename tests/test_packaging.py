"""What is installed is what stands in the tree, and what is imported stays on its floor."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"cappuccino": "cappuccino"} | {f"cappuccino.{n}": n for n in ("models", "solvers", "runtime", "instances")}
FORBIDDEN = {
    # a room imports only from floors below it; the command line is the top floor
    "cappuccino": ("cappuccino.models", "cappuccino.solvers", "cappuccino.runtime", "torch", "pyomo", "ortools"),
    "models": ("cappuccino.solvers", "cappuccino.runtime", "torch"),
    "solvers": ("cappuccino.runtime", "torch"),
    "runtime": ("cappuccino.solvers", "cappuccino.models", "pyomo", "ortools"),
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_pyproject_lists_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inside)))
    assert sorted(found) == sorted(settings["packages"])
    assert settings["package-dir"] == FOLDERS


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_rooms_import_only_from_floors_below(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if "cli" in path.parts:
            continue
        climbing = [n for n in imports(path) if any(n == f or n.startswith(f + ".") for f in FORBIDDEN[folder])]
        assert not climbing, f"{path} imports {climbing}"


SHARED = {"costs", "instance", "plan", "errors", "files", "compiled", "catalogue", "seed_formats"}
"""What checker and solvers both stand on: the file formats and the cost model."""


def modules_behind(name: str) -> set[str]:
    """Return the modules of the domain that one imports, directly or not, by their first name."""
    found, left = set(), {name}
    while left:
        module = left.pop()
        found.add(module)
        base = ROOT / "cappuccino" / module
        files = list(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
        used = {n.split(".")[1] for f in files for n in imports(f) if n.startswith("cappuccino.")}
        left |= {
            n for n in used if (ROOT / "cappuccino" / n).is_dir() or (ROOT / "cappuccino" / f"{n}.py").exists()
        } - found
    return found


def test_the_checker_shares_only_formats_and_costs_with_the_solvers():
    own = modules_behind("checker") - SHARED
    assert own >= {"checker", "simulator", "workload", "timeline"}
    for path in [*(ROOT / "solvers").rglob("*.py"), *(ROOT / "models").rglob("*.py")]:
        checked = {n for n in imports(path) if n.startswith("cappuccino.") and n.split(".")[1] in own}
        assert not checked or path.name == "verification.py", f"{path} imports {checked}"


def test_plans_are_verified_in_the_last_step_of_planning_only():
    users = {
        str(path.relative_to(ROOT / "solvers"))
        for path in (ROOT / "solvers").rglob("*.py")
        if "cappuccino.solvers.verification" in imports(path)
    }
    assert users == {"planning.py", "pareto.py", "baselines/__init__.py"}


def test_costs_are_the_only_ones_to_read_what_an_adapter_costs():
    # whoever else did would not be told apart by the kinds of adapters
    settings = {"rank", "target_modules", "max_grad_norm", "dropout", "alpha"}
    files = [*(ROOT / "solvers").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
    files += [
        ROOT / "cappuccino" / f"{name}.py" for name in ("bounds", "passage", "last_stage", "simulator", "workload")
    ]
    for path in files:
        read = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        if "baselines" in path.parts:
            read -= {"rank"}  # of micro-batches
        assert not read & settings, f"{path} reads {read & settings}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cappuccino.cli", ("torch", "pyomo", "ortools", "pandas", "scipy")),
        ("import cappuccino.solvers.planning", ("torch", "transformers", "peft")),
        ("import cappuccino.runtime.launch.local", ("torch", "pyomo", "ortools")),
    ],
)
def test_imports_stay_light(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_of_commands_is_in_the_command_line():
    app = (ROOT / "cappuccino" / "cli" / "app.py").read_text()
    for path in sorted((ROOT / "cappuccino" / "cli").glob("*_commands.py")):
        assert app.count(f"    {path.stem},\n") == 2, path.stem  # imported, and registered
