import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from cli.conftest import Outcome

from cappuccino.analytic.catalogue import GPUS
from cappuccino.analytic.efficiency import COUNTED_EAGER, EAGER, ENGINES, FUSED, PUBLISHED, STATED
from cappuccino.analytic.table import analytic_table, seed_table
from cappuccino.backbone import BACKBONES
from cappuccino.cli import estimate_commands
from cappuccino.costs import fit_costs, read_cost_table
from cappuccino.errors import InputError

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
# per layer 2 x 2560 x (32 x 128 + 8 x 128) + 3 x 2560 x 9728 = 26,214,400 + 74,711,040; one table of 151936 x 2560
CONFIG_PARAMETERS = 36 * (26_214_400 + 74_711_040) + 388_956_160


def estimate(*arguments: object) -> Outcome:
    """Call the command by itself; an InputError is what `cappuccino` prints and exits 1 on."""
    app = typer.Typer(pretty_exceptions_enable=False)
    estimate_commands.register(app)
    app.callback()(lambda: None)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(["estimate", *map(str, arguments)], standalone_mode=True)
        except SystemExit as end:
            code = int(end.code or 0)
        except InputError as error:
            return Outcome(1, out.getvalue(), f"error: {error}")
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 1, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small-model").mkdir()
    write(tmp_path, CONFIG)
    return tmp_path


def write(folder: Path, config: object) -> Path:
    path = folder / "small-model" / "config.json"
    path.write_text(json.dumps(config))
    return path


def measured(
    folder: Path,
    backbones: tuple[str, ...] = ("Llama-2-7b-hf", "Qwen2.5-7B-Instruct"),
    gpus: tuple[str, ...] = ("a100-80gb",),
) -> Path:
    """A table that says that it was measured, 10% slower than the estimate of a slow engine, in the seed's columns."""
    parts = [seed_table(n, gpu, BACKBONES[n], GPUS[gpu], (1, 2), EAGER) for gpu in gpus for n in backbones]
    table = pd.concat(parts, ignore_index=True).assign(source="measured")
    ran = table["status"] == "OK"
    table.loc[ran, "time_per_step_s"] = table.loc[ran, "time_per_step_s"].astype(float) * 1.1
    table.to_csv(folder / "measured.csv", index=False)
    return folder / "measured.csv"


def test_catalogued_backbone(tmp_path):
    done = estimate("--backbone", "Llama-3.1-8B", "--gpu", "h100-80gb", "-o", tmp_path / "t.csv")
    assert done.code == 0, done.err
    stated = STATED["fused"]
    x, y, z = (100 * e for e in (stated.time, stated.time_left_out, stated.time_gpu_left_out))
    assert done.out.startswith(
        f"analytic: times of layers and head are off by {x:.1f}% in the mean where measured "
        f"({y:.1f}% on a backbone left out, {z:.1f}% on a GPU left out)\n"
        "analytic: peak memory is counted, and was never measured\n"
    )
    assert "4 stages: 87 of 90 rows fit with recomputation none, 90 of 90 rows fit with recomputation full" in done.out
    assert done.err == ""
    table = pd.read_csv(tmp_path / "t.csv")
    assert set(table["source"]) == {"analytic"}
    assert list(table["tasknum"]) == list(range(1, len(table) + 1))
    spec, gpu = BACKBONES["Llama-3.1-8B"], GPUS["h100-80gb"]
    parts = [
        analytic_table("Llama-3.1-8B", "h100-80gb", spec, gpu, (1, 2, 4, 8), recompute=m) for m in ("none", "full")
    ]
    pd.concat(parts).to_csv(tmp_path / "expected.csv", index=False)
    expected = pd.read_csv(tmp_path / "expected.csv")
    pd.testing.assert_frame_equal(table.drop(columns="tasknum"), expected.drop(columns="tasknum"))
    costs = read_cost_table(tmp_path / "t.csv")
    assert fit_costs(costs, "Llama-3.1-8B", "h100-80gb").analytic


