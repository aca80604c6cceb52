"""How large a LoRA adapter is in a decoder layer: what its share of a micro-batch's time depends on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class AdapterSize:
    """What an adapter has in one decoder layer."""

    modules: float
    """Linear modules with an adapter."""
    widths: float
    """Sum of their input and output widths."""
    parameters: float
    """Weights of the adapter."""

    @classmethod
    def of(cls, shape: LayerShape, rank: int, target_modules: TargetModules) -> "AdapterSize":
        """Return the size of an adapter; a module that the shape does not know counts as one of average widths.

        Parameters
        ----------
        target_modules
            As an instance names them: the last part of a dotted name counts.
        """
        known = {name: sum(widths) for name, widths in shape.modules.items()}
        average = sum(known.values()) / len(known)
        names = known if target_modules == ALL_LINEAR else dict.fromkeys(n.rsplit(".", 1)[-1] for n in target_modules)
        widths = sum(known.get(name, average) for name in names)
        return cls(len(names), widths, rank * widths)
