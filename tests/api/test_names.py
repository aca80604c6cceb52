"""The names of the package: there when they are used, and costing nothing before."""

import subprocess
import sys

import pytest

import cappuccino

HEAVY = ("torch", "pandas", "numpy", "pydantic", "pyomo", "ortools", "scipy", "numba", "matplotlib")


def fresh(code: str) -> str:
    """Return what a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_brings_nothing_along() -> None:
    code = f"""
import sys, cappuccino
dir(cappuccino), cappuccino.__version__
print([m for m in sys.modules if m.startswith("cappuccino.") or m in {HEAVY!r}])
"""
    assert fresh(code) == "[]"


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (("InputError", "CappuccinoWarning"), HEAVY),
        (("Instance", "Plan"), ("torch", "pandas", "pyomo", "ortools", "scipy", "cappuccino.solvers")),
        (("check", "simulate", "CheckReport", "Simulation"), ("torch", "pyomo", "ortools", "cappuccino.solvers")),
        (("plan",), ("torch", "cappuccino.runtime")),
        (("run",), ("torch", "pyomo", "ortools", "cappuccino.solvers", "cappuccino.runtime")),
    ],
)
def test_a_name_brings_along_what_it_needs_alone(names: tuple[str, ...], absent: tuple[str, ...]) -> None:
    code = f"""
import sys
from cappuccino import {", ".join(names)}
print([m for m in {absent!r} if m in sys.modules])
"""
    assert fresh(code) == "[]"


@pytest.mark.parametrize(
    "before", ["", "import cappuccino.plan", "from cappuccino.plan import Plan", "cappuccino.Plan"]
)
def test_plan_is_the_function_whatever_was_imported_before(before: str) -> None:
    code = f"""
import importlib, cappuccino
{before}
from cappuccino import plan
from cappuccino.plan import Replica
print(callable(plan), callable(cappuccino.plan), importlib.import_module("cappuccino.plan").Replica is Replica)
"""
    assert fresh(code) == "True True True"


def test_all_names_are_there_and_no_others() -> None:
    for name in cappuccino.__all__:
        assert getattr(cappuccino, name) is not None
    assert set(cappuccino.__all__) <= set(dir(cappuccino))
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = cappuccino.gone
