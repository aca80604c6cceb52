import numpy as np
import pandas as pd
import pytest

from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import EAGER, FUSED, PUBLISHED
from cappuccino.analytic.memory import peak_memory_gib
from cappuccino.analytic.roofline import part_times
from cappuccino.analytic.table import FORM, SEED_COLUMNS, analytic_table, seed_table
from cappuccino.backbone import ATTENTION_MODULES, BACKBONES, BackboneShape
from cappuccino.costs import fit_costs, read_cost_table
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.table import LAYER_SHAPE, PARTS
from cappuccino.instance import Adapter
from cappuccino.plan import Recompute

QWEN, LLAMA = BACKBONES["Qwen2.5-32B-Instruct"], BACKBONES["Llama-3.1-8B"]
SMALL = BackboneShape(num_layers=4, hidden=1024, intermediate=4096, num_heads=8, num_kv_heads=8, vocab=1000)
NUMBERS = ["peak_memory_mb", "time_per_step_s", "total_throughput_tok_s", "throughput_per_gpu_tok_s"]


def ran(table):
    rows = table[table["status"] == "OK"].copy()
    rows[NUMBERS] = rows[NUMBERS].astype(float)
    return rows


@pytest.fixture(scope="module")
def seed():
    return seed_table("Qwen2.5-32B-Instruct", "a100-40gb", QWEN, GPUS["a100-40gb"], (1, 4), PUBLISHED)


@pytest.fixture(scope="module", params=[Recompute.NONE, Recompute.FULL])
def llama(request):
    return analytic_table("Llama-3.1-8B", "h100-80gb", LLAMA, GPUS["h100-80gb"], (1, 2, 8), recompute=request.param)


def test_seeds_form_has_the_seeds_columns_and_says_analytic(seed, tmp_path):
    assert list(seed.columns) == [*SEED_COLUMNS, "gpu", "source", "num_layers", "recompute"]
    assert set(seed["recompute"]) == {"full"}
    assert set(seed["source"]) == {"analytic"}
    assert len(seed) == 2 * 4 * 9 * 2
    assert list(seed["tasknum"]) == list(range(1, len(seed) + 1))
    assert set(seed["micro_bsz"] * seed["grad_acc_steps"]) == {8, 16}
    seed.to_csv(tmp_path / "table.csv", index=False)
    table = read_cost_table(tmp_path / "table.csv")
    assert table.is_analytic
    assert fit_costs(table, "Qwen2.5-32B-Instruct", "a100-40gb").analytic


def test_step_time_of_the_seeds_form_counts_slots_and_grows_with_tokens(seed):
    ok = ran(seed)
    slots = ok["time_per_step_s"] / (ok["grad_acc_steps"] + ok["pp_size"] - 1)
    for _, group in ok.assign(slot=slots).groupby(["micro_bsz", "seqlen"]):
        assert group["slot"].max() == pytest.approx(group["slot"].min(), rel=1e-5)  # 8 or 16 samples: the slot is one
    for _, group in ok.assign(slot=slots).groupby("micro_bsz"):
        by_length = group.groupby("seqlen")["slot"].first()
        assert by_length.is_monotonic_increasing
        assert by_length.iloc[-1] > 2 * by_length.iloc[0]
    total = ok["tokens_per_step"] / ok["time_per_step_s"]
    assert ok["total_throughput_tok_s"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-3)
    assert ok["throughput_per_gpu_tok_s"].to_numpy() == pytest.approx(total.to_numpy() / 4, rel=1e-3)


def test_rows_over_the_memory_are_out_of_memory(seed):
    failed, ok = seed[seed["status"] == "OOM_OR_INVALID"], ran(seed)
    assert len(failed) + len(ok) == len(seed)
    assert (failed[NUMBERS] == "OOM").all(axis=None)
    assert set(ok["pp_size"]) == {4}  # 32.8 billion parameters in bf16 are 61 GiB: no row fits one GPU of 40
    assert ok["peak_memory_mb"].max() <= 0.9 * 40 * 1024
    # logits alone, 12 x 152064 bytes x 8 x 4096 tokens, are 55.7 GiB
    assert ((failed["pp_size"] == 4) & (failed["micro_bsz"] == 8) & (failed["seqlen"] == 4096)).any()


