"""How large a LoRA adapter is in a decoder layer: what its share of a micro-batch's time depends on."""

from dataclasses import dataclass

from cappuccino.backbone import ALL_LINEAR, LayerShape, TargetModules


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
