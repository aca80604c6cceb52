"""What is installed is what stands in the tree, and what is imported stays on its floor."""

import ast
import subprocess
import sys
import tomllib

import pytest
from helpers.imports import FOLDERS, ROOT, modules, room_imports
from helpers.imports import imported_names as imports

MAY_IMPORT = {
    "errors": "",
    "compiled": "",
    "files": "errors",
    "documents": "errors files",
    "adapter": "files",
    "sweep": "errors files adapter",
    "lengths": "errors files",
    "backbone": "errors files",
    "certificate": "files",
    "plan": "files certificate",
    "training_data": "",
    "instance": "errors files documents adapter sweep lengths training_data",
    "costs": "errors files backbone plan instance",
    "schemas": "files adapter sweep certificate plan instance",
    "remaining": "errors plan instance",
    "timeline": "files plan",
    "workload": "plan instance costs",
    "simulator": "errors plan instance costs timeline workload",
    "bounds": "compiled instance costs",
    "analytic": "errors backbone plan costs",
    "machine": "errors files",
    "prototype": "errors files lengths backbone instance analytic",
    "checker": "errors certificate plan instance costs simulator bounds",
    "reports": "errors backbone plan instance costs timeline workload simulator",
    "reports.page": "costs instance plan timeline workload simulator reports",
    "models.cp_sat": "",
    "models.partition_relaxation": "",
    "models.replica_data": "",
    "models.batch_time": "models.replica_data",
    "models.job_shop_data": "models.replica_data",
    "models.job_shop": "models.batch_time models.cp_sat models.job_shop_data models.replica_data",
    "models.replica": "models.batch_time models.cp_sat models.replica_data",
    "models.set_partitioning": "plan",
    "solvers.budget": "errors",
    "solvers.settings": "errors solvers.budget",
    "solvers.scheduling.kernels": "compiled",
    "solvers.scheduling": "plan instance costs bounds models.job_shop models.job_shop_data "
    "models.replica_data models.replica solvers.budget solvers.settings "
    "solvers.scheduling.kernels",
    "solvers.allocation": "errors compiled plan instance costs bounds models.partition_relaxation "
    "models.set_partitioning solvers.budget solvers.settings solvers.scheduling",
    "solvers.layer_split": "plan instance costs bounds",
    "solvers.certification": "certificate plan solvers.allocation",
    "solvers.assembly": "certificate plan instance costs solvers.scheduling",
    "solvers.verification": "errors plan instance costs checker",
    "solvers.baselines": "errors compiled plan instance costs bounds solvers.scheduling.kernels solvers.scheduling "
    "solvers.allocation solvers.layer_split solvers.assembly solvers.verification",
    "solvers.export": "errors files plan instance models.set_partitioning solvers.scheduling solvers.allocation",
    "solvers.improvement": "plan solvers.budget solvers.scheduling solvers.allocation",
    "solvers.seeding": "errors solvers.budget solvers.scheduling solvers.allocation solvers.baselines",
    "solvers.savings": "plan instance bounds solvers.budget solvers.scheduling solvers.allocation",
    "solvers.planning": "errors plan instance costs solvers.budget solvers.settings solvers.scheduling "
    "solvers.allocation solvers.layer_split solvers.certification solvers.assembly solvers.verification solvers.export "
    "solvers.improvement solvers.seeding solvers.savings",
    "solvers.pareto": "errors plan instance costs solvers.budget solvers.allocation solvers.verification "
    "solvers.planning",
    "runtime.backbone": "errors files backbone",
    "runtime.lora": "errors files instance runtime.backbone",
    "runtime.encoding": "errors",
    "runtime.data": "errors files lengths plan training_data instance runtime.backbone runtime.lora runtime.encoding",
    "runtime.new_instance": "errors files documents adapter sweep backbone plan training_data instance analytic "
    "runtime.backbone runtime.encoding runtime.data",
    "runtime.pipeline": "plan instance runtime.backbone runtime.lora runtime.data",
    "runtime.checkpoint": "errors files instance runtime.lora runtime.data runtime.pipeline",
    "runtime.monitoring": "errors files instance runtime.data runtime.pipeline runtime.checkpoint",
    "runtime.launch": "errors files backbone plan instance remaining timeline runtime.backbone runtime.lora "
    "runtime.data runtime.pipeline runtime.checkpoint runtime.monitoring",
    "runtime.profiling": "errors files backbone plan instance costs timeline runtime.backbone runtime.pipeline "
    "runtime.monitoring runtime.launch",
    "instances.generate_lengths": "files lengths",
    "instances.building": "instance instances.generate_lengths",
    "instances.generate_instances": "files instances.generate_lengths instances.building",
    "instances.generate_tables": "files backbone analytic",
    "instances.generate_tiny": "instance runtime.backbone runtime.profiling",
    "library": "errors files plan instance costs simulator checker solvers.baselines solvers.planning",
    "instances.generate_index": "instance library",
    "api": "errors machine plan instance remaining costs simulator checker reports solvers.budget solvers.settings "
    "solvers.layer_split solvers.export solvers.planning runtime.backbone runtime.checkpoint runtime.monitoring "
    "runtime.launch",
    "cli.terminal": "errors plan timeline checker reports runtime.monitoring runtime.launch",
    "cli.help": "errors files machine cli.terminal",
    "cli": "errors files machine lengths backbone plan instance remaining costs timeline workload simulator analytic "
    "prototype checker reports reports.page solvers.budget solvers.settings solvers.layer_split solvers.baselines "
    "solvers.export solvers.planning solvers.pareto runtime.backbone runtime.lora runtime.encoding runtime.data "
    "runtime.new_instance runtime.checkpoint runtime.monitoring runtime.launch runtime.profiling "
    "instances.generate_tiny library api cli.terminal cli.help",
}
"""Who imports whom, a package (or a module at the root of a floor) a line; each only from those above it."""
LARGE = {
    "cappuccino": ("torch", "pyomo", "ortools"),
    "models": ("torch",),
    "solvers": ("torch",),
    "runtime": ("pyomo", "ortools"),
}
"""Libraries that a floor does without."""


