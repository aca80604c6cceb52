"""What `config.json` of a backbone must say for the runtime to train on it; needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappuccino.costs.adapters import LayerShape
from cappuccino.errors import InputError
from cappuccino.files import read_json

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Values of `model_type` whose forward pass is embedding, decoder layers, norm, head and nothing else."""

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class BackboneShape:
    """The sizes that planning a run needs."""

    num_layers: int
    """Decoder layers."""
    hidden_size: int
    """Width of the activations that stages exchange."""
    num_attention_heads: int
    """Query heads."""
    vocab_size: int
    """Rows of the embedding."""
    layer: LayerShape
    """Widths of a decoder layer's modules."""


def read_backbone_shape(path: Path) -> BackboneShape:
    """Read `config.json` in the backbone folder (or the file itself) and refuse what cannot be trained without loss.

    Raises
    ------
    InputError
        When the folder or the file is missing, or the architecture is not supported.
    """
    if not path.is_dir() and not is_configuration(path):
        raise InputError(path, "", "is not a folder", "name the folder of a Hugging Face checkpoint")
    file = path if is_configuration(path) else path / "config.json"
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(file, "", "is not a JSON object", "give the config.json of a Hugging Face checkpoint")
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise InputError(file, "model_type", f'"{kind}" is not supported', f"use one of {', '.join(SUPPORTED)}")
    if config.get("attention_dropout"):
        problem = f"{config['attention_dropout']} would make the result depend on the packing"
        raise InputError(file, "attention_dropout", problem, "set it to 0.0")
    if config.get("quantization_config"):
        raise InputError(file, "quantization_config", "is not supported", "give an unquantised checkpoint")
    for field in ("rope_parameters", "rope_scaling"):
        rope = config.get(field) or {}
        rope_type = rope.get("rope_type", rope.get("type"))
        if rope_type in _LENGTH_DEPENDENT_ROPE:
            problem = f'type "{rope_type}" makes a sample depend on what it is packed with'
            raise InputError(file, field, problem, "use a backbone with another type")
    hidden, heads = _size(config, "hidden_size", file), _size(config, "num_attention_heads", file)
    width = _size(config, "head_dim", file) if config.get("head_dim") is not None else hidden // heads
    groups = _size(config, "num_key_value_heads", file) if config.get("num_key_value_heads") is not None else heads
    return BackboneShape(
        num_layers=_size(config, "num_hidden_layers", file),
        hidden_size=hidden,
        num_attention_heads=heads,
        vocab_size=_size(config, "vocab_size", file),
        layer=LayerShape(hidden, _size(config, "intermediate_size", file), heads * width, groups * width),
    )


def is_configuration(path: Path) -> bool:
    """Return whether a backbone is given by its configuration alone, and so has random weights."""
    return path.suffix == ".json" and path.is_file()


def _size(config: dict[str, Any], field: str, file: Path) -> int:
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InputError(file, field, f"{value!r} is no positive integer", "give the config.json of the checkpoint")
    return value
