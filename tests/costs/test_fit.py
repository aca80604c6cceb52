import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.builders import make_instance

from cappuccino.costs import fit_costs, fit_instance_costs, read_cost_table
from cappuccino.costs.table import ENGINE
from cappuccino.costs.validation import validate
from cappuccino.errors import InputError
from cappuccino.reports.plan_warnings import plan_warnings
from cappuccino.solvers.planning import PlanOptions, make_plan

FLOOR, PER_TOKEN, PER_SQUARE, POWER = 0.12, 3e-4, 2e-8, 5.0
"""Forward plus backward of the whole backbone; the launch-bound work is 400 tokens."""
STATIC, WORKING, HELD = {1: 20.0, 2: 12.0, 4: 8.0}, 0.002, 0.0005
"""GiB, and GiB per token."""


def law(tokens, squares):
    return (FLOOR**POWER + (PER_TOKEN * tokens + PER_SQUARE * squares) ** POWER) ** (1 / POWER)


def synthetic_rows(noise: float = 0.0) -> pd.DataFrame:
    """Return rows that follow the law: 3 depths, micro-batches of 1, 2 and 4, 5 lengths, 2 step sizes."""
    rng = np.random.default_rng(0)
    rows = []
    for g, micro, length, accumulated in itertools.product((1, 2, 4), (1, 2, 4), (64, 256, 512, 1024, 2048), (4, 8)):
        tokens, squares = micro * length, micro * length**2
        slots = accumulated + g - 1
        held = tokens * (accumulated if g > 1 else 1)
        rows.append(
            {
                "param_name": "b",
                "pp_size": g,
                "micro_bsz": micro,
                "grad_acc_steps": accumulated,
                "seqlen": length,
                "rank": 16,
                "peak_memory_mb": 1024 * (STATIC[g] + WORKING * tokens + HELD * held),
                "time_per_step_s": law(tokens, squares) / g * slots * np.exp(noise * rng.standard_normal()),
                "status": "OK",
            }
        )
    return pd.DataFrame(rows)


def read(rows: pd.DataFrame, path):
    rows.to_csv(path / "t.csv", index=False)
    return read_cost_table(path / "t.csv")


def test_recovers_times_of_a_synthetic_law(tmp_path):
    model = fit_costs(read(synthetic_rows(), tmp_path), "b", "x")
    for micro, length in itertools.product((1, 2, 3, 4), (64, 300, 700, 2048)):
        tokens, squares = micro * length, micro * length**2
        for g in (1, 2, 4):
            forward, backward = model.pipeline(g).times(tokens, squares)
            assert forward + backward == pytest.approx(law(tokens, squares) / g, rel=0.01)
            assert backward == pytest.approx(2 * forward)  # the default ratio


def test_backward_over_forward_is_a_parameter(tmp_path):
    model = fit_costs(read(synthetic_rows(), tmp_path), "b", "x", backward_over_forward=3.0)
    assert model.backward(500, 0) == pytest.approx(3 * float(model.forward(500, 0)))


def test_recovers_memory_of_a_synthetic_law(tmp_path):
    model = fit_costs(read(synthetic_rows(), tmp_path), "b", "x")
    assert model.profiled == (1, 2, 4)
    for g in (2, 4):
        found = model.memory_model(g)
        assert found.static_gib == pytest.approx(STATIC[g], rel=0.01)
        assert found.working_gib == pytest.approx(WORKING, rel=0.01)
        assert found.held_gib == pytest.approx(HELD, rel=0.01)
    # one GPU holds one micro-batch: rows cannot tell held from working, and all counts as held
    alone = model.memory_model(1)
    assert (alone.working_gib, alone.held_gib) == (0.0, pytest.approx(WORKING + HELD, rel=0.01))


