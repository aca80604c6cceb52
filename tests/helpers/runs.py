"""A run with everything that tests ask about it."""

from dataclasses import dataclass
from pathlib import Path

from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.launch.run_result import RunResult

DROPOUT_ADAPTER = 4
"""Position in the shared instance."""


@dataclass(frozen=True)
class Run:
    plan: Plan
    instance: Instance
    backbone: Path
    data: Path
    out: Path
    result: RunResult
    progress: list[tuple[int, int]]


def run(plan: Plan, instance: Instance, backbone: Path, data: Path, out: Path, *, dtype: str) -> Run:
    """Run a plan and keep what went in and came out."""
    progress: list[tuple[int, int]] = []
    result = run_plan(
        plan, instance, backbone, data, out, dtype=dtype, on_progress=lambda *numbers: progress.append(numbers)
    )
    return Run(plan, instance, backbone, data, out, result, progress)
