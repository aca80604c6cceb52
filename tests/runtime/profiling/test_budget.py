"""Profiles with a time budget, on a simulated machine with a clock of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.simulated_machine import Machine
from helpers.small import save_llama

from cappuccino.costs import CostTable, SmoothMaximum, fit_costs, read_cost_table
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.fit import FEWEST_ROWS
from cappuccino.costs.validation import CrossValidation, Errors
from cappuccino.errors import InputError
from cappuccino.plan import Plan
from cappuccino.runtime.backbone.config import read_backbone_shape
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.run_result import RunResult
from cappuccino.runtime.profiling import measuring
from cappuccino.runtime.profiling.budget import Budget
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.profiler import PARTIAL, ProfileResult, profile_backbone
from cappuccino.runtime.profiling.rounds import Ended, Rounds

GRID = ProfileGrid(
    num_stages=(1, 2), tokens=(16, 64, 256, 1024), sequence_lengths=(8, 16), num_adapters=(2,), ranks=(64,),
    target_modules=(("q_proj",), "all-linear"), grad_acc_steps=3, repeats=2,
)  # fmt: skip
POINTS = len(GRID.points())
TIMES = ["time_per_step_s", "forward_time_s", "backward_time_s", "layer_forward_time_s"]


class Interrupted(Machine):
    """Ends after so many pauses with an exception."""

    pauses_left = 10**9
    end: BaseException = KeyboardInterrupt()

    def at_pause(self) -> None:
        self.pauses_left -= 1
        if self.pauses_left < 0:
            raise self.end


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("two-layers"), layers=2)


@pytest.fixture
def machine(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    found = Interrupted(read_backbone_shape(backbone).layer)
    monkeypatch.setattr(measuring, "run_plan", found)
    monkeypatch.setattr("cappuccino.runtime.profiling.guess._product_rate", lambda device, dtype: 1e12)
    return found


class Fit:
    """Stands for a fitted model: all fits say the same, so that nothing is uncertain."""

    def alike_times(self, stages: int, tokens: float, squares: float, size: AdapterSize, number: int) -> np.ndarray:
        seconds = float(SmoothMaximum(0.01, 1e-4, 1e-7, 4.0)(tokens, squares))
        return np.full((2, stages), seconds)


@pytest.fixture(autouse=True)
def errors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits take a while: here the error is one over the number of rows, but for tests of real fits."""
    if "real_fits" in request.node.name:
        return

    def validated(table: CostTable, backbone: str, gpu: str) -> CrossValidation:
        rows = len(table.ok)
        return CrossValidation(Errors("rows left out", rows, 1 / rows, 0.0), (Fit(), Fit()))  # type: ignore[arg-type]

    monkeypatch.setattr("cappuccino.runtime.profiling.growing_table.cross_validated", validated)


def profile(machine: Machine, backbone: Path, output: Path, seconds: float | None, **options: Any) -> ProfileResult:
    options = {"name": "tiny", "gpu": "cpu", "grid": GRID, **options}
    return profile_backbone(backbone, output, time_budget_s=seconds, clock=machine.clock, **options)


def points_run(machine: Machine) -> int:
    """Points of all runs: they have as many steps as the grid says, of so many micro-batches."""
    return sum(len(plan.replicas[0].micro_batches) for plan in machine.runs) // (GRID.num_steps * GRID.grad_acc_steps)


