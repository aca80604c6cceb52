"""What was measured of a point, before it becomes a row: all repeats, by stage.

Legend: s stage.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cappuccino.files import Record
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.runtime.profiling.grid import Point

PARTS = (("layer", "layers"), ("head", "head"), ("loss", "loss"))
"""In columns, and of operations."""


class StepSamples(Record):
    """One optimizer step; lists are by stage, seconds."""

    seconds: float
    """From its first operation to its last."""
    operations: dict[str, tuple[tuple[float, ...], ...]]
    """By kind (F, B, S), what each took, without those that do not count."""
    transfers: tuple[float, ...]
    """Of all links."""
    parts: dict[str, tuple[tuple[float, ...], ...]]
    """By kind and part ("F layers"), what each took, a single layer for the layers."""
    reference_s: tuple[tuple[float, ...], ...]
    """What the reference kernel took right before and after."""

    def scaled(self, factors: Sequence[float]) -> "StepSamples":
        """Return the step with times divided by the factors of their stages.

        The step as a whole changes as its busiest stage does, transfers as the average stage.
        """
        busy = np.array([sum(sum(times[s]) for times in self.operations.values()) for s in range(len(factors))])
        whole = float(busy.max() / (busy / np.array(factors)).max()) if busy.any() else float(np.mean(factors))

        def divided(times: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(x / factor for x in mine) for mine, factor in zip(times, factors, strict=True))

        return StepSamples(
            seconds=self.seconds / whole,
            operations={kind: divided(times) for kind, times in self.operations.items()},
            transfers=tuple(x / float(np.mean(factors)) for x in self.transfers),
            parts={name: divided(times) for name, times in self.parts.items()},
            reference_s=self.reference_s,
        )


class PointSamples(Record):
    """What was measured of a point."""

    steps: tuple[StepSamples, ...]
    """Those that count, without the one that warms up."""
    peak_mib: tuple[float, ...]
    """By stage."""
    layer_held_bytes: float
    """Of a token, by one decoder layer."""
    head_held_bytes: float
    """Likewise, by head and loss."""
    seconds: float
    """How long the point took in all, references and warming up included, without its mixed step."""

    def references(self) -> tuple[tuple[float, ...], ...]:
        """Return what the reference kernel took around the point's steps, by stage."""
        by_stage = zip(*(step.reference_s for step in self.steps), strict=True)
        return tuple(tuple(x for times in by_step for x in times) for by_step in by_stage)

    def scaled(self, factors: Sequence[float]) -> "PointSamples":
        """Return the samples with times divided by the factors of their stages."""
        return self.model_copy(update={"steps": tuple(step.scaled(factors) for step in self.steps)})

    def columns(self, point: Point, grad_acc_steps: int) -> dict[str, Any]:
        """Return the measured columns of the point's row: medians over the repeats."""
        stages = range(len(self.peak_mib))
        seconds = [step.seconds for step in self.steps]
        operations = {kind: [self._pooled("operations", kind, [s]) for s in stages] for kind in "FBS"}
        medians = {kind: [float(np.median(x)) for x in by_stage] for kind, by_stage in operations.items()}
        slowest = int(np.argmax(np.add(medians["F"], medians["B"])))
        tokens, step_s = point.tokens * grad_acc_steps, float(np.median(seconds))
        transfers = [x for step in self.steps for x in step.transfers]
        columns: dict[str, Any] = {
            "peak_memory_mb": max(self.peak_mib),
            "throughput_per_gpu_tok_s": tokens / step_s / len(stages),
            "total_throughput_tok_s": tokens / step_s,
            "time_per_step_s": step_s,
            "time_spread": spread(seconds),
            "status": "OK",
            "forward_time_s": medians["F"][slowest],
            "forward_spread": spread(operations["F"][slowest]),
            "backward_time_s": medians["B"][slowest],
            "backward_spread": spread(operations["B"][slowest]),
            "optimizer_time_s": max(medians["S"]),
            "transfer_time_s": max(0.0, float(np.median(transfers))) if transfers else 0.0,
            "input_forward_time_s": float(np.median(self._pooled("parts", "F input", stages))),
        }
        for name, part in PARTS:
            for column, kind in (("forward", "F"), ("backward", "B")):
                times = self._pooled("parts", f"{kind} {part}", stages)
                columns[f"{name}_{column}_time_s"] = float(np.median(times))
        columns["layer_held_bytes_per_token"] = self.layer_held_bytes
        columns["head_held_bytes_per_token"] = self.head_held_bytes
        return columns

    def _pooled(self, field: str, name: str, stages: Sequence[int]) -> list[float]:
        steps = [getattr(step, field) for step in self.steps]  # where nothing counted, a step has no such part
        return [x for times in steps if name in times for s in stages for x in times[name][s]]


class MixedSamples(Record):
    """The last steps of the points of a run, mixed without a flush."""

    points: tuple[Point, ...]
    """As many micro-batches of each."""
    forward_s: tuple[float, ...]
    """By stage, what all forwards took together."""
    backward_s: tuple[float, ...]
    """Likewise."""
    reference_s: tuple[tuple[float, ...], ...]
    """By stage, what the reference kernel took right before and after."""


def spread(values: Sequence[float]) -> float:
    """Return the distance of the first and last decile, relative to the median."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return float((high - low) / middle) if middle > 0 else 0.0


def part_seconds(cost: PartCost, layers: int) -> float:
    """Return what a part took, a single layer for the layers of a stage that has so many."""
    return cost.seconds / (layers if cost.part == "layers" else 1)
