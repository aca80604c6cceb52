"""Packs and orders a whole replica by one CP-SAT model, and takes over what it proves."""

from collections.abc import Sequence
from dataclasses import dataclass

from cappuccino.models.replica import ReplicaModel
from cappuccino.models.replica_data import EvaluationData, Packing, ReplicaData, Way
from cappuccino.solvers.scheduling.grid import curves_data, lag_data, sample_data
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem
from cappuccino.solvers.scheduling.schedule import BlockedProgramsError, ReplicaSchedule, build_schedule
from cappuccino.solvers.scheduling.schedule_graph import GRID, is_better, renumbered, schedule_graph

_ROOM = 2**36
"""Memory beside what stands there, on the model's grid."""


@dataclass(frozen=True)
class WholeSolution:
    """What the model says of a replica."""

    schedule: ReplicaSchedule | None
    """Better than the one to begin with; None where there is no such."""
    bound_s: float
    """No plan of the replica ends earlier, seconds; 0 where the model leaves some of them out."""


@dataclass(frozen=True)
class WholeModel:
    """The model of a replica, and what its integers stand for."""

    model: ReplicaModel
    unit_s: float
    """Seconds of a point of the grid of time."""
    samples: tuple[tuple[int, int], ...]
    """By index i of the model: position of the adapter in the replica, number of the sample in its training order."""
    evaluations: tuple[Batch, ...]
    """By index e of the model."""

    @property
    def complete(self) -> bool:
        """Whether every plan of the replica is a case of the model, so that its bound holds for all of them."""
        return not self.evaluations and self.model.data.num_slots == len(self.samples)


def whole_model(schedule: ReplicaSchedule, num_slots: int | None = None) -> WholeModel:
    """Return the model of a replica, with a schedule of it as a hint; the schedule's end is the horizon.

    Parameters
    ----------
    num_slots
        Micro-batches that there may be; by default one a sample, of which every packing is a case.

    Raises
    ------
    ValueError
        For samples that are padded: times are no function of the sum of their work.
    """
    problem = schedule.problem
    if problem.instance.layout == "padded":
        raise ValueError("the model packs samples that are not padded")
    unit = schedule.makespan_s / GRID
    evaluations = [b for b in schedule.order if b.evaluation is not None]
    samples = [(a, n) for a, x in enumerate(problem.lengths) for n in range(x.size)]
    data = _data(problem, samples, evaluations, num_slots or len(samples), unit)
    return WholeModel(ReplicaModel(data, _packing(schedule, samples)), unit, tuple(samples), tuple(evaluations))


def solve_whole(
    schedule: ReplicaSchedule,
    seed: int,
    *,
    time_limit_s: float | None,
    deterministic_limit: float | None,
    num_slots: int | None = None,
    workers: int = 1,
) -> WholeSolution:
    """Pack and order a replica anew, all of it at once.

    Parameters
    ----------
    schedule
        To begin with.
    num_slots
        Micro-batches that there may be; by default one a sample, of which every packing is a case. With fewer there is
        no bound.
    time_limit_s, deterministic_limit, workers
        As of `ReplicaModel.solve`.

    Raises
    ------
    ValueError
        For samples that are padded: times are no function of the sum of their work.
    """
    whole = whole_model(schedule, num_slots)
    found = whole.model.solve(
        time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed, workers=workers
    )
    bound = found.bound * whole.unit_s if whole.complete else 0.0
    better = None
    if found.packing is not None:
        better = _scheduled(schedule.problem, whole.samples, whole.evaluations, found.packing)
    return WholeSolution(better if better is not None and is_better(better, schedule) else None, bound)


def _data(
    problem: ReplicaProblem, samples: list[tuple[int, int]], evaluations: list[Batch], num_slots: int, unit: float
) -> ReplicaData:
    """Return the replica on the grid; times are rounded down, so that nothing that can be is left out."""
    memory = problem.memory
    room = problem.held_room_gib * (1 + 1e-9)
    of_memory = _ROOM / room if room > 0 else 0.0
    return ReplicaData(
        num_stages=problem.num_stages,
        samples=tuple(sample_data(problem, a, n, unit) for a, n in samples),
        num_slots=num_slots,
        max_tokens=min(problem.max_tokens, sum(int(x.sum()) for x in problem.lengths)),
        curves=curves_data(problem, unit),
        step_duration=int(problem.costs.optimizer_s / unit),
        clipped=frozenset(a for a, clipped in enumerate(problem.adapter_costs.clipped) if clipped),
        lag=lag_data(problem, unit),
        held=(int(memory.held_gib * of_memory), int(memory.working_gib * of_memory), _ROOM),
        evaluations=tuple(
            EvaluationData(
                adapter=b.evaluation.adapter,
                step=b.evaluation.step,
                durations=tuple(int(b.forward_s[kind] / unit) for kind in problem.kinds.tolist()),
                lag=int(b.transfer_s / unit),
                memory=int(memory.working_gib * b.tokens * of_memory),
            )
            for b in evaluations
            if b.evaluation is not None
        ),
        horizon=GRID,
    )


def _packing(schedule: ReplicaSchedule, samples: list[tuple[int, int]]) -> Packing:
    """Return a schedule as a hint."""
    graph = schedule_graph(schedule)
    trained = [k for k, b in enumerate(schedule.order) if b.evaluation is None]
    evaluated = [k for k, b in enumerate(schedule.order) if b.evaluation is not None]
    slot = {k: number for number, k in enumerate(trained)}
    number = {k: e for e, k in enumerate(evaluated)}
    of_sample = {sample: slot[k] for k in trained for sample in schedule.order[k].samples}
    starts: dict[tuple[Way, int, int], int] = {}
    evaluation_starts = {}
    for s, (stage, times) in enumerate(zip(schedule.operations, graph.starts, strict=True)):
        for operation, start in zip(stage, times, strict=True):
            rank = operation if operation >= 0 else ~operation
            if rank in number:
                evaluation_starts[s, number[rank]] = start
            else:
                starts["F" if operation >= 0 else "B", s, slot[rank]] = start
    return Packing(tuple(of_sample[sample] for sample in samples), starts, evaluation_starts)


def _scheduled(
    problem: ReplicaProblem, samples: Sequence[tuple[int, int]], evaluations: Sequence[Batch], packing: Packing
) -> ReplicaSchedule | None:
    """Return what the model found as a schedule with its exact times; None where operations that tie make a circle."""
    used = sorted(set(packing.slots))
    groups = [[x for x, slot in zip(samples, packing.slots, strict=True) if slot == b] for b in used]
    order = [*problem.batches(groups), *evaluations]
    rank = {b: k for k, b in enumerate(used)}
    operations = []
    for s in range(problem.num_stages):
        mine = [
            (start, rank[b] if w == "F" else ~rank[b]) for (w, stage, b), start in packing.starts.items() if stage == s
        ]
        mine += [(start, len(used) + e) for (stage, e), start in packing.evaluation_starts.items() if stage == s]
        operations.append([operation for _, operation in sorted(mine, key=lambda x: (x[0], x[1] < 0, abs(x[1])))])
    try:
        return build_schedule(problem, *renumbered(order, operations))
    except BlockedProgramsError:
        return None
