"""What `config.json` of a backbone must say for the runtime to train on it; needs no torch."""

from pathlib import Path

from cappuccino.backbone import BackboneShape, read_backbone_shape
from cappuccino.errors import InputError
from cappuccino.files import read_json

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Values of `model_type` whose forward pass is embedding, decoder layers, norm, head and nothing else."""

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def read_trainable_shape(path: Path) -> BackboneShape:
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
    return read_backbone_shape(file)


def read_positions(folder: Path) -> int | None:
    """Return the most tokens that a sample may have, as `config.json` says; None where it does not."""
    config = read_json(folder / "config.json")
    positions = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return positions if isinstance(positions, int) and positions > 0 else None


def is_configuration(path: Path) -> bool:
    """Return whether a backbone is given by its configuration alone, and so has random weights."""
    return path.suffix == ".json" and path.is_file()
