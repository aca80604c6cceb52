"""The merged model computes what the backbone with PEFT's adapter computes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.small import SIZES, VOCABULARY, save_llama, save_qwen2, save_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cappuccino.errors import InputError
from cappuccino.runtime.lora.merge import merge_adapter


def save_adapter(path: Path, backbone: Path, targets: object, **changes: object) -> Path:
    """Let PEFT save an adapter whose B is not zero, in float64."""
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float64)
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | changes
    get_peft_model(model, LoraConfig(target_modules=targets, **settings)).save_pretrained(
        path, save_embedding_layers=False
    )
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, VOCABULARY).reshape(1, -1)
    with torch.no_grad():
        return model.eval()(ids).logits


def types(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for file in folder.glob("*.safetensors") for tensor in load_file(file).values()}


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # its head is tied to the embedding
@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (["q_proj", "v_proj"], {}),
        ("all-linear", {"use_rslora": True}),
        (["down_proj", "lm_head"], {}),
        (["lm_head"], {"lora_dropout": 0.5}),
        (["q_proj"], {"use_dora": True}),
    ],
)
def test_logits_are_those_of_backbone_and_adapter(
    tmp_path: Path, backbones: dict[str, Path], family: str, targets: object, changes: dict[str, object]
) -> None:
    backbone = backbones[family]
    adapter = save_adapter(tmp_path / "adapter", backbone, targets, **changes)
    merge_adapter(adapter, backbone, tmp_path / "merged", "float64")
    assert not list((tmp_path / "merged").glob("adapter*"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float64
    plain = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float64)
    without = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, adapter))
    assert float((logits(merged) - expected).abs().max()) < 1e-8
    assert float((without - expected).abs().max()) > 1e-3
    tied = merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()
    assert tied == (family == "qwen2" and "lm_head" not in targets)


def test_the_tokenizer_comes_along_and_the_type_is_the_backbones(tmp_path: Path) -> None:
    backbone = save_tokenizer(save_llama(tmp_path / "backbone", layers=1))
    (backbone / "chat_template.jinja").write_text("{{ messages }}")
    adapter = save_adapter(tmp_path / "adapter", backbone, ["q_proj"])
    merge_adapter(adapter, backbone, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (backbone / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("ab")["input_ids"] == [3, 4]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert types(tmp_path / "merged") == {torch.float32}
    half = tmp_path / "new" / "half"
    merge_adapter(adapter, backbone, half, "bfloat16")
    assert types(half) == {torch.bfloat16}
    assert sorted(p.name for p in half.parent.iterdir()) == ["half"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter") / "adapter", llama, ["q_proj", "up_proj"])


def without(folder: Path, file: str) -> None:
    (folder / file).unlink()


def of_kind(folder: Path, kind: str) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": kind}))


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"adapter: is not a folder; name the folder of an adapter"),
        (lambda f: without(f, "adapter_config.json"), r"adapter: is no adapter: it holds no adapter_config\.json"),
        (lambda f: without(f, "adapter_model.safetensors"), r"is no adapter: it holds no adapter_model\.safetensors"),
        (lambda f: of_kind(f, "IA3"), r"adapter_config\.json: peft_type: \"IA3\" is not LORA; give a LoRA adapter"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json: is truncated"),
        (lambda f: (f / "adapter_model.safetensors").write_text("x"), r"adapter_model\.safetensors: cannot be read"),
        (
            without_a_tensor,
            r"adapter_model\.safetensors: base_model.*lora_A.*: is missing, the backbone .* needs \(",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, llama: Path, adapter: Path, spoil: object, message: str) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    spoil(folder)
    with pytest.raises(InputError, match=message):
        merge_adapter(folder, llama, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 16},
            r"lora_A\.weight: has shape \(4, 32\), the backbone .*other needs \(4, 16\); name",
        ),
        ({"layers": 3}, r"layers\.3\..*: has shape .*, the backbone .*other has no place for it; name the backbone"),
        ({"layers": 5}, r"layers\.4\..*: is missing, the backbone .*other needs"),
    ],
)
def test_another_backbone_is_refused(tmp_path: Path, adapter: Path, changes: dict[str, int], message: str) -> None:
    layers = {"num_hidden_layers": changes.get("layers", 4)}
    sizes = SIZES | layers | {k: v for k, v in changes.items() if k != "layers"}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=message):
        merge_adapter(adapter, tmp_path / "other", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]


def test_target_modules_that_the_backbone_does_not_have(tmp_path: Path, llama: Path, adapter: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["c_attn"]}))
    with pytest.raises(InputError, match=r"adapter: target_modules: \['c_attn'\] do not fit the backbone"):
        merge_adapter(folder, llama, tmp_path / "merged")


def test_a_checkpoint_with_a_tensor_missing_is_refused(tmp_path: Path) -> None:
    backbone = save_qwen2(tmp_path / "backbone", layers=2)
    adapter = save_adapter(tmp_path / "adapter", backbone, ["q_proj"])
    tensors = load_file(backbone / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"backbone: model\.layers\.1\.mlp\.up_proj\.weight: is missing in"):
        merge_adapter(adapter, backbone, tmp_path / "merged")
    (backbone / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"backbone: cannot be loaded"):
        merge_adapter(adapter, backbone, tmp_path / "merged")
    with pytest.raises(InputError, match=r"config\.json: has no weights; name the folder"):
        merge_adapter(adapter, backbone / "config.json", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "backbone"]


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=r"there: is there already; name another folder, or remove it"):
        merge_adapter(adapter, llama, tmp_path / "there")
    with pytest.raises(InputError, match=r'dtype: "int8" is not known; use one of float32'):
        merge_adapter(adapter, llama, tmp_path / "merged", "int8")

    backbone = save_tokenizer(Path(shutil.copytree(llama, tmp_path / "backbone")))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"merged: cannot be written \(No space left on device\)"):
        merge_adapter(adapter, backbone, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone", "there"]
    assert not list((tmp_path / "there").iterdir())
