"""Predicted against measured times of a replica: by kind of operation and stage, by optimizer step, and by cause.

The causes are found by substitution. The programs run on the cost model; then at the machine's speed in the run, where
a small fixed piece of work tells that it was another than in the profile; then with the measured times of the F's and
B's in place of the predicted ones; then with those of the optimizer steps as well; then with the measured transfers.
What each substitution adds to the makespan is that cause's part; what the measured makespan is still away is waiting:
time in which a stage had its input and did not start.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from cappuccino.costs import CostModel
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.plan import Operation, Plan, Replica
from cappuccino.simulator import run_programs
from cappuccino.timeline import Timeline
from cappuccino.workload import Workload

KINDS = {"F": "forward", "B": "backward", "S": "optimizer step", "E": "evaluation"}


@dataclass(frozen=True)
class OperationErrors:
    """Times of all operations of one kind on one stage, seconds."""

    kind: str
    """F, B or S."""
    stage: int
    count: int
    predicted_s: float
    """In total, as `measured_s`."""
    measured_s: float
    spread: tuple[float, float]
    """First and last decile of measured over predicted, operation by operation; NaN where none is predicted."""


@dataclass(frozen=True)
class StepErrors:
    """When an adapter's optimizer step was done on the first stage, seconds from the replica's first operation."""

    adapter: str
    step: int
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class Causes:
    """What makes the measured makespan differ from the predicted one, seconds; they add up to the difference."""

    machine_s: float
    """Another speed of the machine than while the table was measured; 0 where nobody knows."""
    compute_s: float
    optimizer_s: float
    transfer_s: float
    waiting_s: float


@dataclass(frozen=True)
class ReplicaComparison:
    """One replica, predicted and measured."""

    replica: Replica
    predicted: Timeline
    measured: Timeline
    operations: tuple[OperationErrors, ...]
    steps: tuple[StepErrors, ...]
    causes: Causes
    slower: float = 1.0
    """How much longer the machine took for the same than while the table was measured; 1 where nobody knows."""

    @property
    def difference(self) -> float:
        """Measured over predicted makespan, minus 1."""
        return self.measured.makespan / self.predicted.makespan - 1

    @property
    def difference_at_usual_speed(self) -> float:
        """The same without what is due to the machine's speed."""
        return (self.measured.makespan - self.causes.machine_s) / self.predicted.makespan - 1


def compare_with_trace(
    plan: Plan,
    instance: Instance,
    costs: Mapping[str, CostModel],
    measured: list[Timeline],
    digest: str,
    source: Path,
) -> tuple[ReplicaComparison, ...]:
    """Compare every replica of a valid plan with a trace of it.

    Parameters
    ----------
    measured, digest
        From `read_trace`.
    source
        The trace's file, for errors.

    Raises
    ------
    InputError
        When the trace is of another instance or plan.
    """
    if digest != plan.instance.sha256:
        problem = "the trace is of another instance than the plan"
        raise InputError(source, "otherData.instance_sha256", problem, "give the trace of a run of this plan")
    by_replica = {line.replica: line for line in measured}
    found = []
    for r in plan.replicas:
        line = by_replica.get(r.id)
        if line is None:
            raise InputError(source, "traceEvents", f"replica {r.id} is missing", "give the trace of a whole run")
        if tuple(map(tuple, line.programs)) != tuple(map(tuple, r.programs)):
            problem = f"replica {r.id} ran other operations than the plan's programs"
            if all(
                set(map(tuple, ran)) < set(map(tuple, p)) for ran, p in zip(line.programs, r.programs, strict=False)
            ):
                problem = f"replica {r.id} ran a part of the plan's programs: adapters were stopped, or it went on"
            raise InputError(source, "traceEvents", problem, "give the trace of a whole run of this plan")
        usual = costs[r.gpu].of_recomputation(r.recompute).reference_s.get(r.num_stages)
        slower = float(np.mean(line.reference_s)) / usual if usual and line.reference_s else 1.0
        found.append(_compare(r, line, Workload.of(r, instance, costs[r.gpu]), slower))
    return tuple(found)


