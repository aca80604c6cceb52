"""The adapters of a replica on the part of the backbone that one stage holds."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from cappuccino.instance import Adapter
from cappuccino.runtime.backbone.part import BackbonePart, meta_model
from cappuccino.runtime.lora.initial_adapter import initialise, lora_config
from cappuccino.runtime.lora.routed_linear import RoutedLinear, slot
from cappuccino.runtime.lora.sample_dropout import SampleDropout
from cappuccino.runtime.lora.segment import Segment

_HEAD = "lm_head"


class MultiLora:
    """LoRA layers in a stage's modules, each with the parameters of every adapter that targets it.

    Adapters are named by their position in `adapters`. An adapter may have nothing on this stage, as long as it has
    something on the whole backbone.

    Parameters
    ----------
    part
        What the stage holds; its target modules are replaced in place.
    adapters
        The replica's adapters in order.

    Raises
    ------
    InputError
        When an adapter's target modules do not fit the backbone.
    """

    def __init__(self, part: BackbonePart, adapters: Sequence[Adapter]) -> None:
        model = part.model
        here = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        whole = meta_model(model.config, model.dtype)
        self.configs: list[LoraConfig] = []
        """By adapter, as PEFT resolved it on the whole backbone."""
        self._peft: PeftModel | None = None
        self._layers: list[dict[str, RoutedLinear]] = []
        initials = [initialise(whole, adapter) for adapter in adapters]
        for position, (adapter, initial) in enumerate(zip(adapters, initials, strict=True)):
            self.configs.append(initial.config)
            names = [name for name in initial.down if name in here]
            if names:
                self._inject(model, position, adapter, names)
            layers = {name: model.get_submodule(name) for name in names}
            self._layers.append(layers)
            for name, layer in layers.items():
                weight = layer.lora_A[slot(position)].weight
                with torch.no_grad():
                    # By way of the backbone's type, which is where PEFT's own weights lose their digits too.
                    weight.copy_(initial.down[name].to(model.dtype))
                if adapter.dropout:
                    dropout = SampleDropout(adapter.dropout, adapter.seed, adapter.name, name)
                    layer.lora_dropout[slot(position)] = dropout
        for position in range(len(adapters)):
            for parameter in self.parameters(position):
                parameter.requires_grad_(True)
        routed = {n: m for n, m in model.named_modules() if isinstance(m, RoutedLinear)}
        self._head = routed.pop(_HEAD, None)
        self._body = list(routed.values())
        model.train()

    def _inject(self, model: PreTrainedModel, position: int, adapter: Adapter, names: list[str]) -> None:
        config = lora_config(adapter)
        config.target_modules = set(names)
        config._register_custom_module({nn.Linear: RoutedLinear})
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._peft is None:
                self._peft = get_peft_model(model, config, adapter_name=slot(position))
            else:
                self._peft.add_adapter(slot(position), config)

    def parameters(self, adapter: int) -> list[nn.Parameter]:
        """Return an adapter's parameters on this stage, in the order of the modules."""
        name = slot(adapter)
        layers = self._layers[adapter].values()
        return [weight for layer in layers for weight in (layer.lora_A[name].weight, layer.lora_B[name].weight)]

    def named_parameters(self, adapter: int) -> dict[str, nn.Parameter]:
        """Return an adapter's `parameters`, in their order, under the names of PEFT's files."""
        layers = self._layers[adapter]
        names = [f"base_model.model.{layer}.{matrix}.weight" for layer in layers for matrix in ("lora_A", "lora_B")]
        return dict(zip(names, self.parameters(adapter), strict=True))

    def state_dict(self, adapter: int) -> dict[str, torch.Tensor]:
        """Return an adapter's weights on this stage under the names of PEFT's files, on the CPU."""
        if self._peft is None or not self._layers[adapter]:
            return {}
        state = get_peft_model_state_dict(self._peft, adapter_name=slot(adapter), save_embedding_layers=False)
        return {name: weight.detach().cpu().contiguous() for name, weight in state.items()}

    @contextmanager
    def routed(self, tokens: tuple[Segment, ...], losses: tuple[Segment, ...]) -> Iterator[None]:
        """Route the rows of everything that runs inside the context.

        Parameters
        ----------
        tokens
            Segments over the micro-batch's tokens, for the decoder layers.
        losses
            Segments over the tokens with loss, for the head.
        """
        self._set(tokens, losses)
        try:
            yield
        finally:
            self._set(None, None)

    def _set(self, tokens: tuple[Segment, ...] | None, losses: tuple[Segment, ...] | None) -> None:
        for layer in self._body:
            layer.segments = tokens
        if self._head is not None:
            self._head.segments = losses
