"""The profiler: on a machine that is simulated, so that all is known, and on a real backbone of two layers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.simulated_machine import HEAD, INPUT, LOSS, OPTIMIZER, TRANSFER, Machine, layer_seconds
from helpers.small import save_llama

from cappuccino.costs import CostModel, fit_costs, read_cost_table
from cappuccino.costs.adapters import AdapterSize
from cappuccino.costs.fit import predicted_step_time
from cappuccino.errors import InputError
from cappuccino.plan import Plan, Recompute
from cappuccino.runtime.backbone.config import read_backbone_shape
from cappuccino.runtime.launch.errors import RunError
from cappuccino.runtime.launch.run_result import RunResult
from cappuccino.runtime.profiling import measuring
from cappuccino.runtime.profiling.grid import ProfileGrid
from cappuccino.runtime.profiling.profiler import PARTIAL, profile_backbone

NAME, GPU = "tiny", "cpu"
SEED_COLUMNS = (
    "param_name", "tasknum", "model_path", "pp_size", "world_size", "global_bsz", "micro_bsz", "grad_acc_steps",
    "seqlen", "rank", "max_steps", "num_samples", "peak_memory_mb", "throughput_per_gpu_tok_s",
    "total_throughput_tok_s", "tokens_per_step", "time_per_step_s", "status",
)  # fmt: skip
TIMES = ("time_per_step_s", "forward_time_s", "backward_time_s", "optimizer_time_s", "peak_memory_mb")
PARTS = ("input_forward", "layer_forward", "layer_backward", "head_forward", "head_backward", "loss_forward")
GRID = ProfileGrid(
    num_stages=(2,), tokens=(16, 32), sequence_lengths=(8, 16), num_adapters=(2,), ranks=(), target_modules=(),
    grad_acc_steps=3, repeats=2,
)  # fmt: skip
WIDE = replace(GRID, num_stages=(1, 2), tokens=(16, 64, 256), ranks=(64,), target_modules=(("q_proj",), "all-linear"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("two-layers"), layers=2)


@pytest.fixture
def machine(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(read_backbone_shape(backbone).layer)
    monkeypatch.setattr(measuring, "run_plan", found)
    return found


def fit_costs_of(table: pd.DataFrame, path: Path) -> CostModel:
    assert len(table) == len(read_cost_table(path).ok)
    return fit_costs(read_cost_table(path), NAME, GPU)


def profile(
    backbone: Path, output: Path, grid: ProfileGrid = WIDE, on_progress: Any = None, **options: Any
) -> pd.DataFrame:
    options = {"name": NAME, "gpu": GPU, "grid": grid, **options}
    return profile_backbone(backbone, output, on_progress=on_progress, **options).table


def test_kinds_of_recomputation_share_a_table(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    output, none = tmp_path / "table.csv", (Recompute.NONE,)
    first = profile(backbone, output, recompute=none)
    assert set(first["recompute"]) == {"none"}
    both = profile(backbone, output, recompute=tuple(Recompute))
    assert both["recompute"].value_counts().to_dict() == {"none": len(first), "full": len(first)}
    assert list(both["tasknum"]) == list(range(1, 2 * len(first) + 1))
    ran = [plan.replicas[0].recompute for plan in machine.runs]
    assert ran == ["none", "none", "full", "full"]  # what was there was not measured again
    # rows of one kind that is measured anew leave the other's alone
    again = profile(backbone, output, recompute=none, again=True)
    assert len(again) == len(both)
    assert [plan.replicas[0].recompute for plan in machine.runs[4:]] == ["none", "none"]
    costs = fit_costs(read_cost_table(output), NAME, GPU)
    assert [model.recompute for model in costs.choices] == ["none", "full"]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_the_costs_of_a_simulated_machine_are_found_again(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    table = profile(backbone, tmp_path / "table.csv")
    read = read_cost_table(tmp_path / "table.csv")
    costs = fit_costs(read, NAME, GPU)
    assert len(table) == 2 * len(WIDE.points())
    assert costs.profiled == (1, 2)
    assert costs.optimizer_s == pytest.approx(OPTIMIZER)
    np.testing.assert_allclose(costs.transfer, TRANSFER, rtol=1e-3)
    assert costs.layer_shape == machine.shape
    alone = read.ok[read.ok["pp_size"] == 1]  # on two stages, the transfers are in the step times besides
    errors = [predicted_step_time(costs, row) / row["time_per_step_s"] - 1 for _, row in alone.iterrows()]
    assert np.abs(errors).mean() < 0.03
    np.testing.assert_allclose(list(costs.mixed.values()), 1.0, atol=0.05)  # what is left of the fit's own error
    # adapters: seven modules at a micro-batch far below the launch-bound work cost what the machine charges for them
    small, large = (AdapterSize.of(machine.shape, 16, x) for x in (("q_proj",), "all-linear"))
    layer = costs.pipeline(1).curves[0][0]
    added = layer.adapter_floor(large) - layer.adapter_floor(small)
    assert added == pytest.approx(2e-4 * (large.modules - small.modules), rel=0.35)


def test_what_mixing_adds_is_in_the_costs_and_not_in_the_rows(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    alike = fit_costs_of(profile(backbone, tmp_path / "alike.csv"), tmp_path / "alike.csv")
    machine.mixed_factor = 1.25
    table = profile(backbone, tmp_path / "mixed.csv")
    mixed = fit_costs_of(table, tmp_path / "mixed.csv")
    for stages in (1, 2):
        np.testing.assert_allclose(mixed.mixed[stages], 1.25, rtol=0.05)  # the fit's own error is in it
        ratios = mixed.pipeline(stages).times(64, 64 * 16) / alike.pipeline(stages).times(64, 64 * 16)
        for ratio, *factors in zip(ratios, mixed.mixed[stages], alike.mixed[stages], strict=True):
            np.testing.assert_allclose(ratio, factors[0] / factors[1], rtol=1e-3)
    row = read_cost_table(tmp_path / "mixed.csv").ok.iloc[3]
    assert predicted_step_time(mixed, row) == pytest.approx(predicted_step_time(alike, row), rel=1e-3)


def test_head_and_layers_are_balanced_by_what_was_measured(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    deep = save_llama(tmp_path / "deep", layers=8)
    table = profile(deep, tmp_path / "table.csv")
    assert list(table.loc[table["pp_size"] == 1, "layers_per_stage"].unique()) == ["8"]
    (split,) = table.loc[table["pp_size"] == 2, "layers_per_stage"].unique()
    # 256 tokens: a layer takes 3 x 0.026 s and more, head and loss 0.41 s: about five layers' worth
    first, last = map(int, split.split("+"))
    assert first > last + 2
    costs = fit_costs(read_cost_table(tmp_path / "table.csv"), NAME, GPU)
    assert costs.layers_per_stage(2) == (first, last)
    deeper = costs.layers_per_stage(4)  # nobody measured four stages: put together from the parts
    assert deeper is not None
    assert sum(deeper) == 8
    assert deeper[-1] == 1
    others = max(
        sum(layer_seconds(256, [AdapterSize.of(machine.shape, 16, ("q_proj", "k_proj", "v_proj", "o_proj"))])) * n
        + (INPUT if n else 0)
        for n in deeper[:-1]
    )
    head = sum(HEAD + LOSS) * 256 + sum(layer_seconds(256, [AdapterSize(4, 0, 0)])) + INPUT
    shape = (256.0, 256.0 * 16)
    added = costs.adapter_costs(4, [])
    assert added.forward_floor.size == 0
    found = costs.pipeline(4).times(*shape).sum(axis=0)
    assert found[:-1].max() == pytest.approx(others, rel=0.3)
    assert found[-1] == pytest.approx(head, rel=0.3)


@pytest.mark.parametrize("warms_up", [False, True])
def test_points_that_do_not_fit_become_rows(warms_up: bool, machine: Machine, backbone: Path, tmp_path: Path) -> None:
    machine.room_tokens, machine.warms_up = 64, warms_up
    table = profile(backbone, tmp_path / "table.csv")
    failed = table[table["status"] != "OK"]
    assert set(failed["status"]) == {"OOM"}
    assert set(failed["micro_bsz"] * failed["seqlen"]) == {256}
    assert (table[table["status"] == "OK"]["micro_bsz"] * table[table["status"] == "OK"]["seqlen"]).max() == 64
    assert failed[list(TIMES)].isna().all(axis=None)
    read = read_cost_table(tmp_path / "table.csv")
    assert len(read.failed) == len(failed)
    assert [len(p.replicas[0].adapters) for p in machine.runs[:2]] == sorted(
        (len(p.replicas[0].adapters) for p in machine.runs[:2]), reverse=True
    )  # the second try leaves out what failed


def test_a_table_of_failures_only_says_so(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    machine.room_tokens = 1
    assert set(profile(backbone, tmp_path / "table.csv")["status"]) == {"OOM"}
    with pytest.raises(InputError, match="no row is OK"):
        read_cost_table(tmp_path / "table.csv")


def test_an_interrupted_profile_goes_on(
    machine: Machine, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "table.csv"

    def fail_at_two(plan: Plan, *arguments: Any, **options: Any) -> RunResult:
        if plan.replicas[0].num_stages == 2:
            raise RunError(0, 1, "the process was ended by SIGTERM")
        return machine(plan, *arguments, **options)

    monkeypatch.setattr(measuring, "run_plan", fail_at_two)
    with pytest.raises(RunError):
        profile(backbone, output)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv" + PARTIAL]
    monkeypatch.setattr(measuring, "run_plan", machine)
    machine.runs.clear()
    resumed = profile(backbone, output)
    assert [p.replicas[0].num_stages for p in machine.runs] == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    machine.runs.clear()
    pd.testing.assert_frame_equal(resumed, profile(backbone, output, again=True))
    assert [p.replicas[0].num_stages for p in machine.runs] == [1, 2]


def test_a_finished_table_is_not_measured_again(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    output, said = tmp_path / "table.csv", list[str]()
    profile(backbone, output)
    written, runs = output.read_bytes(), len(machine.runs)
    table = profile(backbone, output, on_progress=lambda fraction, text: said.append(text))
    assert len(machine.runs) == runs
    assert output.read_bytes() == written
    assert (table["status"] == "OK").all()
    assert "measured before" in said[-1]
    # other settings are another profile, and what is no table of ours is replaced
    profile(backbone, output, gpu="other")
    assert len(machine.runs) == 2 * runs
    output.write_text("no table")
    profile(backbone, output)
    assert len(machine.runs) == 3 * runs


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}, "rows": []}'])
def test_remains_of_other_profiles_are_not_used(content: str, machine: Machine, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / ("table.csv" + PARTIAL)).write_text(content)
    profile(backbone, tmp_path / "table.csv")
    assert [p.replicas[0].num_stages for p in machine.runs] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("reason", ["ValueError: no", "the process was ended by SIGKILL (out of memory?)"])
def test_nothing_is_written_when_a_measurement_fails(
    reason: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RunError(0, 1, reason)

    monkeypatch.setattr(measuring, "run_plan", fail)
    (tmp_path / "table.csv").write_text("as before")
    for name in ("table.csv", "new.csv"):
        with pytest.raises(RunError, match="stage 1 failed"):
            profile(backbone, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "as before"


def test_too_many_stages_are_refused_before_anything_runs(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--num-stages: 3 stages for 2 layers"):
        profile(backbone, tmp_path / "table.csv", replace(GRID, num_stages=(1, 3)))
    assert not machine.runs
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def profiled(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, list[float]]:
    """A real one, of a configuration alone: its weights are random."""
    output = tmp_path_factory.mktemp("profile") / "table.csv"
    fractions: list[float] = []
    on_progress: Callable[[float, str], None] = lambda fraction, text: fractions.append(fraction)  # noqa: E731
    return output, profile(backbone / "config.json", output, GRID, on_progress), fractions


def test_the_table_has_the_columns_of_the_seed_and_measured_numbers(
    profiled: tuple[Path, pd.DataFrame, list[float]],
) -> None:
    output, table, fractions = profiled
    written = pd.read_csv(output)
    assert list(written.columns) == list(table.columns)
    assert set(SEED_COLUMNS) <= set(written.columns)
    asked = [(p.samples, p.length, p.num_adapters, p.rank, p.dropout) for p in GRID.points()]
    columns = ["micro_bsz", "seqlen", "num_adapters", "rank", "dropout"]
    assert list(written[columns].itertuples(index=False, name=None)) == asked
    assert (written[[*TIMES, *(f"{part}_time_s" for part in PARTS)]] > 0).all(axis=None)
    assert (written[["transfer_time_s", "time_spread", "forward_spread", "backward_spread"]] >= 0).all(axis=None)
    assert set(written["status"]) == {"OK"}
    assert set(written["source"]) == {"measured"}
    assert set(written["num_layers"]) == {2}
    assert set(written["layers_per_stage"]) == {"1+1"}
    tokens = written["micro_bsz"] * written["seqlen"] * GRID.grad_acc_steps
    assert (written["tokens_per_step"] == tokens).all()
    np.testing.assert_allclose(written["total_throughput_tok_s"], tokens / written["time_per_step_s"], rtol=1e-4)
    np.testing.assert_allclose(written["throughput_per_gpu_tok_s"] * 2, written["total_throughput_tok_s"], rtol=1e-4)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert [p.name for p in output.parent.iterdir()] == ["table.csv"]


def test_the_bytes_held_are_those_of_activations(profiled: tuple[Path, pd.DataFrame, list[float]]) -> None:
    _, table, _ = profiled
    # of every token a layer keeps several tensors as wide as the hidden size (32 floats), the head the logits (64)
    held = table["layer_held_bytes_per_token"]
    assert (held > 5 * 32 * 4).all()
    assert (held < 100 * 32 * 4).all()
    assert (table["head_held_bytes_per_token"] > 0.5 * 64 * 4).all()


def test_a_step_takes_no_less_than_its_operations(profiled: tuple[Path, pd.DataFrame, list[float]]) -> None:
    _, table, _ = profiled
    busy = GRID.grad_acc_steps * np.maximum(table["forward_time_s"], table["backward_time_s"])
    assert (table["time_per_step_s"] > busy * 0.5).all()  # medians of different steps
    parts = table["layer_forward_time_s"] + table["input_forward_time_s"]
    assert (parts < table["forward_time_s"] * 2).all()


def test_the_table_can_be_read_and_fitted(profiled: tuple[Path, pd.DataFrame, list[float]]) -> None:
    output, table, _ = profiled
    read = read_cost_table(output)
    assert len(read.ok) == len(GRID.points())
    assert not read.is_analytic
    costs = fit_costs(read, NAME, GPU)
    assert costs.profiled == (2,)
    assert (costs.num_layers, costs.device, costs.dtype) == (2, "cpu", "float32")
    assert costs.profiled_tokens == (16, 32)
    assert costs.optimizer_s == pytest.approx(table["optimizer_time_s"].median(), rel=1e-4)
    assert costs.pipeline(2).times(32, 32 * 16).min() > 0
    assert costs.memory_model(2).static_gib > 0


def test_a_partial_file_is_plain_json(machine: Machine, backbone: Path, tmp_path: Path) -> None:
    seen = []

    def keep(fraction: float, text: str) -> None:
        partial = tmp_path / ("table.csv" + PARTIAL)
        if partial.exists():
            seen.append(json.loads(partial.read_text()))

    profile(backbone, tmp_path / "table.csv", on_progress=keep)
    assert seen
    assert [point["num_stages"] for point in seen[0]["points"]] == [1]


@pytest.mark.slow
def test_a_real_run_that_is_ended_keeps_its_points(backbone: Path, tmp_path: Path) -> None:
    def end(fraction: float, text: str) -> None:
        if text.startswith("2 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(backbone, tmp_path / "table.csv", GRID, end)
    kept = json.loads((tmp_path / ("table.csv" + PARTIAL)).read_text())["points"]
    assert 2 <= len(kept) < len(GRID.points())
    result = profile_backbone(backbone, tmp_path / "table.csv", name=NAME, gpu=GPU, grid=GRID)
    assert result.new_points == len(GRID.points()) - len(kept)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
