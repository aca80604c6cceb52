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
    dropped: float = 0.0
    """Sum of the input widths of its modules, where it drops inputs: a mask has a byte for each and token."""

    @classmethod
    def of(cls, shape: LayerShape, rank: int, target_modules: TargetModules, dropout: float = 0.0) -> "AdapterSize":
        """Return the size of an adapter; a module that the shape does not know counts as one of average widths.

        Parameters
        ----------
        target_modules
            As an instance names them: the last part of a dotted name counts.
        dropout
            Probability of dropping an input; what it takes does not depend on how many are dropped.
        """
        known = shape.modules
        names = known if target_modules == ALL_LINEAR else dict.fromkeys(n.rsplit(".", 1)[-1] for n in target_modules)
        averages = [sum(sides) / len(known) for sides in zip(*known.values(), strict=True)]
        inputs, outputs = (sum(known[name][k] if name in known else averages[k] for name in names) for k in (0, 1))
        widths = inputs + outputs
        return cls(len(names), widths, rank * widths, inputs if dropout > 0 else 0.0)
