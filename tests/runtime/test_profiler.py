"""The profiler: the order it runs, the plan it makes, and a real table of a backbone of two layers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import save_llama

from cappuccino.checker import check
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum, fit_costs, read_cost_table
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.runtime import profiler
from cappuccino.runtime.errors import RunError
from cappuccino.runtime.profiler import ProfileGrid, one_forward_one_backward, profile_backbone

NAME, GPU = "tiny", "cpu"
SEED_COLUMNS = (
    "param_name", "tasknum", "model_path", "pp_size", "world_size", "global_bsz", "micro_bsz", "grad_acc_steps",
    "seqlen", "rank", "max_steps", "num_samples", "peak_memory_mb", "throughput_per_gpu_tok_s",
    "total_throughput_tok_s", "tokens_per_step", "time_per_step_s", "status",
)  # fmt: skip
TIMES = ("time_per_step_s", "forward_time_s", "backward_time_s", "optimizer_time_s", "peak_memory_mb")
GRID = ProfileGrid(num_stages=(2,), tokens=(16, 32), sequence_lengths=(8, 16), grad_acc_steps=3, repeats=2)
"""Four points, the fewest that a fit takes."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("two-layers"), layers=2)


def order(first: int, count: int, depth: int) -> str:
    return " ".join(f"{kind}{m}" for kind, m in one_forward_one_backward(first, count, depth))


def test_one_forward_one_backward_by_hand() -> None:
    assert order(0, 4, 1) == "F0 B0 F1 B1 F2 B2 F3 B3"  # the last stage holds one micro-batch
    assert order(0, 4, 2) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert order(4, 4, 3) == "F4 F5 F6 B4 F7 B5 B6 B7"
    assert order(0, 2, 3) == "F0 F1 B0 B1"  # deeper than there are micro-batches
    assert order(7, 1, 1) == "F7 B7"


def test_points_are_whole_samples_by_ascending_tokens() -> None:
    grid = ProfileGrid(tokens=(32, 8, 24), sequence_lengths=(16, 8))
    assert grid.points() == [(1, 8), (3, 8), (4, 8), (2, 16)]  # 8 and 24 are no multiples of 16


def plan_of(stages: int, folder: Path) -> tuple[Plan, Instance]:
    grid = replace(GRID, num_stages=(stages,))
    instance = profiler._instance(grid.points(), grid, NAME, GPU, folder, vocabulary=64)
    return profiler._plan(instance, grid, stages, (1,) * stages), instance


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_the_plan_breaks_no_rule_but_that_of_times(stages: int, tmp_path: Path) -> None:
    plan, instance = plan_of(stages, tmp_path)
    second = SmoothMaximum(floor_s=1.0, per_token_s=0.0, per_square_s=0.0, power=1.0)
    memory = {stages: MemoryModel(static_gib=1.0, working_gib=0.0, held_gib=0.0)}
    costs = CostModel(backbone=NAME, gpu=GPU, forward=second, backward=second, memory=memory)
    report = check(plan, instance, {GPU: costs})
    assert {violation.rule for violation in report.violations} == {7}, report.violations
    assert report.simulation is not None
    # Every optimizer step ends in a flush: (micro-batches + stages - 1) slots of an F and a B, 1 / stages seconds each.
    steps = len(GRID.points()) * (GRID.repeats + 1)
    expected = steps * (GRID.grad_acc_steps + stages - 1) * 2.0 / stages
    assert report.simulation.makespan_s == pytest.approx(expected)


@pytest.fixture(scope="module")
def profiled(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, list[float]]:
    output = tmp_path_factory.mktemp("profile") / "table.csv"
    fractions: list[float] = []
    table = profile_backbone(
        backbone, output, name=NAME, gpu=GPU, grid=GRID, on_progress=lambda fraction, text: fractions.append(fraction)
    )
    return output, table, fractions


