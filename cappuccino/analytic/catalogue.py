"""Published specifications of backbones and GPUs; a backbone's may also be read from its `config.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappuccino.errors import InputError
from cappuccino.files import read_json

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "tf32": 4}
"""Bytes of a weight by type of computation; `tf32` keeps float32 and multiplies matrices in TF32."""


@dataclass(frozen=True)
class BackboneSpec:
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
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer's matrices (norms and biases, below 0.1%, are left out)."""
        return 2 * self.hidden * (self.query_width + self.kv_width) + 3 * self.hidden * self.intermediate

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding; the head has as many again unless tied."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole backbone."""
        tables = 1 if self.tied_embeddings else 2
        return self.num_layers * self.layer_parameters + tables * self.embedding_parameters


@dataclass(frozen=True)
class GpuSpec:
    """A GPU's data sheet; peaks are dense, TFLOP/s."""

    bf16_tflops: float
    """Matrix peak in bf16, and in fp16."""
    tf32_tflops: float
    """Matrix peak in TF32."""
    fp32_tflops: float
    """Peak in fp32, which has no matrix units."""
    bandwidth_gb_s: float
    """Memory bandwidth, GB/s (10^9 bytes)."""
    memory_gib: float
    """Memory as sold, taken as GiB."""
    link_gb_s: float
    """One direction of the GPU-to-GPU link, GB/s."""

    def tflops(self, dtype: str) -> float:
        """Return the peak in a type of computation of `DTYPES`, TFLOP/s."""
        return {"tf32": self.tf32_tflops, "float32": self.fp32_tflops}.get(dtype, self.bf16_tflops)


BACKBONES = {
    "Llama-2-7b-hf": BackboneSpec(32, 4096, 11008, 32, 32, 32000),
    "Llama-2-13b-hf": BackboneSpec(40, 5120, 13824, 40, 40, 32000),
    "Llama-3.1-8B": BackboneSpec(32, 4096, 14336, 32, 8, 128256),
    "Llama-3.1-70B": BackboneSpec(80, 8192, 28672, 64, 8, 128256),
    "Qwen2.5-7B-Instruct": BackboneSpec(28, 3584, 18944, 28, 4, 152064),
    "Qwen2.5-14B-Instruct": BackboneSpec(48, 5120, 13824, 40, 8, 152064),
    "Qwen2.5-32B-Instruct": BackboneSpec(64, 5120, 27648, 40, 8, 152064),
    "SmolLM2-135M-Instruct": BackboneSpec(30, 576, 1536, 9, 3, 49152, tied_embeddings=True),
}

GPUS = {
    "a100-40gb": GpuSpec(312, 156, 19.5, 1555, 40, 300),
    "a100-80gb": GpuSpec(312, 156, 19.5, 2039, 80, 300),
    "h100-80gb": GpuSpec(989, 494.7, 66.9, 3350, 80, 450),
    "h200-141gb": GpuSpec(989, 494.7, 66.9, 4800, 141, 450),
    "l40s-48gb": GpuSpec(362, 183, 91.6, 864, 48, 32),
}

_UNGATED = ("gpt_neox", "phi", "starcoder2", "nemotron")
"""Values of `model_type` whose layer has two matrices behind the attention, not three."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_CHECKPOINT = "give the config.json of a Hugging Face checkpoint"


def read_backbone_spec(path: Path) -> BackboneSpec:
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
    return BackboneSpec(
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
