import numpy as np
import pandas as pd
import pytest
from costs.test_fit import read, synthetic_rows

from cappuccino.costs.validation import FEW_ROWS, validate


def test_errors_find_the_noise(tmp_path):
    # log-normal noise of 5%: the mean absolute error of an exact prediction is 0.05 x sqrt(2 / pi) = 4.0%
    found = validate(read(synthetic_rows(noise=0.05), tmp_path), "b", "x")
    assert found.folds.rows == 90
    assert 0.03 < found.folds.time < 0.055
    assert found.folds.memory < 0.01
    assert 0.03 < found.configurations.time < 0.06
    assert sum(e.rows for e in found.by_stages) == sum(e.rows for e in found.by_tokens) == 90
    assert [e.label for e in found.by_stages] == ["1 stage", "2 stages", "4 stages"]
    assert found.warnings == ()


def test_the_mean_over_parts_is_the_whole(tmp_path):
    found = validate(read(synthetic_rows(noise=0.05), tmp_path), "b", "x")
    for parts in (found.by_stages, found.by_tokens):
        assert np.average([e.time for e in parts], weights=[e.rows for e in parts]) == pytest.approx(found.folds.time)


def test_a_depth_left_out_is_extrapolated(tmp_path):
    exact = validate(read(synthetic_rows(), tmp_path), "b", "x")
    assert exact.stage_counts.time < 0.02
    rows = synthetic_rows()
    rows.loc[rows["pp_size"] == 4, "time_per_step_s"] *= 2  # something that the other depths do not tell
    assert validate(read(rows, tmp_path), "b", "x").stage_counts.time > 0.1


def test_capacities_and_what_their_error_leaves(tmp_path):
    rows = synthetic_rows()
    rng = np.random.default_rng(0)
    rows["peak_memory_mb"] *= np.exp(0.02 * rng.standard_normal(len(rows)))
    found = validate(read(rows, tmp_path), "b", "x", memory_gib=40.0)
    assert [c.num_stages for c in found.capacities] == [1, 2, 4]
    for capacity in found.capacities:
        assert capacity.low < capacity.tokens < capacity.high
    assert validate(read(synthetic_rows(), tmp_path), "b", "x").capacities == ()  # nobody said how much memory there is


def test_what_not_to_trust(tmp_path):
    rows = synthetic_rows()
    one = rows[rows["pp_size"] == 2]
    assert any("one stage count, 2" in w for w in validate(read(one, tmp_path), "b", "x").warnings)
    few = pd.concat([rows[rows["pp_size"] != 4], rows[rows["pp_size"] == 4].iloc[: FEW_ROWS - 2]])
    assert (
        f"{FEW_ROWS - 2} rows of 4 stages: profile at least {FEW_ROWS}"
        in validate(read(few, tmp_path), "b", "x").warnings
    )
    twice = pd.concat([rows, rows.iloc[[7]].assign(time_per_step_s=2 * rows["time_per_step_s"].iloc[7])])
    (warning,) = validate(read(twice, tmp_path), "b", "x").warnings
    assert "rows contradict each other" in warning
    assert "time_per_step_s" in warning


def test_too_few_rows_to_leave_a_depth_out(tmp_path):
    rows = synthetic_rows()
    few = pd.concat([rows[rows["pp_size"] == 1].iloc[:3], rows[rows["pp_size"] == 2].iloc[:4]])
    found = validate(read(few, tmp_path), "b", "x")
    assert found.stage_counts.time is not None  # the three rows of one depth are predicted from the other's four
    assert found.stage_counts.rows == 7


def test_rows_of_launch_bound_work_only_are_no_ground_for_larger_ones(tmp_path):
    rows = synthetic_rows()
    flat = rows.assign(time_per_step_s=0.1 * (rows["grad_acc_steps"] + rows["pp_size"] - 1) / rows["pp_size"])
    warnings = validate(read(flat, tmp_path), "b", "x").warnings
    assert sum("all take about as long" in w for w in warnings) == 3
