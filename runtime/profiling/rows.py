"""What a profile's run says about its points: rows of a cost table, medians over the repeats.

Legend: G stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.backbone import ALL_LINEAR, BackboneShape
from cappuccino.costs import CostModel
from cappuccino.costs.adapters import AdapterSize
from cappuccino.runtime.launch.local import RunResult
from cappuccino.runtime.profiling.grid import Point, ProfileGrid
from cappuccino.runtime.profiling.plan import ProfilePlan
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
        "layers_per_stage": "+".join(map(str, layers)),
        "held_micro_batches": min(len(layers), grid.grad_acc_steps),
    }


@dataclass(frozen=True)
class ProfileRun:
    """A profile's plan and what running it gave."""

    profile: ProfilePlan
    result: RunResult
    shape: BackboneShape
    grid: ProfileGrid
    points: tuple[Point, ...]
    layers: tuple[int, ...]
    dtype: str

    def row(self, p: int) -> dict[str, object]:
        """Return the measured columns of a point.

        Raises
        ------
        KeyError
            When the parts of operations were not measured.
        """
        point, line = self.points[p], self.result.timelines[0]
        spans = self.profile.steps[p][1:]  # after the one that warms up
        seconds = [self._step_seconds(line, span) for span in spans]
        operations = {kind: self._durations(line, spans, kind) for kind in "FBS"}
        medians = {kind: [float(np.median(x)) for x in by_stage] for kind, by_stage in operations.items()}
        slowest = int(np.argmax(np.add(medians["F"], medians["B"])))
        tokens, step_s = point.tokens * self.grid.grad_acc_steps, float(np.median(seconds))
        return {
            "peak_memory_mb": max(self._peak_mib(p, s) for s in range(len(self.layers))),
            "throughput_per_gpu_tok_s": tokens / step_s / len(self.layers),
            "total_throughput_tok_s": tokens / step_s,
            "time_per_step_s": step_s,
            "time_spread": spread(seconds),
            "status": "OK",
            "forward_time_s": medians["F"][slowest],
            "forward_spread": spread(operations["F"][slowest]),
            "backward_time_s": medians["B"][slowest],
            "backward_spread": spread(operations["B"][slowest]),
            "optimizer_time_s": max(medians["S"]),
            "transfer_time_s": self._transfer_seconds(line, p),
            **self._part_columns(p),
        }

    def mixed_factors(self, costs: CostModel) -> dict[str, object]:
        """Return how much longer forwards and backwards took among others than costs fitted to the rows say.

        Medians of operations alike leave out what happens now and then, and what one kind of operation does to another.
        """
        line, stages = self.result.timelines[0], len(self.layers)
        owner = {m: p for p, batches in enumerate(self.profile.micro_batches) for m in batches[-1]}
        columns: dict[str, object] = {}
        for kind, name, curve in (
            ("F", "forward", costs.forward_curve(stages)),
            ("B", "backward", costs.backward_curve(stages)),
        ):
            expected = []
            for point in self.points:
                size = AdapterSize.of(self.shape.layer, point.rank, point.target_modules, point.dropout)
                floor, work = curve.adapter_floor(size) * point.num_adapters, curve.adapter_work(size) * point.tokens
                expected.append(float(curve(point.tokens, point.tokens * point.length, floor, work)))
            ratios = []
            for s, begin in enumerate(self.profile.mixed):
                mine = [i for i in range(begin, len(line.starts[s])) if line.programs[s][i][0] == kind]
                taken = sum(float(line.ends[s][i] - line.starts[s][i]) for i in mine)
                ratios.append(taken / sum(expected[owner[line.programs[s][i][1]]] for i in mine))
            columns[f"{name}_mixed_factor"] = max(ratios)
        return columns

    def _step_seconds(self, line: Timeline, span: tuple[tuple[int, int], ...]) -> float:
        begin = min(float(starts[a]) for starts, (a, _) in zip(line.starts, span, strict=True))
        return max(float(ends[b - 1]) for ends, (_, b) in zip(line.ends, span, strict=True)) - begin

    def _durations(self, line: Timeline, spans: Sequence[tuple[tuple[int, int], ...]], kind: str) -> list[list[float]]:
        """Return how long the operations of a kind took, by stage: those that count."""
        found = []
        for s, share in enumerate(self._company):
            mine = [i for span in spans for i in range(*span[s]) if line.programs[s][i][0] == kind]
            found.append([float(line.ends[s][i] - line.starts[s][i]) for i in _that_count(mine, share)])
        return found

    @cached_property
    def _company(self) -> list[np.ndarray]:
        """By stage and operation, which part of it saw all other stages at work."""
        line = self.result.timelines[0]
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

    def _transfer_seconds(self, line: Timeline, p: int) -> float:
        """Return the median over those transfers that a stage surely waited for: into a step, and out of it."""
        found = []
        at = [{op: i for i, op in enumerate(program)} for program in line.programs]
        for batches in self.profile.micro_batches[p][1:-1]:
            for s in range(len(self.layers) - 1):
                sent, received = at[s]["F", batches[0]], at[s + 1]["F", batches[0]]
                found.append(float(line.starts[s + 1][received] - line.ends[s][sent]))
                sent, received = at[s + 1]["B", batches[-1]], at[s]["B", batches[-1]]
                found.append(float(line.starts[s][received] - line.ends[s + 1][sent]))
        return max(0.0, float(np.median(found))) if found else 0.0

    def _peak_mib(self, p: int, stage: int) -> float:
        """Return the highest memory of a stage so far without what the adapters of the other points take."""
        end = self.profile.steps[p][-1][stage][1]
        peak = float(self.result.memory_gib[0][stage][end - 1]) * 1024
        weight = BYTES["float64" if self.dtype == "float64" else "float32"]
        for q, point in enumerate(self.points):
            if q != p:
                size = AdapterSize.of(self.shape.layer, point.rank, point.target_modules).parameters
                # the moments of those before are gone with their last step, those of the others are not there yet
                peak -= self.layers[stage] * size * point.num_adapters * weight / _MIB
        return max(peak, 0.0)

    def _part_columns(self, p: int) -> dict[str, object]:
        times: dict[tuple[str, str], list[float]] = {}
        held: dict[str, list[float]] = {"layer": [], "head": []}
        step_of = {m: j for j, batches in enumerate(self.profile.micro_batches[p][:-1]) for m in batches}
        tokens = self.points[p].tokens
        for s, (layers, parts) in enumerate(zip(self.layers, self.result.parts[0], strict=True)):
            head_bytes = dict.fromkeys(step_of, 0.0)
            program = self.result.timelines[0].programs[s]
            place = {(str(op[0]), op[1]): i for i, op in enumerate(program) if op[0] != "S"}
            counted = set()
            for kind in "FB":
                mine = [place[kind, m] for m, step in step_of.items() if step]
                counted |= set(_that_count(mine, self._company[s]))
            for cost in parts:
                step = step_of.get(cost.micro_batch)
                if step is None or (step and place[cost.kind, cost.micro_batch] not in counted):
                    continue
                if step:
                    per = layers if cost.part == "layers" else 1
                    times.setdefault((cost.kind, cost.part), []).append(cost.seconds / per)
                elif cost.held_bytes is not None and cost.kind == "F":
                    if cost.part == "layers":
                        held["layer"].append(cost.held_bytes / layers / tokens)
                    elif cost.part in ("head", "loss"):
                        head_bytes[cost.micro_batch] += cost.held_bytes / tokens
            held["head"] += [x for x in head_bytes.values() if x]
        columns: dict[str, object] = {"input_forward_time_s": float(np.median(times["F", "input"]))}
        for name, part in (("layer", "layers"), ("head", "head"), ("loss", "loss")):
            for column, kind in (("forward", "F"), ("backward", "B")):
                columns[f"{name}_{column}_time_s"] = float(np.median(times[kind, part]))
        layer = self.shape.layer
        columns |= {f"{name}_held_bytes_per_token": float(np.median(x)) for name, x in held.items()}
        columns["layer_weights_mb"] = layer.parameters * BYTES[self.dtype] / _MIB
        return columns


def _that_count(operations: Sequence[int], company: np.ndarray) -> list[int]:
    """Return those of a stage's operations that ran while all other stages worked; all, where too few did.

    In a plan without flushes stages mostly work side by side, and share memory bandwidth and links.
    """
    chosen = [i for i in operations if company[i] >= _IN_COMPANY]
    return chosen if len(chosen) >= _FEWEST else list(operations)


def spread(values: Sequence[float]) -> float:
    """Return the distance of the first and last decile, relative to the median."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return float((high - low) / middle) if middle > 0 else 0.0
