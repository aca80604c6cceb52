"""What the parts of an operation take; needs no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Part = Literal["input", "layers", "head", "loss"]


class PartCost(BaseModel):
    """One part of one operation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["F", "B"]
    micro_batch: int
    part: Part
    """`input`: laying out the samples and, on the first stage, the embedding; `head`: with the norm before it."""
    seconds: float
    held_bytes: int | None
    """What the forward keeps for the backward besides weights; None where it was not weighed."""
