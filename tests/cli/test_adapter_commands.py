"""merge and push as a user calls them; what they do is tested with the runtime."""

from pathlib import Path

import pytest
from cli.conftest import cappuccino, one_clear_error

pytest.importorskip("torch")
pytest.importorskip("peft")

import huggingface_hub
from helpers.small import save_llama
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    save_llama(folder / "backbone", layers=1)
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder / "a")
    return folder


def test_merge_writes_a_model_once(folders: Path, tmp_path: Path) -> None:
    options = ("--backbone", folders / "backbone", "-o", tmp_path / "merged")
    done = cappuccino("merge", folders / "a", *options, "--dtype", "bfloat16", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.json == {"adapter": str(folders / "a"), "model": str(tmp_path / "merged")}
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype) == "torch.bfloat16"
    one_clear_error(cappuccino("merge", folders / "a", *options), "merged", "is there already")
    one_clear_error(cappuccino("merge", folders / "backbone", *options[:2], "-o", tmp_path / "new"), "is no adapter")


def test_push_without_a_token_is_one_error(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    one_clear_error(cappuccino("push", folders / "a", "me/a", "--private"), "there is no token", "hf auth login")


def test_usage_errors_exit_2(folders: Path) -> None:
    assert cappuccino("merge", folders / "a").code == 2
    assert cappuccino("push", folders / "a").code == 2
