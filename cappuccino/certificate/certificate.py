"""Prices that prove a bound on all plans, as they stand in the plan file."""

from typing import Annotated, Literal

from pydantic import Field

from cappuccino.files import Record

Positive = Annotated[int, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StageLayers(Record):
    """Decoder layers by stage of the replicas of one depth."""

    gpu: str
    recompute: Literal["none", "full"] | None = None
    """Activation recomputation of these replicas; null where the cost table does not say."""
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """By stage."""


class Certificate(Record):
    """What proves a bound on every plan, or on those that the search was restricted to.

    Let a replica be paid the prices of its adapters. Where that is nowhere more than it costs, a GPU's charge for each
    of its stages included, the prices of all adapters less the charges of all GPUs are a bound. For the makespan
    replicas cost their charges alone: where all prices are more than all charges, no plan ends within `limit_s`.
    """

    bound: NonNegative
    """What it proves, in the objective's unit; for the makespan the limit."""
    prices: dict[str, NonNegative]
    """Of every adapter by name, in the objective's unit; for the makespan in that of the charges."""
    charges: dict[str, NonNegative]
    """For a GPU, by type, likewise."""
    limit_s: NonNegative | None = None
    """No replica that ends later was looked at: the deadline or a later one; for the makespan the limit refuted."""
    num_stages: Positive | None = None
    """The depth of every replica, where it was fixed."""
    profiled_only: bool = False
    """Whether stage counts that the cost table does not hold were forbidden."""
    recompute: Literal["none", "full"] | None = None
    """The activation recomputation of every replica, where it was fixed."""
    layers: tuple[StageLayers, ...] = ()
    """How layers were split; of depths not named as the cost table says."""
