"""The benchmark script of the cost curves: what each family must find on tables whose law is known."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from costs.test_fit import HELD, PER_SQUARE, PER_TOKEN, STATIC, WORKING, law, read, synthetic_rows

from cappuccino.backbone import BACKBONES
from cappuccino.costs.validation import validate

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cost_curves.py"


@pytest.fixture(scope="module")
def curves():
    spec = importlib.util.spec_from_file_location("cost_curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_curves"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cost_curves"]


@pytest.fixture
def exact(tmp_path) -> pd.DataFrame:
    """Rows of the law without noise: a smooth maximum, a flush of g - 1 slots, memory linear in the tokens."""
    return read(synthetic_rows(), tmp_path).ok


def with_slots(rows: pd.DataFrame, seconds: np.ndarray) -> pd.DataFrame:
    """Return the rows with the step times that these slots of the whole backbone give."""
    g = rows["pp_size"]
    return rows.assign(time_per_step_s=seconds / g * (rows["grad_acc_steps"] + g - 1))


def asked(shapes: list[tuple[int, int]], stages: int = 2) -> pd.DataFrame:
    """Return rows of (micro-batch, length) to predict."""
    rows = pd.DataFrame(shapes, columns=["micro_bsz", "seqlen"]).assign(pp_size=stages, grad_acc_steps=4)
    tokens = rows["micro_bsz"] * rows["seqlen"]
    return rows.assign(tokens=tokens, squares=tokens * rows["seqlen"], param_name="b")


def times(family, curves, rows: pd.DataFrame, of: pd.DataFrame | None = None) -> np.ndarray:
    return family(curves.Training(rows))(rows if of is None else of)


def test_every_row_is_left_out_once_and_never_fitted_to_meanwhile(curves, exact):
    parts = curves.splits(exact, seed=3)
    assert list(parts) == list(curves.SPLITS)
    for split in ("rows", "config", "shape", "depth"):
        assert (sum(p.predicted.astype(int) for p in parts[split]) == 1).all()
        assert all((p.fitted ^ p.predicted).all() for p in parts[split])
    # 3 depths x 3 micro-batches x 5 lengths, of 2 step sizes each
    assert [len(parts[s]) for s in ("rows", "config", "shape", "depth")] == [10, 45, 15, 3]
    tokens, median = exact["tokens"], exact["tokens"].median()
    ((above,), (above_too,)) = parts["above"], parts["above+"]
    assert tokens[above.fitted].max() < median < tokens[above.predicted].min()
    assert tokens[above_too.fitted].max() == median
    assert (above_too.predicted == above.predicted).all()


def test_our_errors_are_those_of_cappuccino_fit(curves, tmp_path):
    rows = synthetic_rows(noise=0.05)
    table = read(rows[rows["seqlen"] > 256], tmp_path)
    known = validate(table, "b", "x", seed=1)
    parts = {s: p for s, p in curves.splits(table.ok, seed=1).items() if s in ("rows", "config", "depth")}
    families = {"ours": curves.smooth_maximum}
    found = curves.evaluate(table.ok, "time_per_step_s", 1.0, families, parts)["ours"]
    assert found["rows"].error == pytest.approx(known.folds.time)
    assert found["config"].error == pytest.approx(known.configurations.time)
    assert found["depth"].error == pytest.approx(known.stage_counts.time)
    memory = curves.evaluate(table.ok, "peak_memory_mb", 1 / 1024, {"ours": curves.memory_linear}, parts)["ours"]
    assert memory["rows"].error == pytest.approx(known.folds.memory)
    assert memory["depth"].error == pytest.approx(known.stage_counts.memory)


def test_smooth_maximum_recovers_its_law_within_and_above_the_rows(curves, exact):
    parts = {s: p for s, p in curves.splits(exact, seed=0).items() if s in ("rows", "shape", "depth", "above+")}
    families = {"fitted": curves.smooth_maximum, "full": curves.smooth_maximum_full_flush}
    for by_split in curves.evaluate(exact, "time_per_step_s", 1.0, families, parts).values():
        for outcome in by_split.values():
            assert outcome.error < 0.01
            assert outcome.failure == ""


def test_a_short_flush_is_found_by_the_family_that_fits_it(curves, exact):
    g = exact["pp_size"]
    short = exact.assign(
        time_per_step_s=law(exact["tokens"], exact["squares"]) / g * (exact["grad_acc_steps"] + 0.3 * (g - 1))
    )
    assert times(curves.smooth_maximum, curves, short) == pytest.approx(short["time_per_step_s"], rel=0.02)
    wrong = times(curves.smooth_maximum_full_flush, curves, short) / short["time_per_step_s"] - 1
    assert np.abs(wrong).max() > 0.1


def test_one_curve_for_each_stage_count(curves, exact):
    uneven = exact.assign(time_per_step_s=exact["time_per_step_s"] * np.where(exact["pp_size"] == 4, 1.5, 1.0))
    uneven = uneven[uneven["grad_acc_steps"] == 4]  # nothing tells the flush: it stays at g - 1 slots
    found = times(curves.smooth_maximum_by_stages, curves, uneven)
    assert found == pytest.approx(uneven["time_per_step_s"], rel=0.01)
    assert times(curves.smooth_maximum, curves, uneven) != pytest.approx(uneven["time_per_step_s"], rel=0.05)


def test_linear_recovers_lines_of_every_stage_count(curves, exact):
    lines = with_slots(exact, 0.1 * exact["pp_size"] + 2e-4 * exact["tokens"])
    assert times(curves.linear, curves, lines) == pytest.approx(lines["time_per_step_s"])
    # 0.1 x 2 + 2e-4 x 65536 a slot; 4 micro-batches and one more of flush, on 2 stages
    found = times(curves.linear, curves, lines, asked([(16, 4096)]))
    assert found == pytest.approx((0.2 + 2e-4 * 65536) * 5 / 2)


def test_interpolation_is_exact_on_its_nodes_and_holds_the_nearest_beyond_them(curves, exact):
    one = exact[exact["grad_acc_steps"] == 4]  # a flush of g - 1 slots, exactly
    odd = with_slots(one, np.where(one["tokens"] == 8192, 7.0, np.where(one["seqlen"] == 256, 0.3, 1.0)))
    assert times(curves.interpolation, curves, odd) == pytest.approx(odd["time_per_step_s"])
    # the longest row, (4, 2048), is the nearest to anything longer and larger
    assert times(curves.interpolation, curves, odd, asked([(8, 4096)])) == pytest.approx(7.0 * 5 / 2)
    powers = with_slots(one, one["tokens"] ** 0.5 * one["seqlen"] ** 0.25)
    found = times(curves.interpolation, curves, powers, asked([(3, 300)]))
    assert found == pytest.approx(900**0.5 * 300**0.25 * 5 / 2)  # linear in the logarithms


def test_interpolation_needs_nodes_that_span_an_area(curves, exact):
    line = exact[exact["micro_bsz"] == 1]  # T = L
    with pytest.raises(curves.CannotPredictError, match="5 nodes span no area"):
        curves.interpolation(curves.Training(line))


def test_isotonic_follows_any_law_that_grows_and_flattens_what_falls(curves, exact):
    one = exact[exact["grad_acc_steps"] == 4]
    work = PER_TOKEN * one["tokens"] + PER_SQUARE * one["squares"]
    growing = with_slots(one, np.maximum(0.2, np.floor(20 * work) / 10))
    assert times(curves.isotonic, curves, growing) == pytest.approx(growing["time_per_step_s"])
    # twice the largest work on the same lengths: twice the time
    largest = asked([(4, 2048), (8, 2048)])
    first, second = times(curves.isotonic, curves, growing, largest)
    assert second == pytest.approx(2 * first)
    fallen = with_slots(one, np.where(one["tokens"] == 1024, 0.5, 1.0))
    found = times(curves.isotonic, curves, fallen, asked([(1, 64), (1, 1024), (4, 2048)]))
    assert (np.diff(found) >= -1e-12).all()


def test_convex_finds_a_kink_and_goes_on_straight(curves, exact):
    # the launch-bound work is 512 tokens, which were measured; no squares, so that the work is the tokens
    one = exact[exact["grad_acc_steps"] == 4]
    kinked = with_slots(one, np.maximum(512, one["tokens"]) / 1000)
    found = times(curves.convex, curves, kinked, asked([(1, 64), (1, 512), (2, 1024), (4, 2048), (16, 2048)]))
    expected = np.array([0.512, 0.512, 2.048, 8.192, 32.768]) * 5 / 2
    assert found == pytest.approx(expected, rel=0.02)


def test_smoothed_residuals_correct_near_the_rows_only(curves, exact):
    one = exact[exact["grad_acc_steps"] == 4]
    bent = one.assign(time_per_step_s=one["time_per_step_s"] * np.where(one["tokens"] == 512, 1.3, 1.0))
    plain = times(curves.smooth_maximum, curves, bent)
    smoothed = times(curves.smooth_maximum_smoothed_residual, curves, bent)
    here = (bent["tokens"] == 512).to_numpy()
    measured = bent["time_per_step_s"].to_numpy()
    assert np.abs(smoothed / measured - 1)[here].mean() < 0.8 * np.abs(plain / measured - 1)[here].mean()
    far = asked([(64, 2**17)])
    ratio = times(curves.smooth_maximum_smoothed_residual, curves, bent, far) / times(
        curves.smooth_maximum, curves, bent, far
    )
    assert ratio == pytest.approx(1.0, abs=1e-6)


def test_memory_families_recover_the_laws_that_they_state(curves, exact):
    peaks = exact["peak_memory_mb"] / 1024
    for family in (curves.memory_linear, curves.memory_interpolation):
        assert times(family, curves, exact) == pytest.approx(peaks, rel=1e-6)
    # between the rows: 300 tokens of two stages, four micro-batches held
    found = times(curves.memory_linear, curves, exact, asked([(1, 300)]))
    assert found == pytest.approx(STATIC[2] + (WORKING + 4 * HELD) * 300, rel=1e-6)


def test_shared_memory_predicts_a_depth_that_nobody_measured(curves, exact):
    name, spec = next(iter(BACKBONES.items()))
    g, held = exact["pp_size"], np.where(exact["pp_size"] > 1, exact["grad_acc_steps"], 1)
    weights = spec.parameters * 2 / 2**30
    peaks = 1.5 + 1.1 * weights / g + (1e-3 + 4e-4 / g + 1e-4 * held / g) * exact["tokens"]
    rows = exact.assign(param_name=name, peak_memory_mb=1024 * peaks)
    parts = {"depth": curves.splits(rows, 0)["depth"][2:]}
    assert parts["depth"][0].label == "4 stages"
    families = {"own": curves.memory_linear, "shared": curves.memory_shared, "between": curves.memory_interpolation}
    found = {k: v["depth"] for k, v in curves.evaluate(rows, "peak_memory_mb", 1 / 1024, families, parts).items()}
    assert found["shared"].error < 1e-6
    assert found["own"].error > 0.05  # the margin of an extrapolation
    assert found["own"].lowest > 0
    assert found["between"].failure == "4 stages: nothing is known of 4 stages"
    with pytest.raises(curves.CannotPredictError, match='the weights of "b" are not in the catalogue'):
        curves.memory_shared(curves.Training(exact))


def test_a_family_that_fails_on_one_fold_has_no_error(curves, exact):
    def out_of_one_fold(training):
        if len(training.rows) and training.rows.index[0] != 0:  # the fold that holds the first row
            raise curves.CannotPredictError("the first row is missing")
        return lambda rows: rows["time_per_step_s"].to_numpy()

    def negative(_):
        return lambda rows: np.where(rows.index == 7, -1.0, rows["time_per_step_s"])

    parts = {"rows": curves.splits(exact, 0)["rows"]}
    families = {"fails": out_of_one_fold, "negative": negative, "knows": lambda _: lambda r: 1.1 * r["time_per_step_s"]}
    found = {k: v["rows"] for k, v in curves.evaluate(exact, "time_per_step_s", 1.0, families, parts).items()}
    (first,) = [p.label for p in parts["rows"] if p.predicted[0]]
    assert found["fails"] == curves.Outcome(None, None, f"{first}: the first row is missing")
    (seventh,) = [p.label for p in parts["rows"] if p.predicted[7]]
    assert (found["negative"].error, found["negative"].failure[:18]) == (None, f"{seventh}: predicts -1"[:18])
    assert (found["knows"].error, found["knows"].lowest) == (pytest.approx(0.1), pytest.approx(0.1))


def test_what_is_left_can_be_too_little(curves, exact):
    few = exact[exact["pp_size"] == 2].iloc[:6]
    parts = {s: p for s, p in curves.splits(few, 0).items() if s in ("depth", "above")}
    found = curves.evaluate(few, "time_per_step_s", 1.0, {"ours": curves.smooth_maximum}, parts)["ours"]
    assert found["depth"].failure == "2 stages: 0 rows to fit to"  # one depth: nothing remains
    assert (found["depth"].error, found["above"].error) == (None, None)


def test_scatter_is_that_of_rows_of_one_configuration(curves, exact):
    assert curves.scatter(exact) == pytest.approx(0.0, abs=1e-4)
    # of each pair one row is e^0.1 slower: both lie 0.05 from their mean, and no flush explains it on one stage
    alone = exact[exact["pp_size"] == 1]
    factor = np.where(alone["grad_acc_steps"] == 8, np.exp(0.1), 1.0)
    slower = alone.assign(time_per_step_s=alone["time_per_step_s"] * factor)
    assert curves.scatter(slower) == pytest.approx(0.05)
    assert curves.scatter(exact[exact["grad_acc_steps"] == 8]) is None


def script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def small_table(folder: Path) -> Path:
    rows = synthetic_rows(noise=0.02)
    kept = rows["seqlen"].isin([256, 1024]) & (rows["pp_size"] < 4) & (rows["grad_acc_steps"] == 4)
    read(rows[kept], folder)
    return folder / "t.csv"


@pytest.mark.slow
def test_all_figures_are_printed_and_what_fails_says_so(curves, tmp_path):
    table = small_table(tmp_path)
    done = script("--table", table, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    found = document["backbones"]["b"]
    assert document["splits"] == curves.SPLITS
    assert list(found["time"]) == list(curves.TIME_FAMILIES)
    assert list(found["memory"]) == list(curves.MEMORY_FAMILIES)
    for outcomes in (*found["time"].values(), *found["memory"].values()):
        assert list(outcomes) == list(curves.SPLITS)
        assert all((o["error"] is None) == bool(o["failure"]) for o in outcomes.values())
    linear = found["time"]["linear for each stage count"]
    assert linear["depth"]["failure"] == "1 stage: nothing is known of 1 stage"
    assert linear["rows"]["error"] > 0


def test_none_stands_where_there_is_no_error(curves, capsys):
    outcomes = {split: curves.Outcome(0.0123, -0.02, "") for split in curves.SPLITS}
    outcomes["depth"] = curves.Outcome(None, None, "4 stages: nothing is known of 4 stages")
    curves.print_table({"b": {"time": {"a": outcomes}, "memory": {"c": outcomes}}})
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert cells[1] == ["time", *curves.SPLITS]
    assert cells[2] == ["a", "1.23%", "1.23%", "1.23%", "none", "1.23%", "1.23%"]


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    done = script("--table", tmp_path / "none.csv")
    assert done.returncode == 2
    assert "none.csv" in done.stderr