@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_engine(engine, tmp_path):
    options = ("--gpu", "a100-40gb", "--num-stages", 2, "--engine", engine, "-o", tmp_path / "t.csv")
    done = estimate("--backbone", "Llama-3.1-8B", *options)
    assert done.code == 0, done.err
    assert f"analytic: {STATED[engine].measured} are off by {100 * STATED[engine].time:.1f}%" in done.out
    assert ("a100-40gb" in done.err) == (engine == "fused")  # measured on an H100
    assert ("peak memory is off by 1.6% in the mean" in done.out) == (engine == "eager")
    rows = read_cost_table(tmp_path / "t.csv").ok
    assert set(rows["engine"]) == {engine}
    # 32 tokens: 85 launches of the slow host; of the fast engine, 2 x 218 million bytes of weights and 32 kernels
    weights_s = 2 * BACKBONES["Llama-3.1-8B"].layer_parameters / (FUSED.bandwidth_share * 1555e9)
    least = {"fused": weights_s + 32 * FUSED.kernel_s, "eager": 85 * EAGER.launch_s}[engine]
    usual = rows[(rows["num_adapters"] == 1) & (rows["target_modules"].str.len() == 4)]
    assert usual["layer_forward_time_s"].min() == pytest.approx(least, rel=0.05)


@pytest.mark.parametrize(("mode", "modes"), [("none", ["none"]), ("full", ["full"]), ("both", ["none", "full"])])
def test_recompute(mode, modes, tmp_path):
    options = ("--gpu", "h100-80gb", "--num-stages", "1,2", "--recompute", mode, "-o", tmp_path / "t.csv", "--json")
    done = estimate("--backbone", "Llama-3.1-8B", *options)
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(dict.fromkeys(table["recompute"])) == modes
    assert list(done.json["rows_that_fit"]) == modes
    for name, fitting in done.json["rows_that_fit"].items():
        for stages, count in fitting.items():
            mine = table[(table["recompute"] == name) & (table["pp_size"] == int(stages))]
            assert (mine["status"] == "OK").sum() == count > 0


@pytest.mark.parametrize("form", ["folder", "file"])
def test_backbone_of_a_configuration(folder, form):
    path = folder / "small-model" / ("config.json" if form == "file" else "")
    options = ("--gpu", "h200-141gb", "--num-stages", "2,3", "-o", folder / "t.csv", "--json")
    done = estimate("--backbone", path, *options)
    assert done.code == 0, done.err
    found = done.json
    assert (found["backbone"], found["parameters"], found["source"]) == ("small-model", CONFIG_PARAMETERS, "analytic")
    assert (found["rows"], set(found["rows_that_fit"]["none"])) == (360, {"2", "3"})
    assert found["engine"] == "fused"
    assert found["errors"]["time"] == STATED["fused"].time
    assert found["errors"]["memory"] is None
    assert found["efficiency"]["compute_share"] == FUSED.compute_share
    assert "h200-141gb" in done.err  # measured on another GPU
    costs = read_cost_table(folder / "t.csv")
    assert fit_costs(costs, "small-model", "h200-141gb").num_layers == 36


def test_defaults_of_a_configuration(folder):
    # no head_dim: 2560 / 32 = 80; no key heads: as many as query heads; not tied: two tables
    config = {k: v for k, v in CONFIG.items() if k not in ("head_dim", "num_key_value_heads", "tie_word_embeddings")}
    write(folder, config | {"num_key_value_heads": None})
    options = ("--gpu", "h100-80gb", "-o", folder / "t.csv", "--json")
    found = estimate("--backbone", folder / "small-model", *options).json
    layer = 2 * 2560 * (2560 + 2560) + 3 * 2560 * 9728
    assert found["parameters"] == 36 * layer + 2 * 388_956_160


def test_stages_no_more_than_layers_by_default(folder):
    write(folder, CONFIG | {"num_hidden_layers": 3})
    done = estimate("--backbone", folder / "small-model", "--gpu", "l40s-48gb", "-o", folder / "t.csv")
    assert done.code == 0, done.err
    assert set(pd.read_csv(folder / "t.csv")["pp_size"]) == {1, 2}


def test_name_in_the_table(folder):
    options = ("--gpu", "l40s-48gb", "--name", "mine", "-o", folder / "t.csv")
    assert estimate("--backbone", folder / "small-model", *options).code == 0
    assert set(pd.read_csv(folder / "t.csv")["param_name"]) == {"mine"}


