"""profile: what it refuses before anything runs, and what it says of what it measured."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli.conftest import TABLE_HEADER, cappuccino, one_clear_error, table_rows

pytest.importorskip("torch")

from helpers.small import save_llama

from cappuccino.costs import read_cost_table
from cappuccino.costs.validation import cross_validated
from cappuccino.runtime.profiling import profiler
from cappuccino.runtime.profiling.grid import ProfileGrid
from cappuccino.runtime.profiling.profiler import PARTIAL, ProfileResult
from cappuccino.runtime.profiling.rounds import Ended


def result(table: pd.DataFrame, output: Path, ended: Ended = Ended.COMPLETE) -> ProfileResult:
    errors = cross_validated(read_cost_table(output), "backbone", "cpu").errors
    return ProfileResult(table, errors if len(table) > 8 else None, 12.0, ended, len(table))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("profiled") / "backbone", layers=2)


def test_a_bad_grid_is_one_error_and_nothing_is_written(backbone: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    arguments = ("profile", "--backbone", backbone, "-o", table)
    one_clear_error(cappuccino(*arguments, "--tokens", "1,x"), "--tokens", "1,x")
    one_clear_error(cappuccino(*arguments, "--tokens", "100", "--sequence-lengths", "64"), "--tokens", "multiple")
    one_clear_error(cappuccino(*arguments, "--num-stages", "1,3"), "--num-stages", "3 stages for 2 layers")
    one_clear_error(cappuccino(*arguments, "--num-adapters", "3"), "--num-adapters", "3 is in no point")
    one_clear_error(cappuccino(*arguments, "--device", "tpu"), "device", '"tpu" is not known')
    one_clear_error(cappuccino(*arguments[:-1], backbone / "config.json" / "table.csv"), "config.json", "no folder")
    assert cappuccino(*arguments[:-2]).code == 2
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_is_nowhere_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.csv"
    one_clear_error(cappuccino("profile", "--backbone", tmp_path / "no", "-o", table), "no", "is not a folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    done = cappuccino("profile", "--backbone", "somebody/some-model", "-o", table)
    one_clear_error(done, "--backbone", "somebody/some-model", "hub")
    assert not table.exists()


def test_options_reach_the_grid_and_failures_are_counted(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def measured(place: Path, output: Path, **options: Any) -> ProfileResult:
        seen.update(options, place=place)
        output.write_text("\n".join([TABLE_HEADER, *table_rows(options["name"], (1, 2))]) + "\n")
        return result(pd.DataFrame({"status": ["OK"] * 10 + ["OOM"]}), output, Ended.BUDGET)

    monkeypatch.setattr(profiler, "profile_backbone", measured)
    options = (
        "--num-stages",
        "1,2",
        "--tokens",
        "32,64",
        "--sequence-lengths",
        "8",
        "--num-adapters",
        "2",
        "--ranks",
        "4,8",
    )
    more = ("--target-modules", "q_proj+o_proj,all-linear", "--micro-batches", 3, "--repeats", 5, "--gpu", "x")
    done = cappuccino("profile", "--backbone", backbone / "config.json", "-o", tmp_path / "t.csv", *options, *more)
    assert done.code == 0, done.err
    assert seen["grid"] == ProfileGrid((1, 2), (32, 64), (8,), (2,), (4, 8), (("q_proj", "o_proj"), "all-linear"), 3, 5)
    assert (seen["name"], seen["gpu"], seen["place"]) == ("backbone", "x", backbone / "config.json")
    points = 2 * len(seen["grid"].points())
    assert f"{points} points, a budget of 5 minutes" in done.err
    assert (seen["time_budget_s"], seen["target_error"]) == (300.0, 0.05)
    assert "budget spent: 11 points measured in 12 s" in done.out
    assert "11 rows" in done.out
    assert "1 of them out of memory" in done.out
    assert "on rows left out" in done.out
    said = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv", *options, "--json").json
    assert (said["rows"], said["out_of_memory"]) == (11, 1)
    assert (said["ended"], said["seconds"], said["new_points"], said["budget_s"]) == ("budget spent", 12.0, 11, 300.0)
    assert 0 <= said["errors"]["time_mape_cv"] < 0.05


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (("--time-budget", "2.5"), 150.0),
        (("--time-budget", "0"), None),
        (("--time-budget", "none"), None),
        (("--device", "cuda"), 600.0),
    ],
)
def test_a_time_budget_is_in_minutes(
    options: tuple[str, ...], seconds: float | None, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def measured(place: Path, output: Path, **options: Any) -> ProfileResult:
        seen.update(options)
        output.write_text("\n".join([TABLE_HEADER, *table_rows("backbone", (1, 2))]) + "\n")
        return result(pd.DataFrame({"status": ["OK"] * 3}), output)

    monkeypatch.setattr(profiler, "profile_backbone", measured)
    done = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv", *options, "--target-error", "0.1")
    assert done.code == 0, done.err
    assert (seen["time_budget_s"], seen["target_error"]) == (seconds, 0.1)
    assert ("all measured" in done.err) == (seconds is None)


def test_what_the_time_was_too_little_for_is_a_warning(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(place: Path, output: Path, **options: Any) -> ProfileResult:
        output.write_text("\n".join([TABLE_HEADER, *table_rows("backbone", (1,))]) + "\n")
        short = result(pd.DataFrame({"status": ["OK"]}), output, Ended.BUDGET)
        return replace(short, shortages=("0 rows at 2 stages; call again",))

    monkeypatch.setattr(profiler, "profile_backbone", measured)
    table = tmp_path / "t.csv"
    done = cappuccino("profile", "--backbone", backbone, "-o", table, "--time-budget", 1)
    assert done.code == 0
    assert f"warning: {table}: 0 rows at 2 stages; call again\n" in done.err
    assert done.out.startswith(f"1 row in {table}\n")
    assert "budget spent: 1 point measured in 12 s" in done.out
    said = cappuccino("profile", "--backbone", backbone, "-o", table, "--json").json
    assert said["shortages"] == ["0 rows at 2 stages; call again"]


@pytest.mark.parametrize("minutes", ["-1", "soon", "nan", "inf"])
def test_a_time_budget_that_is_none_is_refused(minutes: str, backbone: Path, tmp_path: Path) -> None:
    done = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv", "--time-budget", minutes)
    one_clear_error(done, "--time-budget", f'"{minutes}" is no number of minutes')


def test_who_ends_a_profile_is_told_where_it_is_kept(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(place: Path, output: Path, **options: Any) -> ProfileResult:
        output.with_name(output.name + PARTIAL).write_text("{}")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr(profiler, "profile_backbone", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    done = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv")
    assert done.code == 128 + signal.SIGTERM
    assert f"t.csv{PARTIAL}" in done.err
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_adapters_need_to_be_varied(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measured(place: Path, output: Path, **options: Any) -> ProfileResult:
        seen.append(options["grid"])
        output.write_text("\n".join([TABLE_HEADER, *table_rows("backbone", (1, 2))]) + "\n")
        return result(pd.DataFrame({"status": ["OK"] * 3}), output)

    monkeypatch.setattr(profiler, "profile_backbone", measured)
    none = ("--num-adapters", "", "--ranks", "", "--target-modules", "")
    done = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv", *none)
    assert done.code == 0, done.err
    assert (seen[0].num_adapters, seen[0].ranks, seen[0].target_modules) == ((), (), ())


def test_a_fit_that_is_far_off_says_what_to_do(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # times that have nothing to do with the tokens
    def measured(place: Path, output: Path, **options: Any) -> ProfileResult:
        rows = [line.split(",") for line in table_rows(options["name"], (1, 2))]
        at = TABLE_HEADER.split(",").index("time_per_step_s")
        for i, row in enumerate(rows):
            row[at] = str(1.0 + 50.0 * (i % 2))
        output.write_text("\n".join([TABLE_HEADER, *map(",".join, rows)]) + "\n")
        return result(pd.DataFrame({"status": ["OK"] * len(rows)}), output)

    monkeypatch.setattr(profiler, "profile_backbone", measured)
    done = cappuccino("profile", "--backbone", backbone, "-o", tmp_path / "t.csv")
    assert done.code == 0, done.err
    assert "on rows left out" in done.out
    assert "warning: " in done.err
    assert "profile more points" in done.err
