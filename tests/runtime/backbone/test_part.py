import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.small import SIZES, save_llama, save_qwen2
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cappuccino.errors import InputError
from cappuccino.runtime.backbone.attention import Packing
from cappuccino.runtime.backbone.config import SUPPORTED, read_trainable_shape
from cappuccino.runtime.backbone.part import BackbonePart

CPU = torch.device("cpu")
EXTRA = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 5},
    "smollm3": {"no_rope_layer_interval": 2},
}


def parts(path: Path, splits: list[int]) -> list[BackbonePart]:
    edges = [0, *splits]
    return [BackbonePart(path, range(a, b), CPU, torch.float64) for a, b in pairwise(edges)]


@pytest.mark.parametrize("kind", SUPPORTED)
def test_parts_in_a_row_equal_the_whole_model(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, num_hidden_layers=3, **EXTRA.get(kind, {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    read_trainable_shape(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="sdpa")
    ids = torch.randint(3, 64, (1, 12))
    lengths = (4, 8)
    packing = Packing(lengths, torch.tensor([0, 4, 12], dtype=torch.int32))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    first, middle, last = parts(tmp_path, [1, 2, 3])
    hidden = first.embed(ids)
    for part in (first, middle, last):
        hidden = part.decode(hidden, positions, packing)
    logits = last.logits(hidden, torch.arange(12))
    expected = torch.cat([whole(sample).logits[0] for sample in ids.split(lengths, dim=1)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)  # norms and rotations are float32 in both


def test_recomputed_layers_keep_their_input_only(tmp_path: Path) -> None:
    (part,) = parts(save_llama(tmp_path), [4])
    packing = Packing((12,), torch.tensor([0, 12], dtype=torch.int32))
    positions, contexts = torch.arange(12)[None], []
    kept = {}
    gradients = {}

    @contextmanager
    def again() -> Iterator[None]:
        contexts.append("in")
        yield

    for name, context in (("none", None), ("full", again)):
        storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in part.parameters()}
        hidden = part.embed(torch.arange(12)[None]).detach().requires_grad_()

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = part.decode(hidden, positions, packing, context)
        kept[name] = sum(storages.values())
        assert not contexts  # the forward is the one that is not repeated
        (gradients[name],) = torch.autograd.grad(out.square().sum(), hidden)
    # 4 layers of 12 tokens in float64
    assert kept["full"] == 4 * 12 * SIZES["hidden_size"] * 8 < kept["none"] / 4
    assert contexts == ["in"] * 4
    torch.testing.assert_close(gradients["full"], gradients["none"], rtol=0, atol=0)


@pytest.mark.parametrize("shards", ["gone", "old"])
def test_a_single_file_goes_before_an_index_of_earlier_shards(shards: str, tmp_path: Path) -> None:
    # as transformers reads a folder into which a checkpoint was saved again, or copied
    save_llama(tmp_path)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "model.safetensors")
    if shards == "gone":
        for file in tmp_path.glob("model-*.safetensors"):
            file.unlink()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight
    torch.testing.assert_close(parts(tmp_path, [4])[0].model.lm_head.weight, expected.double(), rtol=0, atol=0)


@pytest.mark.parametrize("shard", [None, "../model.safetensors", 3])
def test_an_index_that_names_no_file_of_the_folder_is_refused(shard: object, tmp_path: Path) -> None:
    index = save_llama(tmp_path) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"index\.json: weight_map\.model\.norm\.weight: .* is no name of a file"):
        parts(tmp_path, [4])


def test_weights_of_another_shape_than_the_configuration_are_named(tmp_path: Path) -> None:
    config = save_llama(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 40}))
    with pytest.raises(InputError, match=r"\.safetensors: .*mlp.* has shape \(.*48.*\), by config\.json \(.*40"):
        parts(tmp_path, [4])


def test_a_part_holds_its_layers_only(tmp_path: Path) -> None:
    first, last = parts(save_llama(tmp_path), [3, 4])
    assert [isinstance(layer, nn.Identity) for layer in first.model.model.layers] == [False] * 3 + [True]
    assert [isinstance(layer, nn.Identity) for layer in last.model.model.layers] == [True] * 3 + [False]
    assert isinstance(first.model.lm_head, nn.Identity)
    assert isinstance(last.model.model.embed_tokens, nn.Identity)
    for part in (first, last):
        assert not any(t.is_meta for t in [*part.model.parameters(), *part.model.buffers()])
        assert not any(p.requires_grad for p in part.model.parameters())


def test_files_of_other_stages_stay_closed(tmp_path: Path) -> None:
    index = json.loads((save_llama(tmp_path) / "model.safetensors.index.json").read_text())["weight_map"]
    mine = {file for name, file in index.items() if name.startswith("model.layers.1.")}
    foreign = set(index.values()) - mine
    assert foreign
    for file in foreign:
        (tmp_path / file).unlink()
    BackbonePart(tmp_path, range(1, 2), CPU, torch.float32)


def test_a_tied_head_is_read_from_the_embedding(tmp_path: Path) -> None:
    first, last = parts(save_qwen2(tmp_path), [2, 4])
    assert torch.equal(first.model.model.embed_tokens.weight, last.model.lm_head.weight)
    (whole,) = parts(tmp_path, [4])
    assert whole.model.model.embed_tokens.weight.data_ptr() == whole.model.lm_head.weight.data_ptr()


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    file = save_qwen2(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    BackbonePart(tmp_path, range(2), CPU, torch.float32)
    with pytest.raises(InputError, match=r"model.layers.2.mlp.up_proj.weight: is missing in the checkpoint"):
        BackbonePart(tmp_path, range(2, 4), CPU, torch.float32)


def test_missing_and_broken_weights_are_named(tmp_path: Path) -> None:
    file = save_qwen2(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
        BackbonePart(tmp_path, range(4), CPU, torch.float32)
    file.unlink()
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
        BackbonePart(tmp_path, range(4), CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, 'model_type: "gemma2" is not supported'),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling: type "dynamic"'),
        ({"rope_parameters": {"rope_type": "longrope"}}, 'rope_parameters: type "longrope"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config: is not supported"),
        ({"num_hidden_layers": None}, "num_hidden_layers: None is no positive integer"),
    ],
)
def test_unsupported_configurations_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, **SIZES, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        read_trainable_shape(tmp_path)
    assert message in str(error.value)


def test_missing_folder_and_configuration_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: is not a folder"):
        read_trainable_shape(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config.json: file not found"):
        read_trainable_shape(tmp_path)