def _compare(replica: Replica, measured: Timeline, workload: Workload, slower: float) -> ReplicaComparison:
    predicted = run_programs(replica.programs, workload, replica.id)
    return ReplicaComparison(
        replica=replica,
        predicted=predicted,
        measured=measured,
        operations=tuple(_operations(predicted, measured)),
        steps=tuple(_steps(replica, predicted, measured)),
        causes=_causes(replica, predicted, measured, workload, slower),
        slower=slower,
    )


def durations(line: Timeline) -> list[np.ndarray]:
    """Return how long every operation took, by stage in the order of its program, seconds."""
    return [end - start for start, end in zip(line.starts, line.ends, strict=True)]


def _operations(predicted: Timeline, measured: Timeline) -> Iterator[OperationErrors]:
    for kind in KINDS:
        pairs = zip(predicted.programs, durations(predicted), durations(measured), strict=True)
        for stage, (program, expected, taken) in enumerate(pairs):
            chosen = np.array([operation[0] == kind for operation in program], dtype=bool)
            if not chosen.any():
                continue
            ratios = taken[chosen & (expected > 0)] / expected[chosen & (expected > 0)]
            low, high = np.quantile(ratios, [0.1, 0.9]) if len(ratios) else (np.nan, np.nan)
            totals = float(expected[chosen].sum()), float(taken[chosen].sum())
            yield OperationErrors(kind, stage, int(chosen.sum()), *totals, (float(low), float(high)))


def _steps(replica: Replica, predicted: Timeline, measured: Timeline) -> Iterator[StepErrors]:
    for position, operation in enumerate(replica.programs[0]):
        if operation[0] == "S":
            ends = float(predicted.ends[0][position]), float(measured.ends[0][position])
            yield StepErrors(replica.adapters[operation[1]], operation[2], *ends)


def _causes(replica: Replica, predicted: Timeline, measured: Timeline, workload: Workload, slower: float) -> Causes:
    expected, taken = [slower * d for d in durations(predicted)], durations(measured)
    is_step = [np.array([op[0] == "S" for op in program], dtype=bool) for program in replica.programs]
    computed = [np.where(s, e, t) for s, e, t in zip(is_step, expected, taken, strict=True)]
    moved = replace(workload, transfer_s=measured_transfers(measured, workload))
    ends = [predicted.makespan]
    ends.append(run_programs(replica.programs, workload, replica.id, expected).makespan)
    ends.append(run_programs(replica.programs, workload, replica.id, computed).makespan)
    ends.append(run_programs(replica.programs, workload, replica.id, taken).makespan)
    ends.append(run_programs(replica.programs, moved, replica.id, taken).makespan)
    ends.append(measured.makespan)
    return Causes(*(later - earlier for earlier, later in pairwise(ends)))


def measured_transfers(measured: Timeline, workload: Workload) -> np.ndarray:
    """Return by micro-batch the least time between its end on a stage and its start on the next that was ready for it.

    A stage that was busy hides the transfer; where all were, the least of those of other micro-batches stands in.
    """
    count = len(workload.transfer_s)
    if len(measured.programs) == 1:
        return workload.transfer_s
    least = np.full(count, np.inf)
    at: list[dict[Operation, int]] = [{op: i for i, op in enumerate(p)} for p in measured.programs]
    for stage in range(len(measured.programs) - 1):
        for m in range(count):
            for source, goal, kind in ((stage, stage + 1, "F"), (stage + 1, stage, "B")):
                operation: Operation = (kind, m)  # type: ignore[assignment]
                here, there = at[source][operation], at[goal][operation]
                sent, begun = float(measured.ends[source][here]), float(measured.starts[goal][there])
                free = float(measured.ends[goal][there - 1]) if there else 0.0
                if free <= sent:  # it waited for this
                    least[m] = min(least[m], begun - sent)
    known = least[np.isfinite(least)]
    return np.where(np.isfinite(least), least, float(np.median(known)) if len(known) else workload.transfer_s)