def test_the_table_has_the_columns_of_the_seed_and_measured_numbers(
    profiled: tuple[Path, pd.DataFrame, list[float]],
) -> None:
    output, table, fractions = profiled
    written = pd.read_csv(output)
    assert list(written.columns) == list(table.columns)
    assert set(SEED_COLUMNS) <= set(written.columns)
    assert list(zip(written["micro_bsz"], written["seqlen"], strict=True)) == GRID.points()
    assert (written[list(TIMES)] > 0).all(axis=None)
    assert (written["transfer_time_s"] >= 0).all()
    assert set(written["status"]) == {"OK"}
    assert set(written["source"]) == {"measured"}
    assert set(written["num_layers"]) == {2}
    assert set(written["pp_size"]) == {2}
    tokens = written["micro_bsz"] * written["seqlen"] * GRID.grad_acc_steps
    assert (written["tokens_per_step"] == tokens).all()
    np.testing.assert_allclose(written["total_throughput_tok_s"], tokens / written["time_per_step_s"], rtol=1e-4)
    np.testing.assert_allclose(written["throughput_per_gpu_tok_s"] * 2, written["total_throughput_tok_s"], rtol=1e-4)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert [p.name for p in output.parent.iterdir()] == ["table.csv"]


def test_a_step_takes_no_less_than_its_operations(profiled: tuple[Path, pd.DataFrame, list[float]]) -> None:
    _, table, _ = profiled
    busy = GRID.grad_acc_steps * np.maximum(table["forward_time_s"], table["backward_time_s"])
    assert (table["time_per_step_s"] > busy * 0.5).all()  # medians of different steps
    assert table["peak_memory_mb"].is_monotonic_increasing


def test_the_table_can_be_read_and_fitted(profiled: tuple[Path, pd.DataFrame, list[float]]) -> None:
    output, table, _ = profiled
    read = read_cost_table(output)
    assert len(read.ok) == 4
    assert not read.is_analytic
    costs = fit_costs(read, NAME, GPU)
    assert costs.profiled == (2,)
    assert costs.num_layers == 2
    assert costs.profiled_tokens == (16, 32)
    assert costs.optimizer_s == pytest.approx(table["optimizer_time_s"].median(), rel=1e-4)
    assert float(costs.forward_curve(2)(32, 32 * 16)) > 0
    assert costs.memory_model(2).static_gib > 0


def test_nothing_is_written_when_a_measurement_fails(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RunError(0, 1, "out of memory")

    monkeypatch.setattr(profiler, "run_plan", fail)
    (tmp_path / "table.csv").write_text("as before")
    for name in ("table.csv", "new.csv"):
        with pytest.raises(RunError, match="out of memory"):
            profile_backbone(backbone, tmp_path / name, name=NAME, gpu=GPU, grid=GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "as before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (16, 20)}, "--tokens: 20 is in no point"),
        ({"sequence_lengths": (8, 12)}, "--sequence-lengths: 12 is in no point"),
        ({"tokens": ()}, r"--tokens: \[\] is not allowed"),
        ({"num_stages": (0, 1)}, r"--num-stages: \[0, 1\] is not allowed"),
        ({"num_stages": (2, 2)}, r"--num-stages: \[2, 2\] names a value twice"),
        ({"sequence_lengths": (-8,)}, r"--sequence-lengths: \[-8\] is not allowed"),
        ({"grad_acc_steps": 0}, r"grad_acc_steps: \[0\] is not allowed"),
        ({"repeats": 0}, r"repeats: \[0\] is not allowed"),
        ({"num_stages": (1, 3)}, "--num-stages: 3 stages for 2 layers"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(
    change: dict[str, object], message: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(profiler, "run_plan", forbidden)
    settings: dict[str, object] = {"num_stages": (1,), "tokens": (16,), "sequence_lengths": (8,), **change}
    with pytest.raises(InputError, match=message):
        profile_backbone(backbone, tmp_path / "table.csv", name=NAME, gpu=GPU, grid=ProfileGrid(**settings))
    assert not list(tmp_path.iterdir())