def test_held_micro_batches_where_the_table_says_better(tmp_path):
    rows = synthetic_rows()
    rows["held_micro_batches"] = np.minimum(rows["grad_acc_steps"], rows["pp_size"])
    tokens = rows["micro_bsz"] * rows["seqlen"]
    static = rows["pp_size"].map(STATIC)
    rows["peak_memory_mb"] = 1024 * (static + WORKING * tokens + HELD * tokens * rows["held_micro_batches"])
    rows.loc[rows.index % 2 == 0, "held_micro_batches"] = 1
    rows.loc[rows.index % 2 == 0, "peak_memory_mb"] = 1024 * (static + (WORKING + HELD) * tokens)
    model = fit_costs(read(rows, tmp_path), "b", "x")
    assert model.memory_model(4).held_gib == pytest.approx(HELD, rel=0.01)
    assert model.memory_model(4).working_gib == pytest.approx(WORKING, rel=0.01)


def test_measured_forward_and_backward_are_fitted_themselves(tmp_path):
    rows = synthetic_rows()
    tokens = rows["micro_bsz"] * rows["seqlen"]
    rows["forward_time_s"] = 0.01 * rows["pp_size"] + 1e-4 * tokens  # not 1/g of anything: every depth by itself
    rows["backward_time_s"] = 2.5 * rows["forward_time_s"]
    rows["optimizer_time_s"] = 0.25
    rows["transfer_time_s"] = 0.002 + 1e-6 * tokens
    rows["num_layers"] = 32
    model = fit_costs(read(rows, tmp_path), "b", "x")
    for g in (1, 2, 4):
        forward, backward = model.pipeline(g).times(4096, 4096 * 1024)
        assert forward == pytest.approx(0.01 * g + 0.4096, rel=0.03)
        assert backward == pytest.approx(2.5 * forward, rel=0.01)
    assert model.optimizer_s == 0.25
    assert model.transfer == (pytest.approx(0.002, rel=0.01), pytest.approx(1e-6, rel=0.01))
    assert model.num_layers == 32


def test_step_times_leave_no_transfer_and_no_optimizer(tmp_path):
    model = fit_costs(read(synthetic_rows(), tmp_path), "b", "x")
    assert (model.transfer, model.optimizer_s) == ((0.0, 0.0), 0.0)
    assert model.profiled_tokens == (64, 8192)


def test_rows_out_of_memory_limit_what_is_usable(tmp_path):
    rows = synthetic_rows()
    fullest = rows["peak_memory_mb"].max() / 1024
    # at 2 stages, 10000 tokens in 8 micro-batches need 12 + 20 + 40 = 72 GiB, more than any row that ran
    failed = {**rows.iloc[0], "pp_size": 2, "micro_bsz": 10, "seqlen": 1000, "grad_acc_steps": 8}
    failed |= {"status": "OOM", "peak_memory_mb": "OOM", "time_per_step_s": "OOM"}
    with_failure = pd.concat([rows.astype(object), pd.DataFrame([failed])])
    model = fit_costs(read(with_failure, tmp_path), "b", "x")
    assert fullest < 72
    assert model.usable_memory_gib == pytest.approx((fullest + 72) / 2, rel=0.01)
    assert model.memory_limit(1000.0) == model.usable_memory_gib
    assert fit_costs(read(rows, tmp_path), "b", "x").usable_memory_gib is None


def test_a_row_that_failed_below_what_ran_does_not_push_the_limit_under_it(tmp_path):
    rows = synthetic_rows()
    failed = {**rows.iloc[0], "status": "OOM", "peak_memory_mb": "", "time_per_step_s": ""}
    model = fit_costs(read(pd.concat([rows.astype(object), pd.DataFrame([failed])]), tmp_path), "b", "x")
    assert model.usable_memory_gib == pytest.approx(rows["peak_memory_mb"].max() / 1024)


def test_too_few_rows(tmp_path):
    rows = synthetic_rows().iloc[:3]
    with pytest.raises(InputError, match=r't\.csv: status: 3 OK rows of "b"; profile at least 4 points'):
        fit_costs(read(rows, tmp_path), "b", "x")


def test_missing_backbone_and_missing_gpu(tmp_path):
    table = read(synthetic_rows().assign(gpu="x"), tmp_path)
    with pytest.raises(InputError, match=r't\.csv: param_name: no OK rows of backbone "c"'):
        fit_costs(table, "c", "x")
    with pytest.raises(InputError, match=r't\.csv: gpu: no OK rows of backbone "b" on "y"'):
        fit_costs(table, "b", "y")