@pytest.mark.parametrize("seconds", [90.0, 200.0])
def test_the_budget_is_kept_and_shared(seconds: float, machine: Machine, backbone: Path, tmp_path: Path) -> None:
    result = profile(machine, backbone, tmp_path / "table.csv", seconds, target_error=0.0)
    assert result.ended == Ended.BUDGET
    assert result.seconds <= seconds
    assert machine.now == result.seconds
    assert result.new_points == len(result.table) < 2 * POINTS
    rows = result.table.groupby("pp_size").size()
    assert set(rows.index) == {1, 2}
    assert rows.min() >= FEWEST_ROWS
    assert rows.min() > 0.5 * rows.max()
    read = read_cost_table(tmp_path / "table.csv")
    assert fit_costs(read, "tiny", "cpu").profiled == (1, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


class Known:
    """Stands for what was measured: the points of the fewest tokens."""

    rounds = ()

    def known(self, stages: int) -> dict[Point, bool]:
        return {p: True for p in GRID.points() if p.tokens == 16}


class Expected:
    """Stands for what is expected: 10 s a run and a tenth of a second a token."""

    def run(self, stages: int, points: Sequence[Point]) -> float:
        return 10 + sum(p.tokens for p in points) / 10


@pytest.mark.parametrize(("seconds", "tokens"), [(400.0, 1024), (100.0, 256), (40.0, 64)])
def test_the_largest_micro_batch_that_the_time_is_enough_for_comes_early(seconds: float, tokens: int) -> None:
    # plans make micro-batches as large as memory allows; 1024 tokens take 112 s, 256 take 36
    parts: Any = Known(), Budget(seconds, lambda: 0.0), Expected()
    rounds = Rounds((1,), GRID.points(), *parts, 0.0, judge=None)  # type: ignore[arg-type]
    chosen = rounds.next()
    assert chosen is not None
    assert max(p.tokens for p in chosen.points) == tokens


def test_real_fits_choose_points_until_they_are_good(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    grid = replace(GRID, num_stages=(1,), num_adapters=(), ranks=(), target_modules=(), tokens=(16, 64, 128, 256, 512))
    result = profile(machine, backbone, tmp_path / "table.csv", 3000.0, grid=grid, target_error=0.2)
    assert result.ended in (Ended.TARGET, Ended.COMPLETE)
    assert result.errors is None or (result.errors.time or 0.0) <= 0.2


def test_without_a_budget_the_whole_grid_is_measured(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    result = profile(machine, backbone, tmp_path / "table.csv", None, target_error=1.0)
    assert (result.ended, len(result.table), len(machine.runs)) == (Ended.COMPLETE, 2 * POINTS, 2)


def test_a_target_ends_a_profile_before_its_budget(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    target = 1 / (2 * POINTS - 4)
    result = profile(machine, backbone, tmp_path / "table.csv", 3000.0, target_error=target)
    assert result.ended == Ended.TARGET
    assert result.errors is not None
    assert result.errors.time is not None
    assert result.errors.time <= target
    assert len(result.table) < 2 * POINTS
    assert result.seconds < 3000.0
    # enough is enough: it is not gone on with
    runs, written = len(machine.runs), (tmp_path / "table.csv").read_bytes()
    again = profile(machine, backbone, tmp_path / "table.csv", 3000.0, target_error=target)
    assert (again.ended, again.new_points, len(machine.runs)) == (Ended.TARGET, 0, runs)
    assert (tmp_path / "table.csv").read_bytes() == written


def test_a_budget_that_is_too_small_says_so_and_keeps_what_there_is(
    machine: Machine, backbone: Path, tmp_path: Path
) -> None:
    machine.slower = 3.0
    with pytest.raises(InputError, match="--time-budget") as error:
        profile(machine, backbone, tmp_path / "table.csv", 25.0)
    assert "of the 4 rows that a fit needs" in str(error.value)
    assert f"(kept in {tmp_path / 'table.csv'}{PARTIAL}; {tmp_path / 'table.csv'} is not written)" in str(error.value)
    for remedy in ("call again", "--num-stages", "--tokens"):
        assert remedy in str(error.value)
    assert machine.now <= 25.0
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv" + PARTIAL]
    result = profile(machine, backbone, tmp_path / "table.csv", 300.0)
    assert result.new_points < len(result.table)  # the others were taken over
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


class SlowToStart(Interrupted):
    """Takes longer to start two stages than there is time."""

    def __call__(self, plan: Plan, *arguments: Any, **options: Any) -> RunResult:
        self.start_s = 10.0 if plan.replicas[0].num_stages == 1 else self.start_of_two_s
        return super().__call__(plan, *arguments, **options)

    start_of_two_s = 200.0


def test_stage_counts_that_lack_rows_are_left_out_and_gone_on_with(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowToStart(read_backbone_shape(backbone).layer)
    monkeypatch.setattr(measuring, "run_plan", machine)
    monkeypatch.setattr("cappuccino.runtime.profiling.guess._product_rate", lambda device, dtype: 1e12)
    table = tmp_path / "table.csv"
    result = profile(machine, backbone, table, 120.0)
    assert result.ended == Ended.BUDGET
    assert set(result.table["pp_size"]) == {1}
    assert len(result.table) >= FEWEST_ROWS
    (said,) = result.shortages
    assert said.startswith("the 2 min are spent, and of the 4 rows that a fit needs there are 0 at 2 stages: the table")
    assert "call again to go on" in said
    assert fit_costs(read_cost_table(table), "tiny", "cpu").profiled == (1,)
    assert {p.name for p in tmp_path.iterdir()} == {table.name, table.name + PARTIAL}
    machine.start_of_two_s = 10.0
    again = profile(machine, backbone, table, 300.0)
    assert again.shortages == ()
    assert set(again.table["pp_size"]) == {1, 2}
    assert again.new_points == len(again.table) - len(result.table)
    assert {p.name for p in tmp_path.iterdir()} == {table.name}


def test_nothing_can_be_measured_in_no_time(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of the 4 rows that a fit needs there are 0 at 1 stage and 0 at 2 stages;"):
        profile(machine, backbone, tmp_path / "table.csv", 5.0)
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), SystemExit(143), RunError(0, 0, "the process was ended by SIGKILL (out of memory?)")]
)
@pytest.mark.parametrize("seconds", [None, 400.0])
def test_points_are_kept_when_a_run_is_ended(
    seconds: float | None, end: BaseException, machine: Interrupted, backbone: Path, tmp_path: Path
) -> None:
    machine.end, machine.pauses_left = end, 1 + (GRID.num_steps - 1) * 3 + 1  # in the middle of the fourth point
    with pytest.raises(type(end)):
        profile(machine, backbone, tmp_path / "table.csv", seconds)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv" + PARTIAL]
    machine.pauses_left = 10**9
    machine.runs.clear()
    result = profile(machine, backbone, tmp_path / "table.csv", None)
    assert len(result.table) == 2 * POINTS
    assert result.new_points == 2 * POINTS - 3
    assert points_run(machine) == 2 * POINTS - 3
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_finished_table_is_gone_on_with(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    first = profile(machine, backbone, tmp_path / "table.csv", 90.0, target_error=0.0)
    second = profile(machine, backbone, tmp_path / "table.csv", 60.0, target_error=0.0)
    assert second.new_points > 0
    assert len(second.table) == len(first.table) + second.new_points
    whole = profile(machine, backbone, tmp_path / "table.csv", None)
    assert whole.new_points == 2 * POINTS - len(second.table)
    key = ["pp_size", "micro_bsz", "seqlen", "num_adapters", "rank", "target_modules", "dropout"]
    both = first.table.merge(whole.table, on=key, suffixes=("", "_later"))
    assert len(both) == len(first.table)
    for column in TIMES:
        np.testing.assert_allclose(both[column], both[column + "_later"], rtol=1e-5)
    runs = len(machine.runs)
    assert profile(machine, backbone, tmp_path / "table.csv", 300.0).ended == Ended.COMPLETE
    assert len(machine.runs) == runs
    assert profile(machine, backbone, tmp_path / "table.csv", None, again=True).new_points == 2 * POINTS


def test_a_round_that_overruns_is_ended(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    profile(machine, backbone, tmp_path / "table.csv", 100.0, target_error=0.0)
    machine.slower, before = 20.0, machine.now  # which the profiler cannot know
    result = profile(machine, backbone, tmp_path / "table.csv", 100.0, target_error=0.0)
    assert result.ended == Ended.BUDGET
    assert machine.now - before < 100.0 + 2 * 20  # a pause of the simulated machine comes after a whole step
    assert result.new_points > 0


def test_rounds_of_a_slower_hour_give_the_same_table(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    steady = profile(machine, backbone, tmp_path / "steady.csv", 400.0, target_error=0.0).table

    class Slower(Machine):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.slower = 1.0 if len(self.runs) < 3 else 1.5
            return super().__call__(*arguments, **options)

    other = Slower(machine.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "run_plan", other)
        drifted = profile(other, backbone, tmp_path / "drifted.csv", 400.0, target_error=0.0).table
    assert len(other.runs) > 3
    assert drifted["reference_time_s"].max() == pytest.approx(1.5 * drifted["reference_time_s"].min())
    for stages in (1, 2):
        both = pd.merge(
            *(t[t["pp_size"] == stages] for t in (steady, drifted)),
            on=["micro_bsz", "seqlen", "num_adapters", "rank", "target_modules"],
        )
        assert len(both) >= FEWEST_ROWS
        for column in TIMES:
            ratios = both[column + "_x"] / both[column + "_y"]
            assert ratios.max() / ratios.min() == pytest.approx(1.0, abs=5e-3)  # transfers are as fast as before


def test_progress_tells_the_time_spent_of_the_budget(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    said: list[tuple[float, str, float]] = []
    profile(
        machine, backbone, tmp_path / "table.csv", 200.0, target_error=0.0,
        on_progress=lambda fraction, text: said.append((fraction, text, machine.now)),
    )  # fmt: skip
    fractions = [fraction for fraction, _, _ in said]
    assert fractions == sorted(fractions)
    for fraction, _, now in said[:-1]:
        assert fraction == pytest.approx(now / 200.0)
    assert f"of {2 * POINTS} points" in said[0][1]
    assert "error on rows left out" in said[-2][1]
    assert "budget spent" in said[-1][1]


def test_other_settings_start_anew(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    profile(machine, backbone, tmp_path / "table.csv", 90.0, target_error=0.0)
    other = profile(
        machine, backbone, tmp_path / "table.csv", None, grid=replace(GRID, num_stages=(1,), tokens=(16, 32))
    )
    assert other.new_points == len(other.table)
