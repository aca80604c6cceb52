"""What a folder must hold to be an adapter of PEFT; needs no torch."""

from pathlib import Path
from typing import Any

from cappuccino.errors import InputError
from cappuccino.files import read_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "README.md"


def require_adapter(folder: Path) -> dict[str, Any]:
    """Return the configuration of the LoRA adapter in a folder.

    Raises
    ------
    InputError
        When the folder is missing, or is none of a LoRA adapter in safetensors.
    """
    remedy = "name the folder of an adapter, such as the one of `run` that has its name"
    if not folder.is_dir():
        raise InputError(folder, "", "is not a folder", remedy)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(folder, "", f"is no adapter: it holds no {file}", remedy)
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise InputError(folder / CONFIG, "peft_type", f'"{kind}" is not LORA', "give a LoRA adapter")
    return config
