"""An adapter and its backbone as one plain model."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cappuccino.errors import InputError
from cappuccino.files import new_folder
from cappuccino.runtime.backbone.config import is_configuration, read_trainable_shape
from cappuccino.runtime.lora.adapter_folder import WEIGHTS, require_adapter

DTYPES = ("float32", "float64", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
                    "chat_template.*")  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_TIED = {"lm_head", "embed_tokens"}


def merge_adapter(adapter: Path, backbone: Path, out: Path, dtype: str | None = None) -> None:
    """Write the backbone with a LoRA adapter added to its weights, as PEFT merges them, and with its tokenizer.

    The result needs no PEFT. Where the adapter changes a head that shares its weights with the embedding, the two are
    stored apart from each other.

    Parameters
    ----------
    adapter
        Folder of the adapter, as `run` or PEFT saved it.
    backbone
        Folder of the Hugging Face checkpoint that it was trained on.
    out
        Folder to create; it is written whole or not at all.
    dtype
        Type of the merged weights, one of `DTYPES`; by default the backbone's.

    Raises
    ------
    InputError
        When one of the folders is no such folder, the adapter does not fit the backbone, or `out` is there already.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError("dtype", "", f'"{dtype}" is not known', f"use one of {', '.join(DTYPES)}")
    require_adapter(adapter)
    read_trainable_shape(backbone)
    if is_configuration(backbone):
        raise InputError(backbone, "", "has no weights", "name the folder of a Hugging Face checkpoint")
    config = AutoConfig.from_pretrained(backbone, local_files_only=True)
    stored = _stored_shapes(adapter / WEIGHTS)
    with new_folder(out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's on tied weights, which are seen to here
        _require_fit(stored, adapter, config, backbone)
        separate = config.tie_word_embeddings and any(_TIED & set(name.split(".")) for name in stored)
        base = _load(backbone, config, "auto" if dtype is None else dtype, separate)
        merged = PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").merge_and_unload()
        merged.save_pretrained(folder)
        for pattern in _TOKENIZER_FILES:
            for file in backbone.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        if (backbone / _TEMPLATES).is_dir():
            shutil.copytree(backbone / _TEMPLATES, folder / _TEMPLATES)


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's tensors by name."""
    try:
        with safe_open(file, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(file, "", f"cannot be read ({error})", "save the adapter again") from error


def _require_fit(
    stored: Mapping[str, tuple[int, ...]], adapter: Path, config: PreTrainedConfig, backbone: Path
) -> None:
    """Refuse an adapter whose tensors are not those that PEFT would put on the backbone."""
    settings = PeftConfig.from_pretrained(str(adapter))
    if not isinstance(settings, LoraConfig):  # the kind was looked at before, but PEFT may know it by another class
        raise InputError(adapter, "peft_type", f'"{settings.peft_type}" is not LORA', "merge it with PEFT itself")
    settings.init_lora_weights = False  # some ways to begin read the backbone's weights, which are not there
    settings.inference_mode = False
    remedy = "name the backbone that the adapter was trained on"
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
        try:
            model = get_peft_model(whole, settings)
        except ValueError as error:
            shown = settings.target_modules
            shown = shown if isinstance(shown, str) else sorted(shown or ())
            problem = f"{shown} do not fit the backbone {backbone}"
            raise InputError(adapter, "target_modules", problem, remedy) from error
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            here = f"has shape {stored[name]}" if name in stored else "is missing"
            there = f"needs {expected[name]}" if name in expected else "has no place for it"
            raise InputError(adapter / WEIGHTS, name, f"{here}, the backbone {backbone} {there}", remedy)


def _load(backbone: Path, config: PreTrainedConfig, dtype: str, separate: bool) -> PreTrainedModel:
    """Return the whole backbone; `separate`: its head gets a copy of the embedding to itself."""
    if separate:
        config.tie_word_embeddings = False
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            backbone, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = f"cannot be loaded ({str(error).strip().splitlines()[0]})"
        raise InputError(backbone, "", problem, "download the checkpoint again") from error
    missing = sorted(set(told["missing_keys"]) - ({"lm_head.weight"} if separate else set()))
    if missing:
        raise InputError(backbone, missing[0], "is missing in the checkpoint", "download the checkpoint again")
    if separate:
        model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    return model
