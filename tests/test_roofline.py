from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from cappuccino.catalogue import BACKBONES, GPUS, BackboneSpec, GpuSpec
from cappuccino.costs import fit_costs, read_cost_table
from cappuccino.roofline import (
    COMPUTE_EFFICIENCY,
    CONTEXT_GIB,
    LAYER_FLOOR_S,
    SEED_COLUMNS,
    analytic_table,
    head_time,
    layer_forward_time,
    peak_memory_gib,
    slot_time,
    stage_layers,
)

MEASURED_TABLE = Path(__file__).parents[2] / "shared" / "data" / "profile_a100_40gb.csv"
KEY = ["param_name", "pp_size", "micro_bsz", "grad_acc_steps", "seqlen", "rank"]

# 1024 x (2 x 1024 + 2 x 1024) + 3 x 1024 x 4096 = 2^22 + 3 x 2^22 = 2^24 parameters a layer
SPEC = BackboneSpec(num_layers=4, hidden=1024, intermediate=4096, num_heads=8, num_kv_heads=8, vocab=1000)
ONE_TFLOPS = GpuSpec(bf16_tflops=1 / COMPUTE_EFFICIENCY, bandwidth_gb_s=1e9, memory_gib=40, link_gb_s=1)
ONE_GB_S = GpuSpec(bf16_tflops=1e9, bandwidth_gb_s=1, memory_gib=40, link_gb_s=1)


@pytest.fixture(scope="module")
def qwen():
    return analytic_table(
        "Qwen2.5-32B-Instruct", "a100-40gb", BACKBONES["Qwen2.5-32B-Instruct"], GPUS["a100-40gb"], (1, 4)
    )


def test_layers_are_even_and_the_first_stages_larger():
    assert stage_layers(64, 3) == [22, 21, 21]
    assert stage_layers(4, 4) == [1, 1, 1, 1]


def test_layer_time_where_arithmetic_binds():
    # 2 x 2^24 x 4096 + 2 x 4096 x 1024 x 1024 = 2^37 + 2^33 flops at 10^12 a second
    assert layer_forward_time(SPEC, ONE_TFLOPS, 4096, 1024) == pytest.approx((2**37 + 2**33) / 1e12)


def test_attention_grows_with_the_sequence():
    # the same tokens in sequences of twice the length: the attention term, 2^33, doubles
    difference = layer_forward_time(SPEC, ONE_TFLOPS, 4096, 2048) - layer_forward_time(SPEC, ONE_TFLOPS, 4096, 1024)
    assert difference == pytest.approx(2**33 / 1e12)


def test_layer_time_where_bandwidth_binds():
    # weights 2 x 2^24 bytes, activations 60 x 1024 bytes for the one token, at 10^9 a second
    assert layer_forward_time(SPEC, ONE_GB_S, 1, 1) == pytest.approx((2**25 + 61440) / 1e9)


def test_layer_time_where_the_host_binds():
    assert layer_forward_time(SPEC, GPUS["h100-80gb"], 1, 1) == LAYER_FLOOR_S


def test_head_time():
    # 4 x 1000 x 1024 x 1000 flops at 10^12 a second, 6 x 4 x 1000 x 1000 bytes at 10^18 a second
    assert head_time(SPEC, ONE_TFLOPS, 1000) == pytest.approx(4.096e9 / 1e12 + 24e6 / 1e18)
    # weights read twice, 2 x 2 x 1000 x 1024 bytes, and 24,000 bytes of one token's logits, at 10^9 a second
    assert head_time(SPEC, ONE_GB_S, 1) == pytest.approx((4_096_000 + 24_000) / 1e9)


def test_slot_is_that_of_the_slowest_stage():
    layer, head = layer_forward_time(SPEC, ONE_TFLOPS, 4096, 1024), head_time(SPEC, ONE_TFLOPS, 4096)
    assert head < 3 * layer
    assert slot_time(SPEC, ONE_TFLOPS, 1, 4096, 1024) == pytest.approx(12 * layer + head)
    assert slot_time(SPEC, ONE_TFLOPS, 4, 4096, 1024) == pytest.approx(3 * layer + head)
    assert slot_time(SPEC, ONE_TFLOPS, 3, 4096, 1024) == pytest.approx(6 * layer)  # stages of 2, 1 and 1 layers


def test_memory_of_one_gpu():
    # bf16 weights 2 x (4 x 2^24 + 2 x 1000 x 1024); rank 1 on four square projections: 4 x 2 x 1024 parameters a layer
    # of 16 bytes; 100 tokens, each 34 x 1024 bytes of the recomputed layer (more than 12 x 1000 of logits) and 2 x 1024
    # bytes of each of 4 layers' inputs
    expected = 2 * (4 * 2**24 + 2_048_000) + 16 * 4 * 8192 + 100 * (34_816 + 8192)
    assert peak_memory_gib(SPEC, 1, 100, 1, 1) == pytest.approx(CONTEXT_GIB + expected / 2**30)