def test_type_of_computation(folder):
    found = {}
    for dtype in ("bfloat16", "tf32", "float32"):
        path = folder / f"{dtype}.csv"
        options = ("--gpu", "a100-80gb", "--num-stages", 1, "--recompute", "full", "--dtype", dtype, "-o", path)
        assert estimate("--backbone", "Llama-2-7b-hf", *options).code == 0
        rows = read_cost_table(path).ok
        assert set(rows["dtype"]) == {dtype}
        found[dtype] = rows[(rows["tokens"] == 8192) & (rows["seqlen"] == 1024)].iloc[0]
    times = [found[dtype]["time_per_step_s"] for dtype in ("bfloat16", "tf32", "float32")]
    assert times[0] < times[1] < times[2]
    assert found["float32"]["peak_memory_mb"] > 1.5 * found["bfloat16"]["peak_memory_mb"]


def test_calibrated_on_given_tables(tmp_path):
    options = ("--gpu", "a100-80gb", "--engine", "eager", "-o", tmp_path / "t.csv", "--calibrate", measured(tmp_path))
    done = estimate("--backbone", "Llama-3.1-8B", *options, "--json")
    assert done.code == 0, done.err
    assert done.err == ""  # measured on this GPU
    found = done.json
    assert found["efficiency"]["compute_share"] < EAGER.compute_share
    assert found["efficiency"]["launch_s"] > EAGER.launch_s
    assert found["efficiency"]["layer_launches"] == COUNTED_EAGER.layer_launches
    assert 0 < found["errors"]["time"] <= found["errors"]["time_left_out"] < 0.1
    assert found["errors"]["time_gpu_left_out"] is None
    assert found["errors"]["gpus"] == ["a100-80gb"]
    assert 0 < found["errors"]["memory"] < 0.1
    assert "unknown on a GPU left out" in estimate("--backbone", "Llama-3.1-8B", *options).out


def test_calibrated_on_several_gpus(tmp_path):
    table = measured(tmp_path, ("Llama-2-7b-hf",), ("a100-80gb", "h100-80gb"))
    options = ("--gpu", "h100-80gb", "--engine", "eager", "-o", tmp_path / "t.csv", "--calibrate", table, "--json")
    errors = estimate("--backbone", "Llama-3.1-8B", *options).json["errors"]
    assert errors["gpus"] == ["a100-80gb", "h100-80gb"]
    assert 0 < errors["time_gpu_left_out"] < 0.1
    assert errors["time_left_out"] is None


def test_calibrated_on_one_backbone_knows_no_error_left_out(folder):
    options = ("--gpu", "a100-80gb", "-o", folder / "t.csv", "--calibrate", measured(folder, ("Llama-2-7b-hf",)))
    errors = estimate("--backbone", "Llama-3.1-8B", *options, "--json").json["errors"]
    assert (errors["time_left_out"], errors["memory_left_out"]) == (None, None)
    assert "(unknown on a backbone left out" in estimate("--backbone", "Llama-3.1-8B", *options).out


def test_calibration_on_the_backbone_itself(folder):
    table = pd.read_csv(measured(folder, ("Llama-2-7b-hf",))).assign(param_name="small-model")
    table.to_csv(folder / "measured.csv", index=False)
    options = ("--gpu", "a100-80gb", "-o", folder / "t.csv", "--calibrate", folder / "measured.csv")
    assert estimate("--backbone", folder / "small-model", *options).code == 0
    refused(estimate("--backbone", "Llama-2-7b-hf", *options), "measured.csv", "param_name", '"small-model"')


def test_calibration_tables_name_their_gpu_and_were_measured(tmp_path):
    path = measured(tmp_path)
    options = ("--backbone", "Llama-3.1-8B", "--gpu", "a100-80gb", "-o", tmp_path / "t.csv", "--calibrate", path)
    whole = pd.read_csv(path)
    whole.drop(columns="gpu").to_csv(path, index=False)
    refused(estimate(*options), "measured.csv", "gpu", "--calibrate-gpu")
    assert estimate(*options, "--calibrate-gpu", "a100-80gb").code == 0
    whole.assign(source="analytic").to_csv(path, index=False)
    (tmp_path / "t.csv").unlink()
    refused(estimate(*options), "measured.csv", "source")
    assert not (tmp_path / "t.csv").exists()


