"""What the journals of a profile's run say about its points.

Legend: G stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cappuccino.backbone import ALL_LINEAR, BackboneShape
from cappuccino.costs.adapters import AdapterSize
from cappuccino.runtime.monitoring.journal import JournalReader
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.plan import ProfilePlan
from cappuccino.runtime.profiling.samples import MixedSamples, PointSamples, StepSamples, part_seconds
from cappuccino.timeline import Timeline

BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
"""Of a weight, by type."""
_MIB = 2**20
_IN_COMPANY = 0.8
"""Part of an operation during which all other stages must have worked."""
_FEWEST = 2


def point_columns(point: Point, layers: Sequence[int], grid: ProfileGrid) -> dict[str, object]:
    """Return what was asked for: the columns that say which point a row is of."""
    batch = point.samples * grid.grad_acc_steps
    targets = point.target_modules if point.target_modules == ALL_LINEAR else "+".join(point.target_modules)
    return {
        "pp_size": len(layers),
        "world_size": len(layers),
        "global_bsz": batch,
        "micro_bsz": point.samples,
        "grad_acc_steps": grid.grad_acc_steps,
        "seqlen": point.length,
        "rank": point.rank,
        "num_adapters": point.num_adapters,
        "target_modules": targets,
        "dropout": point.dropout,
        "max_steps": grid.num_steps,
        "num_samples": batch * grid.num_steps,
        "tokens_per_step": batch * point.length,
        "recompute": grid.recompute.value,
        "layers_per_stage": "+".join(map(str, layers)),
        "held_micro_batches": min(len(layers), grid.grad_acc_steps),
    }


class ProfileRun:
    """Follows a profile's run by its journals.

    Parameters
    ----------
    profile
        The plan that runs.
    journal
        Folder of the journals.
    shape
        Of the backbone.
    grid
        Steps and micro-batches of points.
    points
        Of the plan.
    layers
        Decoder layers by stage.
    dtype
        Of the backbone's weights.
    """

    def __init__(
        self,
        profile: ProfilePlan,
        journal: Path,
        shape: BackboneShape,
        grid: ProfileGrid,
        points: Sequence[Point],
        layers: tuple[int, ...],
        dtype: str,
    ) -> None:
        self._profile, self._shape, self._grid, self._layers, self._dtype = profile, shape, grid, layers, dtype
        self._points = tuple(points)
        self._stages = [JournalReader(journal, s) for s in range(len(layers))]
        self._told = 0

    def new_points(self) -> list[tuple[Point, PointSamples]]:
        """Return the points that all stages have finished since the last call."""
        grown = [stage.read() for stage in self._stages]  # all of them
        if not any(grown):
            return []
        finished = self._told
        ends = [[end for _, end in steps[-1]] for steps in self._profile.steps]
        while finished < len(self._points) and self._passed(ends[finished]):
            finished += 1
        if finished == self._told:
            return []
        record = _Record(self._profile, self._stages, self._layers)
        new = [(self._points[p], self._samples(record, p)) for p in range(self._told, finished)]
        self._told = finished
        return new

    def mixed(self) -> MixedSamples | None:
        """Return the mixed steps once they are all done."""
        ends = [len(program) for program in self._profile.replica.programs]
        if not self._passed(ends):
            return None
        totals: dict[str, list[float]] = {"F": [], "B": []}
        references = []
        for stage, program, begin, end in zip(
            self._stages, self._profile.replica.programs, self._profile.mixed, ends, strict=True
        ):
            for kind, found in totals.items():
                mine = [i for i in range(begin, end) if program[i][0] == kind]
                found.append(sum(stage.ends[i] - stage.starts[i] for i in mine))
            references.append((*stage.references[begin], *stage.references[end]))
        return MixedSamples(
            points=self._points, forward_s=tuple(totals["F"]), backward_s=tuple(totals["B"]), reference_s=references
        )

    @property
    def has_begun(self) -> bool:
        """Whether every stage has come to its first pause."""
        return all(stage.references for stage in self._stages)

    @property
    def seconds(self) -> float:
        """From the first operation to the last one known."""
        starts = [stage.starts[0] for stage in self._stages if stage.starts]
        return max(stage.ends[-1] for stage in self._stages if stage.ends) - min(starts) if starts else 0.0

    def _passed(self, positions: Sequence[int]) -> bool:
        """Return whether every stage has been in the pause before an operation."""
        return all(position in stage.references for position, stage in zip(positions, self._stages, strict=True))

    def _samples(self, record: "_Record", p: int) -> PointSamples:
        spans, point = self._profile.steps[p], self._points[p]
        first, last = spans[0], spans[-1]
        begin = min(float(starts[a]) for starts, (a, _) in zip(record.line.starts, first, strict=True))
        end = max(float(ends[b - 1]) for ends, (_, b) in zip(record.line.ends, last, strict=True))
        held = record.held_bytes(p, point.tokens)
        return PointSamples(
            steps=record.steps(p),
            peak_mib=tuple(self._peak_mib(p, s) for s in range(len(self._layers))),
            layer_held_bytes=held[0],
            head_held_bytes=held[1],
            seconds=end - begin,
        )

    def _peak_mib(self, p: int, stage: int) -> float:
        """Return the highest memory of a stage so far without what the adapters of the other points take."""
        end = self._profile.steps[p][-1][stage][1]
        peak = self._stages[stage].memory_gib[end - 1] * 1024
        weight = BYTES["float64" if self._dtype == "float64" else "float32"]
        for q, point in enumerate(self._points):
            if q != p:
                size = AdapterSize.of(self._shape.layer, point.rank, point.target_modules).parameters
                # the moments of those before are gone with their last step, those of the others are not there yet
                peak -= self._layers[stage] * size * point.num_adapters * weight / _MIB
        return max(peak, 0.0)


@dataclass(frozen=True)
class _Record:
    """The operations of a run so far."""

    profile: ProfilePlan
    stages: list[JournalReader]
    layers: tuple[int, ...]

    @cached_property
    def line(self) -> Timeline:
        programs = tuple(
            program[: len(stage.starts)]
            for program, stage in zip(self.profile.replica.programs, self.stages, strict=True)
        )
        starts, ends = (tuple(np.array(getattr(s, name)) for s in self.stages) for name in ("starts", "ends"))
        return Timeline(0, programs, starts, ends)

    def steps(self, p: int) -> tuple[StepSamples, ...]:
        """Return the steps of a point that count."""
        spans = self.profile.steps[p][1:]  # after the one that warms up
        counted = {kind: self._counted(spans, kind) for kind in "FBS"}
        return tuple(self._step(p, j, span, counted) for j, span in enumerate(spans, start=1))

    def _step(
        self, p: int, j: int, span: tuple[tuple[int, int], ...], counted: dict[str, list[set[int]]]
    ) -> StepSamples:
        line, batches = self.line, self.profile.micro_batches[p][j]
        begin = min(float(starts[a]) for starts, (a, _) in zip(line.starts, span, strict=True))
        end = max(float(ends[b - 1]) for ends, (_, b) in zip(line.ends, span, strict=True))
        operations: dict[str, tuple[tuple[float, ...], ...]] = {}
        for kind, by_stage in counted.items():
            operations[kind] = tuple(
                tuple(float(line.ends[s][i] - line.starts[s][i]) for i in range(*span[s]) if i in by_stage[s])
                for s in range(len(span))
            )
        parts: dict[str, list[list[float]]] = {}
        for s in range(len(self.stages)):
            place = self._places[s]
            for part in (part for m in batches for part in self._parts_by_batch[s].get(m, ())):
                if place[part.kind, part.micro_batch] in counted[part.kind][s]:
                    found = parts.setdefault(f"{part.kind} {part.part}", [[] for _ in self.stages])
                    found[s].append(part_seconds(part, self.layers[s]))
        around = [(*stage.references[a], *stage.references[b]) for stage, (a, b) in zip(self.stages, span, strict=True)]
        return StepSamples(
            seconds=end - begin,
            operations=operations,
            transfers=tuple(self._transfers(self.profile.micro_batches[p][j])),
            parts={name: tuple(map(tuple, found)) for name, found in parts.items()},
            reference_s=tuple(around),
        )

    def _counted(self, spans: Sequence[tuple[tuple[int, int], ...]], kind: str) -> list[set[int]]:
        """Return the operations of a kind that count, by stage."""
        found = []
        for s, share in enumerate(self._company):
            mine = [i for span in spans for i in range(*span[s]) if self.line.programs[s][i][0] == kind]
            found.append(set(_that_count(mine, share)))
        return found

    @cached_property
    def _company(self) -> list[np.ndarray]:
        """By stage and operation, which part of it saw all other stages at work."""
        line = self.line
        result = []
        for s, (starts, ends) in enumerate(zip(line.starts, line.ends, strict=True)):
            share = np.ones(len(starts))
            for other in range(len(self.layers)):
                if other != s:
                    edges = np.stack([line.starts[other], line.ends[other]], axis=1).ravel()
                    worked = np.cumsum(np.diff(edges, prepend=edges[0]) * (np.arange(len(edges)) % 2))
                    both = np.interp(ends, edges, worked) - np.interp(starts, edges, worked)
                    share = np.minimum(share, both / np.maximum(ends - starts, 1e-12))
            result.append(share)
        return result

    @cached_property
    def _places(self) -> list[dict[tuple[str, int], int]]:
        """By stage, where the forwards and backwards of micro-batches are in its program."""
        return [
            {(str(op[0]), op[1]): i for i, op in enumerate(program) if op[0] != "S"} for program in self.line.programs
        ]

    @cached_property
    def _parts_by_batch(self) -> list[dict[int, list[PartCost]]]:
        result = []
        for stage in self.stages:
            found: dict[int, list[PartCost]] = {}
            for cost in stage.parts:
                found.setdefault(cost.micro_batch, []).append(cost)
            result.append(found)
        return result

    def _transfers(self, batches: tuple[int, ...]) -> list[float]:
        """Return those transfers that a stage surely waited for: into a step, and out of it."""
        found, line, at = [], self.line, self._places
        for s in range(len(self.layers) - 1):
            sent, received = at[s]["F", batches[0]], at[s + 1]["F", batches[0]]
            found.append(float(line.starts[s + 1][received] - line.ends[s][sent]))
            sent, received = at[s + 1]["B", batches[-1]], at[s]["B", batches[-1]]
            found.append(float(line.starts[s][received] - line.ends[s + 1][sent]))
        return found

    def held_bytes(self, p: int, tokens: int) -> tuple[float, float]:
        """Return what a decoder layer and what the head keeps of a token, as the point's first step weighed it."""
        layer, head = [], []
        for s, layers in enumerate(self.layers):
            for m in self.profile.micro_batches[p][0]:
                weighed = [c for c in self._parts_by_batch[s].get(m, ()) if c.kind == "F" and c.held_bytes is not None]
                layer += [(c.held_bytes or 0) / layers / tokens for c in weighed if c.part == "layers"]
                of_head = sum((c.held_bytes or 0) / tokens for c in weighed if c.part in ("head", "loss"))
                head += [of_head] if of_head else []
        return float(np.median(layer)), float(np.median(head))


def _that_count(operations: Sequence[int], company: np.ndarray) -> list[int]:
    """Return those of a stage's operations that ran while all other stages worked; all, where too few did.

    In a plan without flushes stages mostly work side by side, and share memory bandwidth and links.
    """
    chosen = [i for i in operations if company[i] >= _IN_COMPANY]
    return chosen if len(chosen) >= _FEWEST else list(operations)
