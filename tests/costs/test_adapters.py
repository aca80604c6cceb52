"""Adapters in the cost model: their sizes, what they add, and that a table tells it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cappuccino.backbone import LayerShape, unknown_modules
from cappuccino.costs import AdapterCosts, CostModel, MemoryModel, SmoothMaximum, fit_costs
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.fit import predicted_step_time
from cappuccino.costs.memory_fit import predicted_memory_mib
from cappuccino.costs.table import CostTable, read_cost_table
from cappuccino.errors import InputError
from cappuccino.instance import Adapter

SHAPE = LayerShape(hidden=8, intermediate=20, query=8, key_value=4)
CURVE = SmoothMaximum(1.0, 0.01, 0.0, 2.0, per_module_s=0.5, per_width_s=0.001, per_parameter_s=0.0001)


def test_sizes_by_hand() -> None:
    # q: 8 -> 8, v: 8 -> 4
    assert AdapterSize.of(SHAPE, 3, ("q_proj", "v_proj")) == AdapterSize(2, 28, 84)
    assert AdapterSize.of(SHAPE, 3, ("self_attn.q_proj", "v_proj")) == AdapterSize(2, 28, 84)
    # q and o 16 each, k and v 12 each, gate, up and down 28 each
    assert AdapterSize.of(SHAPE, 2, "all-linear") == AdapterSize(7, 140, 280)
    assert SHAPE.parameters == 2 * 64 + 2 * 32 + 3 * 160
    assert AdapterSize.of(SHAPE, 1, ("another",)) == AdapterSize(1, 20, 20)  # the average of the seven


def job(name: str, rank: int, targets: object) -> Adapter:
    return Adapter(name=name, dataset="d", global_batch_size=1, rank=rank, target_modules=targets)


def test_what_adapters_add_by_hand() -> None:
    memory = {1: MemoryModel(1.0, 0.0, 0.0)}
    costs = CostModel("b", "x", CURVE, CURVE.scaled(2), memory, layer_shape=SHAPE)
    found = costs.adapter_costs(2, [job("a", 3, ("q_proj", "v_proj")), job("b", 2, "all-linear")])
    np.testing.assert_allclose(found.forward_floor, [0.5, 1.75])  # half of 0.5 s a module on one of two stages
    np.testing.assert_allclose(found.forward_work, [(0.028 + 0.0084) / 2, (0.14 + 0.028) / 2])
    np.testing.assert_allclose(found.backward_floor, [1.0, 3.5])
    np.testing.assert_allclose(found.backward_work, [0.0364, 0.168])
    # two samples of the first adapter, one of the second
    added = found.of_micro_batch([0, 0, 1], [10, 20, 30], padded=False)
    np.testing.assert_allclose(added, [2.25, 30 * 0.0182 + 30 * 0.084, 4.5, 30 * 0.0364 + 30 * 0.168])
    padded = found.of_micro_batch([0, 0, 1], [10, 20, 30], padded=True)
    np.testing.assert_allclose(padded[1], 60 * 0.0182 + 30 * 0.084)
    assert found.differ
    assert not AdapterCosts(*np.zeros((4, 2)), np.array([True, False]), *np.zeros((2, 2))).differ


def test_without_the_shape_of_a_layer_all_adapters_cost_alike() -> None:
    costs = CostModel("b", "x", CURVE, CURVE, {1: MemoryModel(1.0, 0.0, 0.0)})
    assert not costs.adapter_costs(1, [job("a", 3, ("q_proj",)), job("b", 200, "all-linear")]).differ


def test_a_floor_of_nothing_and_no_work_take_no_time() -> None:
    nothing = SmoothMaximum(0.0, 1.0, 0.0, 3.0)
    np.testing.assert_allclose(nothing.of_work([0.0, 2.0]), [0.0, 2.0])
    np.testing.assert_allclose(CURVE(100, 0, more_floor=1.0, more_work=2.0), np.hypot(2.0, 3.0))


def table(kinds: list[tuple[int, int, str]], noise: float = 0.0) -> CostTable:
    """Rows of a machine that follows CURVE exactly, backward taking twice as long."""
    rng = np.random.default_rng(0)
    rows = []
    for k, rank, targets in kinds:
        for tokens in (16, 64, 256, 1024):
            names = targets.split("+")
            size = AdapterSize.of(SHAPE, rank, "all-linear" if targets == "all-linear" else names)
            work = tokens * CURVE.adapter_work(size)
            forward = float(CURVE(tokens, 0, CURVE.adapter_floor(size) * k, work)) * np.exp(rng.normal(0, noise))
            rows.append(
                {
                    "param_name": "b", "gpu": "x", "status": "OK", "pp_size": 1, "micro_bsz": k, "grad_acc_steps": 2,
                    "seqlen": tokens // k, "tokens": tokens, "squares": tokens, "rank": rank, "num_adapters": k,
                    "target_modules": names, "forward_time_s": forward, "backward_time_s": 2 * forward,
                    "peak_memory_mb": 1000.0 + tokens, "time_per_step_s": 6 * forward,
                    "hidden_size": 8, "intermediate_size": 20, "query_size": 8, "key_value_size": 4, "dtype": "float32",
                }
            )  # fmt: skip
    ok = pd.DataFrame(rows)
    return CostTable(Path("t.csv"), ok, ok.iloc[:0])


KINDS = [
    (1, 4, "q_proj+v_proj"),
    (1, 64, "q_proj+v_proj"),
    (1, 4, "all-linear"),
    (2, 4, "q_proj+v_proj"),
    (4, 4, "q_proj"),
]


def test_rows_of_several_adapters_tell_what_each_adds() -> None:
    found = fit_costs(table(KINDS), "b", "x")
    curve = found.pipeline(1).curves[0][0]
    assert curve.per_token_s + curve.per_square_s == pytest.approx(CURVE.per_token_s, rel=0.02)  # Q is T in these rows
    for name in ("floor_s", "per_module_s", "per_width_s", "per_parameter_s"):
        assert getattr(curve, name) == pytest.approx(getattr(CURVE, name), rel=0.02), name
    for _, row in table(KINDS).ok.iterrows():
        assert predicted_step_time(found, row) == pytest.approx(row["time_per_step_s"], rel=1e-3)


def test_noise_moves_the_prediction_by_no_more_than_itself() -> None:
    found, exact = fit_costs(table(KINDS, noise=0.03), "b", "x"), table(KINDS)
    errors = [predicted_step_time(found, row) / row["time_per_step_s"] - 1 for _, row in exact.ok.iterrows()]
    assert np.abs(errors).max() < 0.08


def test_rows_of_one_kind_of_adapter_tell_nothing_of_others() -> None:
    found = fit_costs(table(KINDS[:1]), "b", "x")
    assert not found.adapter_costs(1, [job("a", 64, "all-linear")]).differ


def test_rows_of_two_types_contradict_each_other() -> None:
    mixed = table(KINDS)
    mixed.ok.loc[0, "dtype"] = "bfloat16"
    with pytest.raises(InputError, match=r"t.csv: dtype: rows of bfloat16 and float32"):
        fit_costs(mixed, "b", "x")


@pytest.mark.parametrize(
    ("targets", "unknown"),
    [
        (("q_proj", "down_proj", "lm_head"), ()),
        ("all-linear", ()),
        (("q_proj", "all-linear"), ("all-linear",)),
        (("vproj", "k_proj", "c_attn"), ("vproj", "c_attn")),
        (("self_attn.q_proj", "mlp.q_proj"), ("mlp.q_proj",)),
        (("layers.3.mlp.up_proj", "model.layers.7.self_attn.o_proj", "7.mlp.up_proj"), ()),
        (("model.layers.8.self_attn.o_proj", "18.mlp.up_proj"), ("model.layers.8.self_attn.o_proj", "18.mlp.up_proj")),
        (("proj", "", "embed_tokens"), ("proj", "", "embed_tokens")),
    ],
)
def test_entries_that_match_no_linear_layer(targets, unknown):
    assert unknown_modules(targets, num_layers=8) == unknown


def test_memory_of_adapters_by_hand() -> None:
    # 84 and 280 parameters a layer, 16 bytes each, on the 3 of 5 layers that the fuller of two stages has
    memory = {2: MemoryModel(1.0, 0.0, 0.5)}
    costs = CostModel("b", "x", CURVE, CURVE, memory, layer_shape=SHAPE, num_layers=5)
    jobs = [job("a", 3, ("q_proj", "v_proj")), job("b", 2, "all-linear")]
    found = costs.adapter_costs(2, jobs).memory_gib
    np.testing.assert_allclose(found, np.array([84, 280]) * 3 * 16 / 2**30)
    double = replace(costs, dtype="float64").adapter_costs(2, jobs).memory_gib
    np.testing.assert_allclose(double, 2 * found)
    uneven = replace(costs, splits={2: (4, 1)}).adapter_costs(2, jobs).memory_gib
    np.testing.assert_allclose(uneven, found * 4 / 3)
    assert not replace(costs, layer_shape=None).adapter_costs(2, jobs).memory_gib.any()
    # 1 GiB static and 2 of adapters leave 3 of 6 GiB, 6 tokens
    beside = memory[2].most_tokens(6.0, np.array([0.0, 2.0, 5.0, 9.0]))
    assert beside.tolist() == [10, 6, 0, 0]
    assert memory[2].beside(2.0).max_tokens(6.0) == 6


def test_a_table_tells_its_adapters_memory_from_the_rest(tmp_path: Path) -> None:
    # 2 GiB and a token in 1000 held, beside adapters of 1, 2 or 4 times 1.25 or 20 GiB
    shape, layers = LayerShape(4096, 11008, 4096, 4096), 32
    rows = []
    for rank in (16, 256):
        size = AdapterSize.of(shape, rank, "all-linear")
        gib = 16 * size.parameters * layers / 2**30
        for number, tokens in ((1, 512), (2, 1024), (4, 2048), (1, 4096), (2, 256)):
            rows.append(
                {
                    "param_name": "b", "pp_size": 1, "micro_bsz": 1, "grad_acc_steps": 1, "seqlen": tokens,
                    "rank": rank, "num_adapters": number, "target_modules": "all-linear", "num_layers": layers,
                    "hidden_size": 4096, "intermediate_size": 11008, "query_size": 4096, "key_value_size": 4096,
                    "peak_memory_mb": 1024 * (2.0 + tokens / 1000 + number * gib), "time_per_step_s": 1 + tokens / 500,
                    "status": "OK",
                }
            )  # fmt: skip
    path = tmp_path / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    table = read_cost_table(path)
    costs = fit_costs(table, "b", "x")
    assert costs.memory[1].static_gib == pytest.approx(2.0, rel=1e-6)
    assert costs.memory[1].held_gib == pytest.approx(1e-3, rel=1e-6)
    predicted = [predicted_memory_mib(costs, row) for _, row in table.ok.iterrows()]
    np.testing.assert_allclose(predicted, table.ok["peak_memory_mb"], rtol=1e-6)
    (large,) = costs.adapter_costs(1, [job("a", 256, "all-linear")]).memory_gib
    assert large == pytest.approx(16 * 256 * 32 * (7 * 4096 * 2 + 3 * (11008 - 4096)) / 2**30)


def test_what_the_forward_keeps_is_told_from_the_rest(tmp_path: Path) -> None:
    # 2 stages of 3 and 1 layers hold two micro-batches: 1 GiB, a token 100 KiB at work and 3 x 8 KiB held;
    # the last stage keeps 8 KiB of its layer and 10 KiB of head and loss, less than the first
    rows = []
    for tokens in (512, 1024, 2048, 4096):
        kib = 100 * tokens + 2 * 24 * tokens
        rows.append(
            {
                "param_name": "b", "pp_size": 2, "micro_bsz": 1, "grad_acc_steps": 3, "seqlen": tokens, "rank": 8,
                "held_micro_batches": 2, "num_layers": 4, "layers_per_stage": "3+1",
                "layer_held_bytes_per_token": 8 * 1024, "head_held_bytes_per_token": 10 * 1024,
                "peak_memory_mb": 1024 + kib / 1024, "time_per_step_s": 1 + tokens / 500, "status": "OK",
            }
        )  # fmt: skip
    path = tmp_path / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    memory = fit_costs(read_cost_table(path), "b", "x").memory[2]
    assert memory.static_gib == pytest.approx(1.0)
    assert memory.working_gib == pytest.approx(100 / 2**20)
    assert memory.held_gib == pytest.approx(24 / 2**20)
    # without that knowledge all of it counts as held
    pd.DataFrame(rows).drop(columns="layer_held_bytes_per_token").to_csv(path, index=False)
    memory = fit_costs(read_cost_table(path), "b", "x").memory[2]
    assert (memory.working_gib, memory.held_gib) == (0.0, pytest.approx(74 / 2**20))