def test_columns_of_a_profile(llama):
    assert list(llama.columns[: len(FORM)]) == list(FORM)
    widths = dict(zip(LAYER_SHAPE, (4096, 14336, 4096, 1024), strict=True))
    alike = {"dtype": "bfloat16", "engine": "fused"}
    for column, value in {**widths, **alike}.items():
        assert set(llama[column]) == {value}
    assert llama["recompute"].nunique() == 1
    usual = (llama["num_adapters"] == 1) & (llama["target_modules"] == "q_proj+k_proj+v_proj+o_proj")
    assert usual.sum() == 3 * 72
    others = llama[~usual].groupby(["num_adapters", "rank", "target_modules"]).size()
    # 3 depths, 2 batches, 3 lengths
    assert others.to_dict() == {
        (1, 16, "q_proj+v_proj"): 18, (1, 64, "all-linear"): 18, (4, 16, "q_proj+k_proj+v_proj+o_proj"): 18
    }  # fmt: skip
    assert set(PARTS) <= set(llama)
    failed = llama[llama["status"] != "OK"]
    assert len(failed) > 0
    assert failed[["forward_time_s", "transfer_time_s", *PARTS]].isna().all(axis=None)
    assert failed["layers_per_stage"].notna().all()


def test_step_time_is_what_the_finer_columns_give(llama):
    ok = ran(llama)
    behind = ok["pp_size"] - 1
    slots = (ok["grad_acc_steps"] + behind) * (ok["forward_time_s"] + ok["backward_time_s"])
    expected = slots + 2 * behind * ok["transfer_time_s"]
    assert ok["time_per_step_s"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    alone = ok[ok["pp_size"] == 1]
    assert (alone["transfer_time_s"] == 0).all()
    forward = alone[["input_forward_time_s", "head_forward_time_s", "loss_forward_time_s"]].sum(axis=1)
    forward += 32 * alone["layer_forward_time_s"]
    assert alone["forward_time_s"].to_numpy() == pytest.approx(forward.to_numpy())
    backward = alone["head_backward_time_s"] + alone["loss_backward_time_s"] + 32 * alone["layer_backward_time_s"]
    assert alone["backward_time_s"].to_numpy() == pytest.approx(backward.to_numpy())


def test_heavy_head_takes_layers_off_the_last_stage(llama):
    # 128256 x 4096 entries of the head are 2.4 layers: 8 stages of 4 layers would make the last one take 6
    for stages, text in llama.groupby("pp_size")["layers_per_stage"].first().items():
        layers = [int(n) for n in text.split("+")]
        assert sum(layers) == 32
        assert len(layers) == stages
        assert layers[-1] < layers[0] or stages == 1
    assert llama.groupby("pp_size")["layers_per_stage"].nunique().max() == 1


def test_memory_is_of_the_split_with_the_micro_batches_in_flight(llama):
    ok = ran(llama)
    row = ok[(ok["pp_size"] == 8) & (ok["grad_acc_steps"] == 16) & (ok["seqlen"] == 512)].iloc[0]
    assert row["held_micro_batches"] == 8
    layers = [int(n) for n in row["layers_per_stage"].split("+")]
    adapter = AdapterSize.of(LLAMA.layer, 16, ATTENTION_MODULES)
    expected = peak_memory_gib(LLAMA, layers, 512, 8, adapter, FUSED, recompute=row["recompute"])
    assert row["peak_memory_mb"] == pytest.approx(1024 * expected, abs=0.01)


def test_recomputation_takes_a_forward_more_and_much_less_memory():
    kept, again = (
        ran(analytic_table("Llama-3.1-8B", "h200-141gb", LLAMA, GPUS["h200-141gb"], (4,), recompute=mode))
        for mode in (Recompute.NONE, Recompute.FULL)
    )
    both = kept.merge(again, on=["micro_bsz", "grad_acc_steps", "seqlen"], suffixes=("", "_again"))
    both = both[both["num_adapters"] == both["num_adapters_again"]]
    both = both[both["target_modules"] == both["target_modules_again"]]
    more = both["layer_backward_time_s_again"] - both["layer_backward_time_s"]
    assert more.to_numpy() == pytest.approx(both["layer_forward_time_s"].to_numpy())
    assert (both["peak_memory_mb_again"] < both["peak_memory_mb"]).all()


def job(rank, modules):
    return Adapter(name="a", dataset="d", global_batch_size=1, rank=rank, target_modules=modules)


def test_costs_take_the_exact_times_of_every_stage_count(llama, tmp_path):
    llama.to_csv(tmp_path / "table.csv", index=False)
    table = read_cost_table(tmp_path / "table.csv")
    costs = fit_costs(table, "Llama-3.1-8B", "h100-80gb")
    assert (costs.engine, costs.dtype, costs.num_layers, costs.analytic) == ("fused", "bfloat16", 32, True)
    for stages, rows in table.ok.groupby("pp_size"):
        assert costs.splits[stages] == rows["layers_per_stage"].iloc[0]
        usual = rows[(rows["num_adapters"] == 1) & (rows["target_modules"].str.len() == 4)]
        adapter = costs.adapter_costs(stages, [job(16, ATTENTION_MODULES)])
        more = np.array([adapter.of_micro_batch([0], [t], padded=False) for t in usual["tokens"]]).T
        times = costs.pipeline(stages).times(usual["tokens"], usual["squares"], more)
        slowest = times.sum(axis=0).argmax(axis=0)
        for found, column in zip(times, ("forward_time_s", "backward_time_s"), strict=True):
            off = np.abs(found[slowest, np.arange(len(usual))] / usual[column] - 1)
            assert off.mean() < 0.06
    # modules launch kernels, and kernels that launch move bytes
    small, large = costs.adapter_costs(1, [job(16, ("q_proj",)), job(16, "all-linear")]).forward_floor
    assert large == pytest.approx(7 * small)
    assert small > 0
    # 2 x 4096 bytes a token over 450 x 10^9 a second, and 20 microseconds
    assert costs.transfer == (pytest.approx(20e-6, rel=1e-3), pytest.approx(8192 / 450e9, rel=1e-3))


@pytest.mark.parametrize("engine", [FUSED, EAGER], ids=lambda engine: engine.name)
def test_parts_are_those_of_the_roofline(engine):
    table = analytic_table("small", "l40s-48gb", SMALL, GPUS["l40s-48gb"], (2,), efficiency=engine, dtype="float32")
    adapter = AdapterSize.of(SMALL.layer, 16, ATTENTION_MODULES)
    row = table[(table["micro_bsz"] == 4) & (table["seqlen"] == 1024)].iloc[0]
    found = part_times(SMALL, GPUS["l40s-48gb"], 4096, 1024, adapter, engine, dtype="float32")
    assert {name: row[name] for name in PARTS} == pytest.approx(found.columns())
    assert (row["engine"], row["dtype"]) == (engine.name, "float32")


def test_fused_without_recomputation_unless_told():
    default = analytic_table("small", "l40s-48gb", SMALL, GPUS["l40s-48gb"], (2,))
    explicit = analytic_table(
        "small", "l40s-48gb", SMALL, GPUS["l40s-48gb"], (2,), efficiency=FUSED, recompute=Recompute.NONE
    )
    pd.testing.assert_frame_equal(default, explicit)


def test_more_stages_than_layers_are_refused():
    for make in (analytic_table, lambda *args: seed_table(*args, PUBLISHED)):
        with pytest.raises(ValueError, match="give 1 to its 4 layers"):
            make("small", "a100-40gb", SMALL, GPUS["a100-40gb"], (5,))