def test_pyproject_lists_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *inside)))
    assert sorted(found) == sorted(settings["packages"])
    assert settings["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_pyproject_ships_every_file_that_is_no_code():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = set()
    for package, patterns in settings["package-data"].items():
        top = max((p for p in settings["package-dir"] if package == p or package.startswith(f"{p}.")), key=len)
        folder = ROOT.joinpath(settings["package-dir"][top], *package.removeprefix(top).split("."))
        shipped |= {path for pattern in patterns for path in folder.glob(pattern)}
    files = [
        p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    assert {p for p in files if p.suffix != ".py"} == shipped


def test_rooms_import_what_the_table_says_and_only_from_above():
    floors = set(FOLDERS)
    found = {r: used - floors for r, used in room_imports().items() if r not in floors}
    assert {r: set(names.split()) for r, names in MAY_IMPORT.items()} == found
    rooms = list(MAY_IMPORT)
    for i, (name, names) in enumerate(MAY_IMPORT.items()):
        assert set(names.split()) <= set(rooms[:i]), name


def test_no_circle_of_modules():
    files = modules()
    left = {m: imports(path) & set(files) - {m} for m, path in files.items()}
    left = {m: {n for n in used if not m.startswith(f"{n}.")} for m, used in left.items()}
    while free := {m for m, used in left.items() if not used & set(left)}:
        left = {m: used for m, used in left.items() if m not in free}
    assert not left


def test_rooms_are_of_a_size_to_live_in():
    files = list(modules().values())
    for path in files:
        assert len(path.read_text().splitlines()) <= 350, path
    for folder in {path.parent for path in files}:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= 15, folder


@pytest.mark.parametrize("folder", LARGE)
def test_floors_do_without_the_large_libraries_of_others(folder):
    for path in (ROOT / folder).rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path)} & set(LARGE[folder])
        assert not found, f"{path} imports {found}"


SHARED = {
    "costs",
    "instance",
    "adapter",
    "sweep",
    "plan",
    "errors",
    "files",
    "documents",
    "compiled",
    "backbone",
    "lengths",
    "training_data",
    "certificate",
    "bounds",
}
"""What checker and solvers both stand on: the file formats, the cost model and the bounds on a replica."""


def rooms_behind(name: str) -> set[str]:
    """Return the rooms that one imports, directly or not, and itself."""
    used = room_imports()
    found, left = set(), {name}
    while left:
        found |= left
        left = set().union(*(used[r] for r in left)) - found
    return found - set(FOLDERS)


def test_the_checker_shares_only_formats_costs_and_bounds_with_the_solvers():
    own = rooms_behind("checker") - SHARED
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
    files += [*(ROOT / "cappuccino" / "bounds").glob("*.py")]
    files += [ROOT / "cappuccino" / f"{name}.py" for name in ("simulator", "workload")]
    for path in files:
        read = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        if "baselines" in path.parts:
            read -= {"rank"}  # of micro-batches
        assert not read & settings, f"{path} reads {read & settings}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cappuccino.cli", ("torch", "pyomo", "ortools", "pandas", "scipy", "matplotlib")),
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
    for path in sorted((ROOT / "cappuccino" / "cli").rglob("*_commands.py")):
        assert app.count(f"    {path.stem},\n") + app.count(f"import {path.stem}\n") == 2, path.stem  # and registered
