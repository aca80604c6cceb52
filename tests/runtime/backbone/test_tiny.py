import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from cappuccino.errors import InputError
from cappuccino.runtime.backbone import tiny

TEXTS = ("def f(x):\n    return x  # plain", "  indented\n\n\tand tabbed ", "Grüße, 咖啡 ☕", "")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    tiny.build_tiny_backbone(folder, vocab_size=512, hidden=64, layers=3, heads=4, kv_heads=2)
    return folder


@pytest.fixture(scope="module")
def datasets(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, tiny.build_text_datasets(folder, backbone, samples=100, max_length=512, seed=3)


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_importing_the_module_does_not_import_torch():
    code = "import sys, cappuccino.runtime.backbone.tiny; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_restores_any_text(backbone):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    assert len(tokenizer) == 512
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert all(i > 2 for i in ids)
    code = TEXTS[0]
    assert len(tokenizer(code)["input_ids"]) < len(code)  # it has learnt merges


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_model_loads_with_the_shape_asked_for(model_type, backbone, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = backbone
    if model_type == "qwen2":
        folder = tmp_path
        tiny.build_tiny_backbone(folder, vocab_size=300, hidden=64, layers=2, heads=4, kv_heads=2, model_type="qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert config.model_type == model_type
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (64, 4, 2)
    assert config.intermediate_size == 192  # 8/3 x 64 = 170.7, the next multiple of 64
    assert model.dtype == torch.float32
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, config.vocab_size)
    assert torch.isfinite(logits).all()


def test_same_seed_gives_the_same_files_and_leaves_the_random_state(backbone, tmp_path):
    import torch

    state = torch.random.get_rng_state()
    shape = {"vocab_size": 512, "hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2}
    tiny.build_tiny_backbone(tmp_path / "same", **shape)
    tiny.build_tiny_backbone(tmp_path / "other", **shape, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (backbone / name).read_bytes(), name
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (backbone / weights).read_bytes()


def test_dataset_rows_match_lengths_and_tokenizer(datasets, backbone):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    folder, lengths = datasets
    assert tuple(lengths) == tiny.DATASETS
    for name, values in lengths.items():
        rows = read_rows(folder / f"{name}.jsonl")
        assert [len(row["input_ids"]) for row in rows] == values.tolist()
        assert values.shape == (100,)
        assert values.max() <= 512
        assert len({row["text"] for row in rows}) == 100
        for row in rows:
            whole = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
            assert row["input_ids"] == whole[:512]
    # one sample at least must have been cut, or the assertion above would not have tested the cut
    assert any(values.max() == 512 for values in lengths.values())


def test_datasets_differ_clearly_in_length(datasets):
    _, lengths = datasets
    docstrings, functions, topics = (np.median(lengths[name]) for name in tiny.DATASETS)
    assert 2 * docstrings < functions
    assert 1.2 * functions < topics


def test_datasets_follow_the_seed(datasets, backbone, tmp_path):
    folder, _ = datasets
    tiny.build_text_datasets(tmp_path / "same", backbone, samples=100, max_length=512, seed=3)
    tiny.build_text_datasets(tmp_path / "other", backbone, samples=100, max_length=512, seed=4)
    for name in tiny.DATASETS:
        text = (folder / f"{name}.jsonl").read_text()
        assert (tmp_path / "same" / f"{name}.jsonl").read_text() == text
        assert (tmp_path / "other" / f"{name}.jsonl").read_text() != text


def test_texts_are_what_they_are_called():
    import ast

    assert any(text.startswith("def dedent(text):") for text in tiny.functions())
    assert "Remove any common leading whitespace from every line in `text`." in "\n".join(tiny.docstrings())
    assert all(isinstance(ast.parse(t).body[0], ast.FunctionDef | ast.AsyncFunctionDef) for t in tiny.functions()[:200])
    assert any("Assert statements are a convenient way" in text for text in tiny.topics())


def test_passages_keep_every_paragraph_in_order():
    together = "\n\n".join(tiny.passages(2000, np.random.default_rng(0)))
    for topic in tiny.topics()[:5]:
        position = 0
        for paragraph in filter(None, topic.split("\n\n")):
            position = together.index(paragraph, position)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"vocab_size": 258}, "vocab_size"),
        ({"hidden": 60, "heads": 8}, "hidden"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
    ],
)
def test_impossible_shapes_are_refused_before_anything_is_written(change, field, tmp_path):
    with pytest.raises(InputError, match=field):
        tiny.build_tiny_backbone(tmp_path / "backbone", **change)
    assert not (tmp_path / "backbone").exists()


def test_more_samples_than_texts_are_refused(backbone, tmp_path):
    with pytest.raises(InputError, match="ask for 1 to"):
        tiny.build_text_datasets(tmp_path, backbone, samples=100_000, max_length=512)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: file not found"):
        tiny.build_text_datasets(tmp_path / "data", tmp_path, samples=1, max_length=16)
