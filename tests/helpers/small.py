"""A backbone, instances and data of a few kilobytes."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cappuccino.instance import Adapter, GpuPool, Instance

VOCABULARY = 64
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # large enough for attention to matter
}


def save_llama(path: Path, layers: int = 4, **changes: object) -> Path:
    """Save a random Llama in several files, so that a stage can leave some closed."""
    return _save(LlamaForCausalLM, LlamaConfig(**{**SIZES, **changes}, num_hidden_layers=layers), path)


def save_qwen2(path: Path, layers: int = 4, **changes: object) -> Path:
    """Save a random Qwen2 with its head tied to the embedding, in one file."""
    config = Qwen2Config(**SIZES, num_hidden_layers=layers, tie_word_embeddings=True, **changes)
    return _save(Qwen2ForCausalLM, config, path, shard="1GB")


def _save(model_class: type, config: PreTrainedConfig, path: Path, shard: str = "20KB") -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(path, max_shard_size=shard)
    return path


def save_tokenizer(
    path: Path, *, adds: tuple[str, ...] = (), begin: str | None = "<s>", end: str | None = "</s>"
) -> Path:
    """Save a tokenizer of letters: <s> is 0, </s> 1, <pad> 2, a 3, b 4, the line break 5, all others 2.

    `adds` says which of "bos" and "eos" it puts around every text by itself, `begin` and `end` what it declares.
    """
    pieces = ["<s>", "</s>", "<pad>", "a", "b", "\n"]
    letters = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token="<pad>"))
    letters.add_special_tokens(pieces[:3])
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    form = f"{'<s> ' if 'bos' in adds else ''}$A{' </s>' if 'eos' in adds else ''}"
    letters.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 0), ("</s>", 1)])
    marks = {"bos_token": begin, "eos_token": end, "pad_token": "<pad>", "unk_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=letters, **marks).save_pretrained(path)
    return path


def instance_of(adapters: list[Adapter], lengths: dict[str, list[int]], longest: int = 24) -> Instance:
    """Return an instance with one pool of CPUs."""
    return Instance(
        name="tiny",
        backbone="tiny",
        cost_table=Path("unused.csv"),
        gpu_pools=(GpuPool(gpu="cpu", count=8, memory_gib=1.0),),
        max_sequence_length=longest,
        dataset_lengths={name: np.minimum(values, longest) for name, values in lengths.items()},
        adapters=tuple(adapters),
    )


def write_data(folder: Path, lengths: dict[str, list[int]], seed: int = 0) -> Path:
    """Write random samples of the given lengths; a fifth of the labels carries no loss."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for name, values in lengths.items():
        rows = []
        for length in values:
            ids = rng.integers(3, VOCABULARY, length)
            labels = np.where(rng.random(length) < 0.2, -100, ids)
            rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