def test_memory_of_the_last_stage_has_the_logits():
    spec = BackboneSpec(4, 1024, 4096, 8, 8, vocab=100_000)
    # per stage: 2 layers, one table, two layer inputs of 3 held micro-batches; logits 12 bytes an entry
    expected = 2 * (2 * 2**24 + 102_400_000) + 16 * 2 * 8192 + 100 * (1_200_000 + 2 * 2048 * 3)
    assert peak_memory_gib(spec, 2, 100, 3, 1) == pytest.approx(CONTEXT_GIB + expected / 2**30)


def test_table_has_the_seeds_columns_and_says_analytic(qwen, tmp_path):
    assert list(qwen.columns) == [*SEED_COLUMNS, "gpu", "source", "num_layers"]
    assert set(qwen["source"]) == {"analytic"}
    assert len(qwen) == 2 * 4 * 9 * 2
    assert set(qwen["micro_bsz"] * qwen["grad_acc_steps"]) == {8, 16}
    qwen.to_csv(tmp_path / "table.csv", index=False)
    table = read_cost_table(tmp_path / "table.csv")
    assert table.is_analytic
    assert fit_costs(table, "Qwen2.5-32B-Instruct", "a100-40gb").analytic


def test_step_time_counts_slots_and_grows_with_tokens(qwen):
    ok = qwen[qwen["status"] == "OK"]
    slots = ok["time_per_step_s"].astype(float) / (ok["grad_acc_steps"] + ok["pp_size"] - 1)
    for _, group in ok.assign(slot=slots).groupby(["micro_bsz", "seqlen"]):
        assert group["slot"].max() == pytest.approx(group["slot"].min(), rel=1e-5)  # 8 or 16 samples: the slot is one
    for _, group in ok.assign(slot=slots).groupby("micro_bsz"):
        by_length = group.groupby("seqlen")["slot"].first()
        assert by_length.is_monotonic_increasing
        assert by_length.iloc[-1] > 2 * by_length.iloc[0]
    total = ok["tokens_per_step"] / ok["time_per_step_s"].astype(float)
    assert ok["total_throughput_tok_s"].astype(float).to_numpy() == pytest.approx(total.to_numpy(), rel=1e-3)
    assert ok["throughput_per_gpu_tok_s"].astype(float).to_numpy() == pytest.approx(total.to_numpy() / 4, rel=1e-3)


def test_memory_grows_with_tokens_and_held_micro_batches_and_shrinks_with_stages():
    spec = BACKBONES["Qwen2.5-32B-Instruct"]
    for rising in (
        [peak_memory_gib(spec, 4, tokens, 8, 16) for tokens in (1, 64, 1024, 8192)],
        [peak_memory_gib(spec, 4, 1024, held, 16) for held in (1, 2, 8, 16)],
        [peak_memory_gib(spec, stages, 64, 1, 16) for stages in (8, 6, 4, 3, 2, 1)],
    ):
        assert all(a < b for a, b in pairwise(rising))


def test_rows_over_the_memory_are_out_of_memory(qwen):
    measured = ["peak_memory_mb", "throughput_per_gpu_tok_s", "total_throughput_tok_s", "time_per_step_s"]
    failed, ok = qwen[qwen["status"] == "OOM_OR_INVALID"], qwen[qwen["status"] == "OK"]
    assert len(failed) + len(ok) == len(qwen)
    assert (failed[measured] == "OOM").all(axis=None)
    assert set(ok["pp_size"]) == {4}  # 32.8 billion parameters in bf16 are 61 GiB: no row fits one GPU of 40
    assert ok["peak_memory_mb"].astype(float).max() <= 0.9 * 40 * 1024
    # logits alone, 12 x 152064 bytes x 8 x 4096 tokens, are 55.7 GiB
    assert ((failed["pp_size"] == 4) & (failed["micro_bsz"] == 8) & (failed["seqlen"] == 4096)).any()


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match="give 1 to its 4 layers"):
        analytic_table("small", "a100-40gb", SPEC, GPUS["a100-40gb"], (5,))


@pytest.mark.skipif(not MEASURED_TABLE.exists(), reason="the measured table is not at hand")
@pytest.mark.parametrize(("backbone", "sizes"), [("Llama-2-7b-hf", (1, 2)), ("Qwen2.5-32B-Instruct", (3, 4))])
def test_close_to_a_measured_table(backbone, sizes):
    measured = pd.read_csv(MEASURED_TABLE)
    analytic = analytic_table(backbone, "a100-40gb", BACKBONES[backbone], GPUS["a100-40gb"], sizes)
    rows = measured.merge(analytic, on=KEY, suffixes=("", "_analytic"))
    rows = rows[(rows["status"] == "OK") & (rows["status_analytic"] == "OK")]
    assert len(rows) > 50
    times = rows["time_per_step_s_analytic"].astype(float) / rows["time_per_step_s"].astype(float)
    assert 0.5 < times.median() < 2
    memory = rows["peak_memory_mb_analytic"].astype(float) / rows["peak_memory_mb"].astype(float)
    assert 0.8 < memory.median() < 1.25
