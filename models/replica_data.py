"""What the model of a whole replica is given, and what it gives: integers of grids of time and memory.

Indices as of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Way = Literal["F", "B"]
WAYS: tuple[Way, Way] = ("F", "B")
SCALE = 2**14
"""Denominator of the slopes of tangents, and of transfers by token."""
WHOLE = 2**16
"""Share of the stage that takes the most of a curve."""
ROUNDING = SCALE - 1
"""What leaves a quotient by it rounded down."""
_TANGENTS = 8
"""How many slopes, and how many ratios either way: within 0.7% of the time of a micro-batch."""


@dataclass(frozen=True)
class SampleData:
    """A sample to be packed."""

    adapter: int
    step: int
    tokens: int
    work: dict[Way, tuple[int, ...]]
    """By curve, what it adds to the work of a micro-batch, time."""


@dataclass(frozen=True)
class CurveData:
    """A part of a stage's time: `(floor^power + work^power)^(1/power)`."""

    floor: int
    """Of a micro-batch without adapters."""
    adapter_floor: tuple[int, ...]
    """By adapter, what it adds where it is in the micro-batch."""
    power: float
    shares: tuple[int, ...]
    """By stage, how much of that it takes, in parts of `WHOLE`."""


@dataclass(frozen=True)
class EvaluationData:
    """A forward on evaluation data, behind an optimizer step and before the adapter's next one."""

    adapter: int
    step: int
    durations: tuple[int, ...]
    """By stage."""
    lag: int
    """Of its activations to the next stage."""
    memory: int
    """While it runs."""


@dataclass(frozen=True)
class ReplicaData:
    """All that the model needs."""

    num_stages: int
    samples: tuple[SampleData, ...]
    num_slots: int
    max_tokens: int
    """Of a micro-batch."""
    curves: dict[Way, tuple[CurveData, ...]]
    step_duration: int
    """Of an optimizer step on every stage."""
    clipped: frozenset[int]
    """Adapters whose steps wait for the backwards of all stages."""
    lag: tuple[int, int]
    """Of a transfer: at least, and per `SCALE` tokens."""
    held: tuple[int, int, int]
    """Memory that a token takes from its forward to its backward, and while it runs; and what there is of it."""
    evaluations: tuple[EvaluationData, ...]
    horizon: int
    """No makespan is above it."""


@dataclass(frozen=True)
class Packing:
    """A solution of the model, or a hint to it."""

    slots: tuple[int, ...]
    """By sample."""
    starts: dict[tuple[Way, int, int], int]
    """By way, stage and slot; only of used slots."""
    evaluation_starts: dict[tuple[int, int], int]
    """By stage and evaluation."""


@dataclass(frozen=True)
class Solved:
    """What CP-SAT says."""

    packing: Packing | None
    makespan: int | None
    bound: int
    """No packing and order ends earlier."""
    proven: bool
    """Whether the packing is the best that the model has."""


def tangents(power: float, ratios: Sequence[float] | None = None) -> Sequence[tuple[int, int]]:
    """Return slopes (alpha, beta) with `SCALE (floor^p + work^p)^(1/p) >= alpha work + beta floor`, both rounded down.

    The times are convex and homogeneous: the slopes at a direction support them everywhere.

    Parameters
    ----------
    ratios
        Of work to floor, where tangents touch the curve; by default all that matter, within 0.7% of it.
    """
    if power == 1:
        return ((SCALE, SCALE),)
    conjugate = power / (power - 1)
    slopes = [k / _TANGENTS for k in range(1, _TANGENTS)] if ratios is None else []
    for ratio in ratios if ratios is not None else [2.0**k for k in range(-_TANGENTS, _TANGENTS + 1)]:
        slopes.append((ratio**power / (1 + ratio**power)) ** (1 / conjugate))
    found = {(0, SCALE), (SCALE, 0)}
    for alpha in slopes:
        beta = max(0.0, 1 - alpha**conjugate) ** (1 / conjugate)
        found.add((int(SCALE * alpha), int(SCALE * beta)))
    return sorted(found)