MISSING = object()
BAD_CONFIGS = {
    "no width": ({"hidden_size": MISSING}, ["hidden_size", "is missing"]),
    "no inner width": ({"intermediate_size": MISSING}, ["intermediate_size", "is missing"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
    "text": ({"vocab_size": "many"}, ["vocab_size", "'many'"]),
    "fraction": ({"num_attention_heads": 2.5}, ["num_attention_heads", "2.5"]),
    "truth": ({"hidden_size": True}, ["hidden_size", "True"]),
    "too large": ({"intermediate_size": 2**31}, ["intermediate_size", "2147483648"]),
    "key heads": ({"num_key_value_heads": 5}, ["num_key_value_heads", "5 does not divide", "32"]),
    "head width": ({"head_dim": -1}, ["head_dim", "-1"]),
    "odd heads": ({"head_dim": None, "hidden_size": 2561}, ["head_dim", "2561"]),
    "tied": ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'", "true or false"]),
    "experts": ({"num_experts": 64}, ["num_experts", "64", "profile"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantization_config", "bits", "profile"]),
    "two matrices": ({"model_type": "gpt_neox"}, ["model_type", "gpt_neox", "profile"]),
    "nested": ({"hidden_size": MISSING, "text_config": {}}, ["hidden_size", "text_config"]),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configurations_are_one_clear_error(name, folder):
    changes, words = BAD_CONFIGS[name]
    changes = {"num_attention_heads": 32, **changes}
    write(folder, {k: v for k, v in (CONFIG | changes).items() if v is not MISSING})
    options = ("--gpu", "h100-80gb", "-o", folder / "t.csv")
    refused(estimate("--backbone", folder / "small-model", *options), "config.json", *words)
    assert not (folder / "t.csv").exists()


@pytest.mark.parametrize(("text", "word"), [("[]", "JSON object"), ('{"hidden_size": 1', "truncated")])
def test_files_that_are_no_configuration(text, word, folder):
    (folder / "small-model" / "config.json").write_text(text)
    options = ("--gpu", "h100-80gb", "-o", folder / "t.csv")
    refused(estimate("--backbone", folder / "small-model", *options), "config.json", word)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--backbone": "GPT-5"}, ["--backbone", "GPT-5", "Llama-2-7b-hf"]),
        ({"--gpu": "tpu"}, ["--gpu", "tpu", "a100-40gb"]),
        ({"--dtype": "int4"}, ["--dtype", "int4", "bfloat16"]),
        ({"--engine": "vllm"}, ["--engine", "vllm", "fused", "eager"]),
        ({"--recompute": "some"}, ["--recompute", "some", "none", "full", "both"]),
        ({"--calibrate-gpu": "tpu"}, ["--calibrate-gpu", "tpu", "a100-40gb"]),
        ({"--num-stages": "1,33"}, ["--num-stages", "33", "32 layers"]),
        ({"--num-stages": "0"}, ["--num-stages", "0"]),
        ({"--num-stages": "two"}, ["--num-stages", "two"]),
        ({"--name": " "}, ["--name"]),
        ({"--calibrate": "absent.csv"}, ["absent.csv", "not found"]),
        ({"-o": "file/t.csv"}, ["file", "no folder"]),
        ({"--backbone": "Llama-3.1-70B", "--num-stages": "1"}, ["--num-stages", "Llama-3.1-70B", "more stages"]),
    ],
)
def test_wrong_options_are_one_clear_error(changed, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    options = {"--backbone": "Llama-3.1-8B", "--gpu": "a100-40gb", "-o": "t.csv"} | changed
    refused(estimate(*(word for pair in options.items() for word in pair)), *words)
    assert not (tmp_path / "t.csv").exists()


def test_shipped_tables_are_not_what_users_get():
    assert PUBLISHED.name not in ENGINES


def test_needs_no_torch_and_imports_little_before_it_runs(folder):
    code = (
        "import sys, typer; from cappuccino.cli import estimate_commands; app = typer.Typer();"
        "estimate_commands.register(app);"
        "assert not {'pandas', 'scipy', 'cappuccino.analytic.roofline'} & set(sys.modules);"
        f"app(['--backbone', {str(folder / 'small-model')!r}, '--gpu', 'h100-80gb', '-o', {str(folder / 't.csv')!r}],"
        "standalone_mode=False);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "t.csv").exists()
