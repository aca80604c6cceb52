import pandas as pd
import pytest
from analytic.conftest import SYNTHETIC, synthetic_table

from cappuccino.analytic.calibration import accuracy
from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import FUSED
from cappuccino.analytic.measured import measured_rows
from cappuccino.analytic.table import analytic_table
from cappuccino.backbone import BACKBONES
from cappuccino.costs import read_cost_table
from cappuccino.errors import InputError


def test_rows_carry_what_the_table_says(tmp_path):
    columns = {"dtype": "float16", "held_micro_batches": 3, "recompute": "none", "target_modules": "q_proj+v_proj"}
    table = synthetic_table(tmp_path, SYNTHETIC[:1], **columns)
    ran = [r for r in measured_rows(table) if r.seconds is not None]
    assert len(ran) == len(table.ok)
    assert {(r.dtype, r.held, r.recompute, r.gpu_spec) for r in ran} == {("float16", 3, "none", GPUS["h100-80gb"])}
    assert {(r.adapter.modules, r.adapter.parameters) for r in ran} == {(2, 16 * 4 * 4096)}
    first = table.ok.iloc[0]
    assert (ran[0].seconds, ran[0].memory_gib) == (first["time_per_step_s"], first["peak_memory_mb"] / 1024)


def test_rows_of_a_profile_have_their_layers_and_recompute_nothing(tmp_path):
    spec = BACKBONES["Llama-3.1-8B"]
    made = analytic_table("Llama-3.1-8B", "h100-80gb", spec, GPUS["h100-80gb"], (4,)).assign(source="measured")
    made.drop(columns="recompute").to_csv(tmp_path / "profile.csv", index=False)
    rows = measured_rows(read_cost_table(tmp_path / "profile.csv"))
    assert {r.recompute for r in rows} == {"none"}
    assert {"+".join(map(str, r.layers)) for r in rows} == set(made["layers_per_stage"])
    found = accuracy(FUSED, rows)
    assert found.memory.mape < 1e-5
    assert found.time.mape < 0.01  # transfers are left out
    made.drop(columns=["recompute", "backward_time_s"]).to_csv(tmp_path / "profile.csv", index=False)
    assert {r.recompute for r in measured_rows(read_cost_table(tmp_path / "profile.csv"))} == {"full"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"source": "analytic"}, ["source", "measured"]),
        ({"gpu": "a100"}, ["gpu", '"a100"', "a100-40gb"]),
        ({"dtype": "int8"}, ["dtype", '"int8"', "bfloat16"]),
        ({"recompute": "some"}, ["recompute", '"some"', "none"]),
        ({"param_name": "unknown"}, ["param_name", '"unknown"', "Llama-2-7b-hf"]),
        ({"num_adapters": 2}, ["num_adapters", "one adapter"]),
        ({"pp_size": 33}, ["pp_size", "33 stages for the 32 layers"]),
    ],
)
def test_rows_that_cannot_be_estimated_are_refused(tmp_path, columns, words):
    table = synthetic_table(tmp_path, SYNTHETIC[:1])
    frame = pd.read_csv(table.source).assign(**columns)
    frame.to_csv(table.source, index=False)
    with pytest.raises(InputError) as raised:
        measured_rows(read_cost_table(table.source))
    for word in words:
        assert word in str(raised.value)


def test_a_table_without_its_gpu_needs_one(tmp_path):
    table = synthetic_table(tmp_path, SYNTHETIC[:1])
    pd.read_csv(table.source).drop(columns="gpu").to_csv(table.source, index=False)
    table = read_cost_table(table.source)
    with pytest.raises(InputError, match="--calibrate-gpu"):
        measured_rows(table)
    assert {r.gpu_spec for r in measured_rows(table, "l40s-48gb")} == {GPUS["l40s-48gb"]}
