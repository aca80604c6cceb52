"""A tiny backbone with a real tokenizer, and real text to train on: made on the spot, nothing is downloaded.

The text ships with every Python: the language reference behind `help()`, and the standard library's own source. All of
it is the same for the same Python version, and so are tokenizer, weights and datasets.
"""

import ast
import json
import sysconfig
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cappuccino.errors import InputError
from cappuccino.files import read_text, write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
DATASETS = ("docstrings", "functions", "topics")
"""Names of the three datasets, from short samples to long ones."""

STDLIB_MODULES = (
    "argparse",
    "ast",
    "calendar",
    "configparser",
    "contextlib",
    "csv",
    "dataclasses",
    "difflib",
    "doctest",
    "enum",
    "fractions",
    "ftplib",
    "functools",
    "heapq",
    "inspect",
    "ipaddress",
    "mailbox",
    "optparse",
    "os",
    "pickle",
    "platform",
    "plistlib",
    "random",
    "shutil",
    "socket",
    "statistics",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "traceback",
    "typing",
    "uuid",
    "weakref",
)
"""Modules of one file each in every supported Python."""

_SHORTEST_TEXT = 16  # characters: below, there is nothing to learn
_SHORTEST_FUNCTION = 4  # lines
_CHARACTERS_PER_TOKEN = 3
_INTERMEDIATE_MULTIPLE = 64


def build_tiny_backbone(
    folder: Path,
    *,
    vocab_size: int = 1024,
    hidden: int = 256,
    layers: int = 8,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int | None = None,
    max_positions: int = 4096,
    seed: int = 0,
    model_type: Literal["llama", "qwen2"] = "llama",
) -> None:
    """Write a causal language model with random fp32 weights, and a tokenizer trained on this module's text.

    Afterwards `AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` work.

    Parameters
    ----------
    folder
        Where to; made if need be.
    vocab_size
        Tokens of the byte-level BPE tokenizer and rows of the embedding: at least 259 (256 bytes, 3 special tokens).
    hidden, layers, heads, kv_heads
        Shape of the decoder; `heads` divides `hidden`, `kv_heads` divides `heads`.
    intermediate
        Width of the MLP; by default 8/3 of `hidden`, rounded up to a multiple of 64.
    max_positions
        Longest sequence.
    seed
        Of the weights. The caller's random state is left as it is.
    model_type
        Architecture.

    Raises
    ------
    InputError
        When the shape is impossible.
    """
    _check_shape(vocab_size, hidden, heads, kv_heads, model_type)
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(train_tokenizer(vocab_size), folder, max_positions)
    multiple = _INTERMEDIATE_MULTIPLE
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": intermediate or -(-8 * hidden // (3 * multiple)) * multiple,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_positions,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    _save_model(shape, folder, seed, model_type)


