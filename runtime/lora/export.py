"""Adapters as PEFT saves them, put together from the stages' parts; needs no torch but for PEFT's configurations."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from cappuccino.files import write_atomically
from cappuccino.runtime.lora.adapter_folder import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from peft import LoraConfig

    from cappuccino.runtime.lora.multi_lora import MultiLora


def write_part(lora: "MultiLora", position: int, stage: int, folder: Path, step: int) -> None:
    """Write a stage's part of one adapter as an optimizer step has left it, where that is not there yet."""
    from safetensors.torch import save_file  # noqa: PLC0415

    file = part_file(folder, position, stage, step)
    if not file.exists():
        save_file(lora.state_dict(position), file)


def part_file(folder: Path, position: int, stage: int, step: int) -> Path:
    """Return where a stage writes its part of an adapter."""
    return folder / f"adapter-{position}-stage-{stage}-step-{step}.safetensors"


def plain_fields(config: "LoraConfig") -> dict[str, Any]:
    """Return PEFT's configuration of a trained adapter as JSON can hold it, all but the name of its backbone."""
    fields = config.to_dict() | {"inference_mode": True}
    plain: dict[str, Any] = json.loads(json.dumps(fields, sort_keys=True, default=_plain))
    return plain


def join_parts(parts: Iterable[Path], fields: Mapping[str, Any], target: Path, backbone: str) -> None:
    """Write one adapter as a folder that `PeftModel.from_pretrained` loads.

    Parameters
    ----------
    parts
        Files of the stages' weights under PEFT's keys.
    fields
        As of `plain_fields`.
    target
        Folder to create.
    backbone
        Name of the backbone, which PEFT looks it up by.
    """
    weights: dict[str, Any] = {}
    for file in parts:
        part = load_arrays(file)
        twice = weights.keys() & part.keys()
        if twice:
            raise RuntimeError(f"{file} holds {sorted(twice)[0]}, which another stage holds too")
        weights.update(part)
    target.mkdir()
    save_arrays(dict(sorted(weights.items())), target / WEIGHTS, metadata={"format": "pt"})
    write_atomically(target / CONFIG, json.dumps({**fields, "base_model_name_or_path": backbone}, indent=2) + "\n")


def _plain(value: object) -> object:
    """Return what JSON can hold of a field of PEFT's configuration."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
