"""Adapters as PEFT saves them, put together from the stages' parts; the joining needs no torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from cappuccino.files import read_json, write_atomically
from cappuccino.runtime.lora.adapter_folder import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from cappuccino.runtime.lora.multi_lora import MultiLora


def write_parts(lora: "MultiLora", stage: int, folder: Path) -> None:
    """Write a stage's part of every adapter, and on the first stage their configurations.

    Parameters
    ----------
    lora
        The stage's adapters.
    stage
        Index of the stage.
    folder
        Where parts and configurations go.
    """
    for position, config in enumerate(lora.configs):
        write_part(lora, position, stage, folder)
        if stage == 0:
            fields = config.to_dict() | {"inference_mode": True}
            text = json.dumps(fields, indent=2, sort_keys=True, default=_plain)
            write_atomically(folder / f"adapter-{position}.json", text + "\n")


def write_part(lora: "MultiLora", position: int, stage: int, folder: Path, step: int | None = None) -> None:
    """Write a stage's part of one adapter: at the end, or as an optimizer step has left it."""
    from safetensors.torch import save_file  # noqa: PLC0415

    file = _part(folder, position, stage, step)
    if not file.exists():
        save_file(lora.state_dict(position), file)


def join_parts(
    folder: Path, position: int, num_stages: int, target: Path, backbone: str, step: int | None = None
) -> None:
    """Write one adapter as a folder that `PeftModel.from_pretrained` loads.

    Parameters
    ----------
    folder
        Where `write_parts` wrote.
    position
        Of the adapter in the replica.
    num_stages
        Of the replica.
    target
        Folder to create.
    backbone
        Name of the backbone, which PEFT looks it up by.
    step
        After which its weights are taken; by default those at the end.
    """
    weights: dict[str, Any] = {}
    for stage in range(num_stages):
        part = load_arrays(_part(folder, position, stage, step))
        twice = weights.keys() & part.keys()
        if twice:
            raise RuntimeError(f"stage {stage} holds {sorted(twice)[0]}, which an earlier stage holds too")
        weights.update(part)
    target.mkdir()
    save_arrays(dict(sorted(weights.items())), target / WEIGHTS, metadata={"format": "pt"})
    fields = read_json(folder / f"adapter-{position}.json") | {"base_model_name_or_path": backbone}
    write_atomically(target / CONFIG, json.dumps(fields, indent=2) + "\n")


def _part(folder: Path, position: int, stage: int, step: int | None) -> Path:
    behind = "" if step is None else f"-step-{step}"
    return folder / f"adapter-{position}-stage-{stage}{behind}.safetensors"


def _plain(value: object) -> object:
    """Return what JSON can hold of a field of PEFT's configuration."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
