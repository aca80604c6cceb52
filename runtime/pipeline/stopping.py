"""When the training of an adapter ends before its last step; needs no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol


class StopReason(StrEnum):
    """Why an adapter is not trained on."""

    DIVERGED = "diverged"
    """The loss of a step, or the norm of its gradients, is not finite."""
    PATIENCE = "patience"
    """The evaluations did not improve for as long as the adapter's patience lasts."""
    ASKED = "asked"
    """Somebody asked for it."""


@dataclass(frozen=True)
class Stop:
    """The end of an adapter before its last step."""

    step: int
    """The optimizer step, from 0, that was not made: as many were."""
    reason: StopReason
    """Why it was not."""


class StopSignal(IntEnum):
    """What the last stage tells the others before an optimizer step."""

    GO_ON = 0
    DIVERGED = 1
    PATIENCE = 2
    ASKED = 3

    @property
    def reason(self) -> StopReason | None:
        """The reason to stop; None to go on."""
        return StopReason(self.name.lower()) if self else None


class Listener(Protocol):
    """What is told of a stage's program while it runs, and decides on the last stage who is trained on.

    Adapters are given by their position in the replica, steps from 0.
    """

    def on_operation(self) -> None:
        """Note that an operation is past."""

    def on_step(self, adapter: int, step: int) -> None:
        """Note that an optimizer step was made; on the last stage, its loss can be asked for."""

    def on_stop(self, adapter: int, step: int, reason: StopReason) -> None:
        """Note that an adapter was stopped instead of making a step."""

    def stop_signal(self, adapter: int, step: int) -> StopSignal:
        """Return on the last stage, where the step's loss can be asked for, whether it is to be made."""


def out_of_patience(losses: Sequence[float], patience: int, threshold: float) -> bool:
    """Return whether evaluations ended without improvement, by the rule of transformers' `EarlyStoppingCallback`.

    Parameters
    ----------
    losses
        Of the evaluations so far; those that are not finite are no improvement.
    patience
        Evaluations in a row without improvement that end the training.
    threshold
        By how much a loss must be less than the least one before.
    """
    best, waited = math.inf, 0
    for loss in losses:
        improved = loss < best and (best == math.inf or best - loss > threshold)
        waited = 0 if improved else waited + 1
        best = min(best, loss)
    return waited >= patience
