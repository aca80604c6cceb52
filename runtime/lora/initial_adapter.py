"""What PEFT would make of an adapter on the whole backbone: its target modules and its initial weights."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from cappuccino.errors import InputError
from cappuccino.instance import Adapter


@dataclass(frozen=True)
class InitialAdapter:
    """An adapter before its first step."""

    config: LoraConfig
    """As PEFT resolved it on the whole backbone."""
    down: Mapping[str, torch.Tensor]
    """By name of the target module, LoRA's A of shape (rank, in_features), float32; B is zero."""


class _RecordingLinear(LoraLinear):
    """Remembers its initial weights, which PEFT then moves to the meta device with the layer underneath."""

    initial: torch.Tensor

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        super().reset_lora_parameters(adapter_name, init_lora_weights)
        self.initial = self.lora_A[adapter_name].weight.detach()


def lora_config(adapter: Adapter) -> LoraConfig:
    """Return PEFT's configuration of an adapter."""
    targets = adapter.target_modules
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def initialise(whole: PreTrainedModel, adapter: Adapter) -> InitialAdapter:
    """Let PEFT put an adapter on the whole backbone, seeded, and take it off again.

    The weights are those of `torch.manual_seed(adapter.seed); get_peft_model(backbone, config)`, whatever part of them
    a stage then holds.

    Parameters
    ----------
    whole
        The backbone on the meta device; unchanged on return.
    adapter
        The job.

    Raises
    ------
    InputError
        When the target modules match nothing, or something else than linear layers.
    """
    config = lora_config(adapter)
    config._register_custom_module({nn.Linear: _RecordingLinear})
    remedy = "name linear layers of the backbone, such as q_proj, or all-linear"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(adapter.seed)
        try:
            model = get_peft_model(whole, config)
        except ValueError as error:
            shown = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
            problem = f"{shown} do not fit the backbone {whole.config.name_or_path}"
            raise InputError(f"adapter {adapter.name}", "target_modules", problem, remedy) from error
        layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
        for name, layer in layers.items():
            if not isinstance(layer, _RecordingLinear):
                kind = type(layer.get_base_layer()).__name__
                problem = f"{name} is no linear layer ({kind})"
                raise InputError(f"adapter {adapter.name}", "target_modules", problem, remedy)
        down = {name: layer.initial for name, layer in layers.items()}
        model.unload()
    return InitialAdapter(config, down)
