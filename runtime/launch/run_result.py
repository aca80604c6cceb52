"""What a run produced, gathered from what its stages have left; needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cappuccino.files import write_atomically
from cappuccino.plan import Plan
from cappuccino.runtime.launch.keeper import AdapterKeeper
from cappuccino.runtime.launch.output import OutputFolder
from cappuccino.runtime.launch.results import (
    best_step,
    evaluations_as_json,
    losses_as_json,
    measured_timeline,
    read_reports,
)
from cappuccino.runtime.launch.specification import ReplicaSpecification
from cappuccino.runtime.lora.export import part_file
from cappuccino.runtime.monitoring.metrics import METRICS
from cappuccino.runtime.monitoring.monitor import EVALUATIONS, LOSSES, TRACE, RunMonitor
from cappuccino.runtime.pipeline.part_costs import PartCost
from cappuccino.runtime.pipeline.stopping import Stop, StopReason
from cappuccino.timeline import Timeline, write_trace

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class RunResult:
    """What a run produced."""

    adapters: Mapping[str, Path]
    """By name, the folder with the PEFT adapter."""
    timelines: list[Timeline]
    """By replica that had something to run, in the order of the plan; seconds from the replica's first operation."""
    losses: Mapping[str, list[float]]
    """By adapter, the loss of every optimizer step made: mean cross-entropy over the global batch's loss tokens."""
    trace: Path
    """Trace file of the measured times; a run that had nothing left to do leaves it as it was."""
    memory_gib: Mapping[int, tuple[np.ndarray, ...]]
    """By replica id and stage, the highest memory use so far after every operation: resident on the CPU, allocated on
    the GPU.
    """
    parts: Mapping[int, tuple[tuple[PartCost, ...], ...]]
    """By replica id and stage, the parts of the operations; empty where they were not measured."""
    evaluations: Mapping[str, Mapping[int, float]]
    """By adapter and optimizer step, the loss on its evaluation data behind that step."""
    kept: Mapping[str, int | None]
    """By adapter, the step whose weights it has; None: the last."""
    stopped: Mapping[str, Stop]
    """By adapter that did not come to its last step, where it ended and why."""

    @property
    def metrics(self) -> Path:
        """File of the run's events."""
        return self.trace.with_name(METRICS)

    @property
    def diverged(self) -> dict[str, int]:
        """By adapter whose loss or gradients were not finite, the step that was not made for that."""
        return {name: stop.step for name, stop in self.stopped.items() if stop.reason is StopReason.DIVERGED}

    def peak_memory_gib(self, replica: int) -> tuple[float, ...]:
        """Return the highest memory use of a replica, by its id, on every stage."""
        return tuple(float(memory[-1]) if len(memory) else 0.0 for memory in self.memory_gib[replica])


def gather_results(
    plan: Plan,
    out: Path,
    output: OutputFolder,
    specifications: Sequence[ReplicaSpecification],
    keeper: AdapterKeeper,
    monitor: RunMonitor,
    keep: Keep,
) -> RunResult:
    """Gather what a run's stages have left, and write all but the adapters, which stand there already.

    Parameters
    ----------
    out
        Folder of the results.
    output
        What writes there.
    specifications
        Of the replicas that ran.
    keeper
        What looked after checkpoints and adapters.
    monitor
        What knows the evaluations.
    keep
        Which weights adapters are written with.
    """
    placed = [name for replica in plan.replicas for name in replica.adapters]
    names = [*placed, *(name for name in plan.done if name not in placed)]
    evaluations = {name: keeper.evaluated(name) | monitor.evaluations.get(name, {}) for name in names}
    kept: dict[str, int | None] = dict.fromkeys(names)
    timelines, memory, parts = [], {}, {}
    for specification in specifications:
        replica = specification.replica
        reports = read_reports(specification.results, replica.num_stages)
        timelines.append(measured_timeline(replica, reports))
        memory[replica.id] = tuple(np.array(report.memory_gib) for report in reports)
        parts[replica.id] = tuple(report.parts for report in reports)
        if keep == "best":
            kept.update(_keep_best(specification, evaluations, keeper))
    losses = {name: keeper.losses[name] for name in names if name in keeper.losses}
    output.put(LOSSES, lambda path: write_atomically(path, losses_as_json(losses)))
    evaluations = {name: dict(sorted(evaluated.items())) for name, evaluated in evaluations.items() if evaluated}
    if evaluations:
        output.put(EVALUATIONS, lambda path: write_atomically(path, evaluations_as_json(evaluations)))
    if timelines:
        ran = [specification.replica for specification in specifications]
        output.put(TRACE, lambda path: write_trace(path, timelines, ran, "measured", plan.instance.sha256))
    adapters = {name: out / name for name in losses}
    stopped = {name: keeper.stopped[name] for name in names if name in keeper.stopped}
    return RunResult(adapters, timelines, losses, out / TRACE, memory, parts, evaluations, kept, stopped)


def _keep_best(
    specification: ReplicaSpecification, evaluations: Mapping[str, Mapping[int, float]], keeper: AdapterKeeper
) -> dict[str, int | None]:
    """Write the adapters of a replica as they were at their least evaluation loss; return the steps."""
    replica, kept = specification.replica, dict[str, int | None]()
    for position, name in enumerate(replica.adapters):
        step = best_step(evaluations[name])
        if step is not None:
            files = [part_file(specification.results, position, s, step) for s in range(replica.num_stages)]
            keeper.keep_weights(name, files)
            kept[name] = step
    return kept
