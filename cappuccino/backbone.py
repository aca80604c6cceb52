"""The shape of a backbone: its linear modules and sizes, as published or as its `config.json` says; needs no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cappuccino.errors import InputError
from cappuccino.files import read_json

ALL_LINEAR: Literal["all-linear"] = "all-linear"
TargetModules = Sequence[str] | Literal["all-linear"]
"""As an instance and PEFT name them."""
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
HEAD = "lm_head"
MODULES_THERE_ARE = f"there are {', '.join((*ATTENTION_MODULES, *MLP_MODULES, HEAD))}, or {ALL_LINEAR} alone"


def unknown_modules(target_modules: TargetModules, num_layers: int | None = None) -> tuple[str, ...]:
    """Return the entries of `target_modules` that match no linear layer of a Llama-like backbone, in their order.

    An entry is the name of a module or the end of it, at a dot, as PEFT has it. Anything in a list is a name.

    Parameters
    ----------
    num_layers
        Decoder layers; None takes any number in a name to be one.
    """
    if isinstance(target_modules, str):
        return ()
    blocks = [f"self_attn.{m}" for m in ATTENTION_MODULES] + [f"mlp.{m}" for m in MLP_MODULES]

    def known(entry: str) -> bool:
        number = re.match(r"(?:(?:model\.)?layers\.)?(0|[1-9][0-9]{0,8})\.", entry)
        layer = "0" if number is None else number[1]
        if num_layers is not None and int(layer) >= num_layers:
            return False
        names = [HEAD, *(f"model.layers.{layer}.{block}" for block in blocks)]
        return any(name == entry or name.endswith(f".{entry}") for name in names)

    return tuple(entry for entry in target_modules if not known(entry))


@dataclass(frozen=True)
class LayerShape:
    """Widths of the linear modules of a decoder layer (Llama's and those built like it)."""

    hidden: int
    intermediate: int
    query: int
    """Query heads times the width of a head."""
    key_value: int
    """Key (and value) heads times the width of a head."""

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Input and output width of every linear module, by name."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """Weights of the layer's linear modules."""
        return sum(i * o for i, o in self.modules.values())


STATE_BYTES = 16
"""Of an adapter's parameter while it is trained: weight, gradient and two AdamW moments in 32 bit; twice in 64."""


@dataclass(frozen=True)
class BackboneShape:
    """Shape of a decoder-only transformer, from its published configuration."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocab: int
    tied_embeddings: bool = False
    head_width: int | None = None
    """Width of one attention head where it is not `hidden / num_heads`."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.hidden // self.num_heads

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer(self) -> LayerShape:
        """Widths of one decoder layer's modules."""
        return LayerShape(self.hidden, self.intermediate, self.query_width, self.kv_width)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer's matrices (norms and biases, below 0.1%, are left out)."""
        return self.layer.parameters

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; the head has as many again unless tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole backbone."""
        tables = 1 if self.tied_embeddings else 2
        return self.num_layers * self.layer_parameters + tables * self.embedding_parameters


BACKBONES = {
    "Llama-2-7b-hf": BackboneShape(32, 4096, 11008, 32, 32, 32000),
    "Llama-2-13b-hf": BackboneShape(40, 5120, 13824, 40, 40, 32000),
    "Llama-3.1-8B": BackboneShape(32, 4096, 14336, 32, 8, 128256),
    "Llama-3.1-70B": BackboneShape(80, 8192, 28672, 64, 8, 128256),
    "Qwen2.5-7B-Instruct": BackboneShape(28, 3584, 18944, 28, 4, 152064),
    "Qwen2.5-14B-Instruct": BackboneShape(48, 5120, 13824, 40, 8, 152064),
    "Qwen2.5-32B-Instruct": BackboneShape(64, 5120, 27648, 40, 8, 152064),
    "SmolLM2-135M-Instruct": BackboneShape(30, 576, 1536, 9, 3, 49152, tied_embeddings=True),
}


_UNGATED = ("gpt_neox", "phi", "starcoder2", "nemotron")
"""Values of `model_type` whose layer has two matrices behind the attention, not three."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_CHECKPOINT = "give the config.json of a Hugging Face checkpoint"


def read_backbone_shape(path: Path) -> BackboneShape:
    """Read the shape of a backbone from its folder or its `config.json`; needs neither torch nor its weights.

    `num_key_value_heads` is by default `num_attention_heads`, `head_dim` their part of `hidden_size`, and
    `tie_word_embeddings` false, as in Llama's configuration.

    Raises
    ------
    InputError
        When the file is missing, a size is missing or impossible, or the layers are not of this shape (experts, two
        matrices behind the attention) or not of this size (quantised).
    """
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(file, "", "is not a JSON object", _CHECKPOINT)
    if config.get("model_type") in _UNGATED:
        problem = f'"{config["model_type"]}" has layers of another shape'
        raise InputError(file, "model_type", problem, "profile the backbone instead")
    for field in (*_EXPERTS, "quantization_config"):
        if config.get(field):
            problem = f"{config[field]!r}: layers of that kind are not estimated"
            raise InputError(file, field, problem[:200], "profile the backbone instead")
    heads = _size(config, "num_attention_heads", file)
    hidden = _size(config, "hidden_size", file)
    kv_heads = heads if config.get("num_key_value_heads") is None else _size(config, "num_key_value_heads", file)
    if heads % kv_heads:
        problem = f"{kv_heads} does not divide num_attention_heads, {heads}"
        raise InputError(file, "num_key_value_heads", problem, _CHECKPOINT)
    width = None if config.get("head_dim") is None else _size(config, "head_dim", file)
    if width is None and hidden % heads:
        problem = f"is missing, and num_attention_heads, {heads}, does not divide hidden_size, {hidden}"
        raise InputError(file, "head_dim", problem, "add it, or correct the sizes")
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise InputError(file, "tie_word_embeddings", f"{tied!r} is not allowed", "write true or false")
    return BackboneShape(
        num_layers=_size(config, "num_hidden_layers", file),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size", file),
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab=_size(config, "vocab_size", file),
        tied_embeddings=tied,
        head_width=width,
    )


def _size(config: dict[str, Any], field: str, file: Path) -> int:
    if field not in config:
        nested = "text_config" in config
        remedy = "give the text_config in a file of its own" if nested else _CHECKPOINT
        raise InputError(file, field, "is missing", remedy)
    value = config[field]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(file, field, f"{value!r} is no positive integer", _CHECKPOINT)
    return value