def test_several_pools_need_a_gpu_column(tmp_path):
    rows = synthetic_rows()
    read(rows, tmp_path)
    instance = replace(make_instance(([1], 1), gpus={"x": 2, "y": 2}), cost_table=tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv: gpu: column is missing for 2 GPU pools; add a `gpu` column"):
        fit_instance_costs(instance)
    slower = rows.assign(gpu="y", time_per_step_s=2 * rows["time_per_step_s"])
    read(pd.concat([rows.assign(gpu="x"), slower]), tmp_path)
    models = fit_instance_costs(instance)
    assert float(models["y"].forward(1000, 0)) == pytest.approx(2 * float(models["x"].forward(1000, 0)), rel=0.01)


@pytest.mark.parametrize("bubble", [0.4, 1.0, 1.6])
def test_what_a_flush_costs_is_told_from_the_slots(bubble, tmp_path):
    rows = synthetic_rows()
    theory = rows["grad_acc_steps"] + rows["pp_size"] - 1
    rows["time_per_step_s"] *= (rows["grad_acc_steps"] + bubble * (rows["pp_size"] - 1)) / theory
    model = fit_costs(read(rows, tmp_path), "b", "x")
    assert model.bubble == pytest.approx(bubble, rel=0.02)
    found = model.pipeline(4).times(1024, 1024**2).sum(axis=0)
    assert found == pytest.approx(law(1024, 1024**2) / 4, rel=0.01)


def test_with_one_number_of_micro_batches_a_flush_costs_what_theory_says(tmp_path):
    rows = synthetic_rows()
    assert fit_costs(read(rows[rows["grad_acc_steps"] == 4], tmp_path), "b", "x").bubble == 1.0


@pytest.mark.parametrize(("backbone", "worst"), [("Llama-2-7b-hf", 0.06), ("Qwen2.5-32B-Instruct", 0.05)])
def test_reference_table_is_predicted(reference_data, backbone, worst):
    table = read_cost_table(reference_data / "profile_a100_40gb.csv")
    found = validate(table, backbone, "a100-40gb")
    assert found.folds.time < worst
    assert found.folds.memory < 0.03


def test_plans_on_our_own_tables_are_kept_to_the_micro_batches_profiled(tmp_path):
    rows = synthetic_rows()
    largest = int((rows["micro_bsz"] * rows["seqlen"]).max())
    read(rows.assign(engine=ENGINE), tmp_path)
    instance = replace(make_instance(([50, 70], 1)), cost_table=tmp_path / "t.csv")
    model = fit_instance_costs(instance)["x"]
    assert {model.max_tokens(g, 1000.0) for g in (1, 2, 3, 4)} == {largest}
    assert model.max_tokens(4, 20.0) < largest  # where memory holds less
    longer = replace(make_instance(([50, 3 * largest], 1)), cost_table=tmp_path / "t.csv")
    assert fit_instance_costs(longer)["x"].max_tokens(2, 1000.0) == 3 * largest
    plan = make_plan(longer, PlanOptions(time_limit_s=None, iterations=1))
    warnings = list(plan_warnings(plan, longer, fit_instance_costs(longer)))
    assert any(f"kept to the {3 * largest} tokens of the longest sample; memory holds" in line for line in warnings)
    for memory, warned in ((25.0, False), (1000.0, True)):
        pool = instance.gpu_pools[0].model_copy(update={"memory_gib": memory})
        sized = replace(instance, gpu_pools=(pool,))
        plan = make_plan(sized, PlanOptions(time_limit_s=None, iterations=1))
        words = f"kept to the {largest} tokens that were profiled; memory holds"
        assert any(words in line for line in plan_warnings(plan, sized, {"x": model})) is warned
    read(rows.assign(engine="another"), tmp_path)
    assert fit_instance_costs(instance)["x"].max_tokens(4, 1000.0) > largest