def build_text_datasets(
    data_folder: Path, tokenizer_folder: Path, *, samples: int, max_length: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Write three datasets of real text as `<name>.jsonl`, a sample a line: `{"input_ids": [...], "text": "..."}`.

    `docstrings` has short samples, `functions` (source code) medium ones, `topics` (passages of the language reference)
    long ones. `input_ids` end with the end-of-sequence token and are cut at `max_length`; `text` is whole.

    Parameters
    ----------
    data_folder
        Where to; made if need be.
    tokenizer_folder
        Folder with a `tokenizer.json`, such as `build_tiny_backbone` writes.
    samples
        Samples of each dataset.
    max_length
        Longest sample, tokens.
    seed
        Which samples are drawn, and in which order.

    Returns
    -------
    dict
        Tokens of every sample in file order, by dataset name, shape (samples,).

    Raises
    ------
    InputError
        When there is no tokenizer, or fewer texts than samples.
    """
    tokenizer = _load_tokenizer(tokenizer_folder)
    if max_length < 1:
        raise InputError("max_length", "", f"{max_length} is not allowed", "give a positive number of tokens")
    data_folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "docstrings": docstrings(),
        "functions": functions(),
        "topics": passages(max_length * _CHARACTERS_PER_TOKEN, np.random.default_rng([seed, len(DATASETS)])),
    }
    return {
        name: _write_dataset(
            data_folder / f"{name}.jsonl",
            texts[name],
            tokenizer,
            samples=samples,
            max_length=max_length,
            seed=[seed, i],
        )
        for i, name in enumerate(DATASETS)
    }


def train_tokenizer(vocab_size: int) -> "Tokenizer":
    """Return a byte-level BPE tokenizer trained on all the text: it encodes and restores any string."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*topics(), *docstrings(), *functions()], trainer)
    return tokenizer


def topics() -> list[str]:
    """Return the topics of the language reference, sorted by name."""
    from pydoc_data.topics import topics as by_name  # noqa: PLC0415

    return [by_name[name].strip() for name in sorted(by_name)]


def passages(characters: int, rng: np.random.Generator) -> list[str]:
    """Return the topics in passages of whole paragraphs, drawn to span from half of `characters` to 5/4 of them.

    A passage is shorter where its topic ends, and longer where one paragraph is.
    """
    result = []
    for topic in topics():
        target, passage = rng.integers(characters // 2, characters * 5 // 4 + 1), ""
        for paragraph in topic.split("\n\n"):
            if passage and len(passage) + len(paragraph) > target:
                result.append(passage)
                target, passage = rng.integers(characters // 2, characters * 5 // 4 + 1), ""
            passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        result.append(passage)
    return _distinct(result)


def docstrings() -> list[str]:
    """Return the docstrings of the standard library's functions and classes, in a fixed order."""
    return list(_stdlib_texts()[0])


def functions() -> list[str]:
    """Return the source code of the standard library's functions and methods, unindented, in a fixed order."""
    return list(_stdlib_texts()[1])


@cache
def _stdlib_texts() -> tuple[list[str], list[str]]:
    """Return docstrings and functions; read once, since parsing takes seconds."""
    folder = Path(sysconfig.get_path("stdlib"))
    found_docstrings, found_functions = [], []
    for module in STDLIB_MODULES:
        source = read_text(folder / f"{module}.py")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            found_docstrings.append(ast.get_docstring(node) or "")
            body = lines[node.lineno - 1 : node.end_lineno]
            if not isinstance(node, ast.ClassDef) and len(body) >= _SHORTEST_FUNCTION:
                found_functions.append(textwrap.dedent("\n".join(body)))
    return _distinct(found_docstrings), _distinct(found_functions)


def _distinct(texts: Sequence[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if len(text) >= _SHORTEST_TEXT]


def _write_dataset(
    path: Path, texts: list[str], tokenizer: "Tokenizer", *, samples: int, max_length: int, seed: Sequence[int]
) -> np.ndarray:
    if not 1 <= samples <= len(texts):
        remedy = f"ask for 1 to {len(texts)} at this max_length ({max_length})"
        raise InputError(path, "samples", f"{samples} samples of {len(texts)} texts", remedy)
    chosen = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:samples]]
    end = tokenizer.token_to_id(EOS)
    encoded = tokenizer.encode_batch(chosen, add_special_tokens=False)
    ids = [[*sample.ids, end][:max_length] for sample in encoded]
    rows = (json.dumps({"input_ids": i, "text": t}) for i, t in zip(ids, chosen, strict=True))
    write_atomically(path, "".join(f"{row}\n" for row in rows))
    return np.array([len(i) for i in ids], dtype=np.int64)


def _load_tokenizer(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_str(read_text(folder / "tokenizer.json"))
    if tokenizer.token_to_id(EOS) is None:
        problem = f'has no end-of-sequence token "{EOS}"'
        raise InputError(folder / "tokenizer.json", "", problem, "use a tokenizer of build_tiny_backbone")
    return tokenizer


def _save_tokenizer(tokenizer: "Tokenizer", folder: Path, max_positions: int) -> None:
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _save_model(shape: dict[str, int], folder: Path, seed: int, model_type: str) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape), dtype=torch.float32)
    model.save_pretrained(folder)


def _check_shape(vocab_size: int, hidden: int, heads: int, kv_heads: int, model_type: str) -> None:
    if model_type not in ("llama", "qwen2"):
        raise InputError("model_type", "", f'"{model_type}" is not supported', "use llama or qwen2")
    if vocab_size < 256 + 3:
        raise InputError("vocab_size", "", f"{vocab_size} is too small", "give at least 259 (bytes, special tokens)")
    if hidden % (2 * heads):
        raise InputError("hidden", "", f"{hidden} does not split into {heads} heads of even width", "give a multiple")
    if heads % kv_heads:
        raise InputError("kv_heads", "", f"{kv_heads} does not divide {heads} heads", "give a divisor")
