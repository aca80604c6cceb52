"""init, and the way of a new user: raw data, four commands, adapters."""

import json
import random
import shlex
from pathlib import Path

import pandas as pd
import pytest
from cli.conftest import cappuccino, one_clear_error

pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers.chats import MISTRAL
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cappuccino.documents import read_yaml
from cappuccino.runtime.backbone.tiny import build_tiny_backbone

SAMPLES = 60
RANKS = (2, 4)


def write_raw_data(folder: Path) -> None:
    """Write short samples in the three common forms: chats, prompts with completions, and texts."""
    draw = random.Random(0)
    names, places = ("Ada", "Ben", "Cleo", "Dan"), ("Paris", "Rome", "Oslo")
    chats, pairs, texts = [], [], []
    for i in range(SAMPLES):
        name, place, x = draw.choice(names), draw.choice(places), draw.randint(1, 99)
        turns = [("user", f"Where is {name}?"), ("assistant", f"{name} is in {place}.")]
        turns += [("user", "And tomorrow?"), ("assistant", f"Still in {place}.")] if i % 3 == 0 else []
        chats.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        pairs.append({"prompt": f"def add_{x}(y):", "completion": f"\n    return y + {x}\n"})
        texts.append({"text": f"{name} goes to {place}. " * draw.randint(1, 6)})
    folder.mkdir()
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    pd.DataFrame(pairs).to_parquet(folder / "code.parquet")
    (folder / "notes.json").write_text(json.dumps(texts))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with raw data and a backbone, in which the user works."""
    write_raw_data(tmp_path / "raw")
    build_tiny_backbone(tmp_path / "backbone", hidden=64, layers=3, vocab_size=512)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "backbone")
    tokenizer.chat_template = MISTRAL
    tokenizer.save_pretrained(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = ("--num-stages", 1, "--tokens", "64,128,256", "--sequence-lengths", 32, "--num-adapters", 2)
"""A profile of fewer points than `init` proposes."""


@pytest.mark.parametrize("grid", [SHORT, pytest.param((), marks=pytest.mark.slow)], ids=["short", "as-proposed"])
def test_from_raw_data_to_adapters(user: Path, grid: tuple[object, ...]) -> None:
    data = ("--data", "raw/chat.jsonl", "raw/code.parquet", "essays=raw/notes.json")
    sweep = ("--sweep", "rank=" + ",".join(map(str, RANKS)), "--eval", "essays=raw/notes.json")
    made = cappuccino("init", "--backbone", "backbone", *data, *sweep, "--epochs", 0.4, "--gpu", "cpu=2:8", "--json")
    assert made.code == 0, made.err
    assert {name: (d["form"], d["num_samples"]) for name, d in made.json["datasets"].items()} == {
        "chat": ("messages", SAMPLES),
        "code": ("prompt_completion", SAMPLES),
        "essays": ("text", SAMPLES),
        "essays-eval": ("text", SAMPLES),
    }
    names = {f"{dataset}-r{rank}": rank for dataset in ("chat", "code", "essays") for rank in RANKS}
    assert made.json["steps"] == dict.fromkeys(names, 6)  # 0.4 * 60 samples, 4 a step
    profile, plan, run = (shlex.split(command)[1:] for command in made.json["next"])
    whole = ("--time-budget", "none", "--repeats", 1, "--micro-batches", 1)
    for command in ((*profile, *whole, *grid), (*plan, "--time-limit", 2)):
        done = cappuccino(*command)
        assert done.code == 0, done.err
    done = cappuccino(*run, "--json")
    assert done.code == 0, done.err
    assert set(done.json["adapters"]) == set(names)
    evaluated = {name: [e["steps"] for e in found["evaluations"]] for name, found in done.json["adapters"].items()}
    assert evaluated == {name: [2, 4, 6] if name.startswith("essays") else [] for name in names}
    backbone = AutoModelForCausalLM.from_pretrained("backbone")
    for name, rank in names.items():
        model = PeftModel.from_pretrained(backbone, user / "adapters" / name)
        weights = {key: w for key, w in model.named_parameters() if "lora_B" in key}
        assert {w.shape[1] for w in weights.values()} == {rank}
        assert len(weights) == 3 * 7  # all linear modules of three layers
        assert all(w.abs().sum() > 0 for w in weights.values())  # they begin at 0
        backbone = model.unload()


def test_the_commands_that_come_next_are_told(user: Path) -> None:
    options = (
        "--gpu",
        "h100-80gb=8",
        "--gpu",
        "mine=2:24",
        "--sweep",
        "rank=8,16",
        "--sweep",
        "learning_rate=1e-4,2e-4",
    )
    made = cappuccino("init", "--backbone", "backbone", "--data", "raw/chat.jsonl", "-o", "in/chat.yaml", *options)
    assert made.code == 0, made.err
    assert "4 adapters, 180 steps in in/chat.yaml, lengths in in/chat-lengths.json" in made.out  # 3 passes of 15 steps
    assert "plans may use 8 x h100-80gb of 80 GiB (memory by the catalogue), 2 x mine of 24 GiB (as given)" in made.out
    commands = [line.strip() for line in made.out.splitlines() if line.startswith("  cappuccino ")]
    assert [shlex.split(command)[1] for command in commands] == ["profile", "profile", "plan", "run"]
    assert read_yaml(user / "in" / "chat.yaml")["datasets"]["chat"]["source"] == "../raw/chat.jsonl"
    again = cappuccino("init", "--backbone", "backbone", "--data", "raw/chat.jsonl", "-o", "in/chat.yaml")
    one_clear_error(again, "in/chat.yaml: is there already", "--force")


def test_an_estimate_takes_the_place_of_a_profile(user: Path) -> None:
    options = ("--gpu", "a100-40gb=2", "--estimate", "--json")
    made = cappuccino("init", "--backbone", "backbone", "raw/notes.json", *options)
    assert made.code == 0, made.err
    assert [shlex.split(command)[1] for command in made.json["next"]] == ["plan", "run"]
    planned = cappuccino(*shlex.split(made.json["next"][0])[1:], "--time-limit", 1, "--json")
    assert planned.code == 0, planned.err
    assert planned.json["checked"]


def test_errors_name_what_is_wrong(user: Path) -> None:
    one_clear_error(cappuccino("init", "--backbone", "backbone"), "--data: is not given")
    one_clear_error(cappuccino("init", "--backbone", "none", "raw/chat.jsonl"), "none: is not a folder")
    one_clear_error(
        cappuccino("init", "--backbone", "backbone/config.json", "raw/chat.jsonl"), "no tokenizer beside it"
    )
    broken = user / "raw" / "broken.jsonl"
    broken.write_text('{"messages": "hi"}\n')
    one_clear_error(cappuccino("init", "--backbone", "backbone", "raw/broken.jsonl"), "raw/broken.jsonl: row 0")
    assert not (user / "instance.yaml").exists()
    assert not (user / "lengths.json").exists()
