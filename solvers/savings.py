"""When not to share: every adapter's best separate run against what it adds to the replica it is in.

All figures are those of schedules found with the same small effort, so that they are comparable. A replica without one
of its adapters is scheduled starting from the replica's own schedule less that adapter's samples, which is valid and no
longer: no adapter adds less than nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cappuccino.bounds.replica_bounds import ReplicaBounds
from cappuccino.instance import GpuPool
from cappuccino.plan import AdapterSaving, Objective, Plan, Recompute
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem
from cappuccino.solvers.scheduling.schedule import PlacedReplica, ReplicaSchedule, build_schedule
from cappuccino.solvers.scheduling.scheduler import schedule_replica

_TOLERANCE = 1e-9
"""Relative; smaller gains are rounding."""
_NO_TIME = Clock(0.0)
_ReplicaKey = tuple[tuple[int, ...], str, Recompute | None, int, float]
"""Kinds by position, GPU type, recomputation, stages, makespan."""


@dataclass(frozen=True)
class _CostedPlace:
    """A pool and depth for a given set of adapters."""

    pool: GpuPool
    bounds: ReplicaBounds
    makespan_bound_s: float
    bound: float
    """Proven bound on what the set costs there, GPU-seconds or money."""


@dataclass(frozen=True)
class _Rest:
    """A replica without one of its adapters."""

    gpu_time_s: float
    schedule: ReplicaSchedule | None
    """Kept where taking the adapter out gains: there are many, and large ones. None when it has no other adapter."""


class SharingEvaluator:
    """Evaluates the adapters of scheduled replicas and keeps what it found for the next call.

    Adapters of one kind are evaluated once, and so are replicas that hold as many of each and have the same makespan.

    Parameters
    ----------
    context
        Money decides where it is the objective, GPU time otherwise. Separate runs are to end as the plan does: within
        the deadline or, where the makespan is the objective, the incumbent's makespan. Its clock is not used: methods
        are given one.
    """

    def __init__(self, context: Context) -> None:
        self._space, self._objective, self._seed = context.space, context.goal.objective, context.seed
        self._effort, self._settings = context.settings.sharing_effort, context.settings.scheduling
        self._pools = {pool.gpu: pool for pool in context.space.instance.gpu_pools}
        makespan_counts = self._objective is Objective.MAKESPAN
        limit_s = context.incumbent.objective if makespan_counts else context.goal.deadline_s
        self._limit_s = float("inf") if limit_s is None else limit_s * (1 + _TOLERANCE)
        # by kind of the adapter, the second ones by the replica as well
        self._alone: dict[int, PlacedReplica] = {}
        self._rests: dict[tuple[_ReplicaKey, int], _Rest] = {}
        self._potentials: dict[tuple[_ReplicaKey, int], float] = {}

    def savings(self, replicas: Sequence[PlacedReplica], clock: Clock) -> dict[str, AdapterSaving]:
        """Return the figures by adapter name, less those that there was no time for: separate runs come first.

        Without a time limit equal schedules and seeds give equal figures.
        """
        pairs = [(r, k) for r in replicas for k in dict.fromkeys(self._kinds(r))]
        for search in (self._alone_of, self._rest_of):
            for replica, kind in pairs:
                search(replica, kind, clock)
        result = {}
        for replica in replicas:
            for i, kind in zip(replica.schedule.problem.adapters, self._kinds(replica), strict=True):
                alone, rest = self._alone_of(replica, kind, _NO_TIME), self._rest_of(replica, kind, _NO_TIME)
                result[self._space.instance.adapters[i].name] = self._figures(replica, alone, rest)
        return result

    def _figures(self, replica: PlacedReplica, alone: PlacedReplica | None, rest: _Rest | None) -> AdapterSaving:
        found: dict[str, Any] = {}
        if alone is not None:
            found["alone_gpu"], found["alone_num_stages"] = alone.gpu, alone.schedule.problem.num_stages
            found["alone_gpu_time_s"] = alone.schedule.gpu_time_s
            found["alone_cost"] = self._money(alone.gpu, alone.schedule.gpu_time_s)
        if rest is not None:
            added_s = max(0.0, replica.schedule.gpu_time_s - rest.gpu_time_s)
            found["added_gpu_time_s"], found["added_cost"] = added_s, self._money(replica.gpu, added_s)
        return AdapterSaving(**found)

    def separations(self, replicas: Sequence[PlacedReplica], clock: Clock) -> list[PlacedReplica]:
        """Take adapters out of their replicas where that is cheaper and the pools have room, best gain first.

        Adapters are evaluated as far as the bounds let them gain, those that may gain most first.

        Returns those given where nothing gains; no replica ends later than the limit.
        """
        replicas = list(replicas)
        refused: set[tuple[int, int]] = set()  # (replica by identity, kind)
        while True:
            best: tuple[float, int, int] | None = None
            untried = [
                (self._potential(replica, kind), r, kind)
                for r, replica in enumerate(replicas)
                for kind in dict.fromkeys(self._kinds(replica))
                if (id(replica.schedule), kind) not in refused
            ]
            for potential, r, kind in sorted(untried, key=lambda u: (-u[0], *u[1:])):
                if potential <= (self._value(replicas[r]) * _TOLERANCE if best is None else best[0]):
                    break
                gain = self._gain(replicas[r], kind, clock)
                if gain is not None and gain > (self._value(replicas[r]) * _TOLERANCE if best is None else best[0]):
                    best = gain, r, kind
            if best is None:
                return replicas
            _, r, kind = best
            separate = self._separated(replicas, r, kind, clock)
            if separate is None:
                refused.add((id(replicas[r].schedule), kind))
            else:
                replicas[r : r + 1] = separate

    def _separated(
        self, replicas: Sequence[PlacedReplica], r: int, kind: int, clock: Clock
    ) -> list[PlacedReplica] | None:
        """Return what takes the place of a replica; None when there is only room where that gains nothing."""
        replica = replicas[r]
        alone, rest = self._alone_of(replica, kind, clock), self._rest_of(replica, kind, clock)
        assert alone is not None and rest is not None  # the gain is known
        adapters = list(replica.schedule.problem.adapters)
        adapter = adapters.pop(self._kinds(replica).index(kind))
        assert (rest.schedule is None) == (not adapters)
        parts = [] if rest.schedule is None else [PlacedReplica(_relabelled(rest.schedule, adapters), replica.gpu)]
        room = {gpu: pool.count for gpu, pool in self._pools.items()}
        for placed in [p for k, p in enumerate(replicas) if k != r] + parts:
            room[placed.gpu] -= placed.schedule.problem.num_stages
        if alone.schedule.problem.num_stages > room[alone.gpu]:
            places = [p for p in self._places([adapter]) if p.bounds.num_stages <= room[p.pool.gpu]]
            elsewhere = self._best((adapter,), places, clock)
            if elsewhere is None:
                return None
            alone = elsewhere
        parts.append(PlacedReplica(_relabelled(alone.schedule, [adapter]), alone.gpu))
        return parts if sum(map(self._value, parts)) < self._value(replica) * (1 - _TOLERANCE) else None

    def _kinds(self, replica: PlacedReplica) -> tuple[int, ...]:
        return tuple(self._space.kinds.of_adapter[list(replica.schedule.problem.adapters)].tolist())

    def _key(self, replica: PlacedReplica) -> _ReplicaKey:
        schedule = replica.schedule
        problem = schedule.problem
        return self._kinds(replica), replica.gpu, problem.costs.recompute, problem.num_stages, schedule.makespan_s

    def _gain(self, replica: PlacedReplica, kind: int, clock: Clock) -> float | None:
        """Return what taking out an adapter saves, negative where sharing pays; None when the time ended meanwhile."""
        alone, rest = self._alone_of(replica, kind, clock), self._rest_of(replica, kind, clock)
        if alone is None or rest is None:
            return None
        return self._value(replica) - self._measure(replica.gpu, rest.gpu_time_s) - self._value(alone)

    def _potential(self, replica: PlacedReplica, kind: int) -> float:
        """Return a proven bound on what taking out an adapter saves."""
        key = self._key(replica), kind
        if key not in self._potentials:
            adapters = list(replica.schedule.problem.adapters)
            adapter = adapters.pop(self._kinds(replica).index(kind))
            spent = min((p.bound for p in self._places([adapter])), default=0.0)
            if adapters:
                spent += min((p.bound for p in self._places_rest(replica, adapters)), default=0.0)
            self._potentials[key] = self._value(replica) - spent
        return self._potentials[key]

    def _alone_of(self, replica: PlacedReplica, kind: int, clock: Clock) -> PlacedReplica | None:
        """Return the best separate run of an adapter; None when the time ended meanwhile."""
        if kind not in self._alone and not clock.over:
            position = self._kinds(replica).index(kind)
            start = PlacedReplica(_projected(replica.schedule, [position]), replica.gpu)
            adapters = start.schedule.problem.adapters
            found = self._best(adapters, self._places(adapters), clock, start)
            if found is not None:
                self._alone[kind] = found
        known = self._alone.get(kind)
        if known is not None and self._kinds(replica) == (kind,) and self._value(replica) < self._value(known):
            return replica
        return known

    def _rest_of(self, replica: PlacedReplica, kind: int, clock: Clock) -> _Rest | None:
        """Return the best replica found for an adapter's companions; None when the time ended meanwhile."""
        key, problem = (self._key(replica), kind), replica.schedule.problem
        if key not in self._rests and len(problem.adapters) == 1:
            self._rests[key] = _Rest(0.0, None)
        if key not in self._rests and not clock.over:
            position = self._kinds(replica).index(kind)
            others = [a for a in range(len(problem.adapters)) if a != position]
            start = PlacedReplica(_projected(replica.schedule, others), replica.gpu)
            adapters = start.schedule.problem.adapters
            found = self._best(adapters, self._places_rest(replica, adapters), clock, start)
            if found is not None:
                alone = self._alone.get(kind)
                gains = alone is not None and self._value(found) + self._value(alone) < self._value(replica)
                self._rests[key] = _Rest(found.schedule.gpu_time_s, found.schedule if gains else None)
        return self._rests.get(key)

    def _best(
        self,
        adapters: tuple[int, ...],
        places: Sequence[_CostedPlace],
        clock: Clock,
        start: PlacedReplica | None = None,
    ) -> PlacedReplica | None:
        """Schedule adapters on the places that may be cheaper than the start, most promising bound first.

        Returns
        -------
        PlacedReplica or None
            None when no place meets the limit, or when the time ended before every place that matters was searched.
        """
        best = start
        for place in sorted(places, key=lambda p: (p.bound, p.makespan_bound_s)):
            if best is not None and place.bound >= self._value(best) * (1 - _TOLERANCE):
                break
            if place.makespan_bound_s > self._limit_s:
                continue
            if clock.over:
                return None
            stages = place.bounds.num_stages
            here = start is not None and _same_place(place, start)
            # where there is a start, building schedules from nothing would be idle
            constructions = 1 if here else self._effort.constructions
            found = schedule_replica(
                ReplicaProblem(
                    self._space.instance,
                    place.bounds.costs,
                    adapters,
                    stages,
                    place.pool.memory_gib,
                    place.makespan_bound_s,
                ),
                replace(self._effort, seconds=clock.left, constructions=constructions),
                self._seed,
                start=start.schedule if start is not None and here else None,
                settings=self._settings,
            )
            if clock.over:
                return None  # it may have been cut short
            placed = PlacedReplica(found, place.pool.gpu)
            if found.makespan_s <= self._limit_s and (best is None or self._value(placed) < self._value(best)):
                best = placed
        return best

    def _places(
        self, adapters: Sequence[int], gpu: str | None = None, most_stages: int | None = None
    ) -> list[_CostedPlace]:
        """Return every place where a set of adapters fits, of one GPU type or up to a depth if so wished."""
        numbers = self._space.kinds.numbers([adapters])
        result = []
        for pool, bounds in self._space.bounds:
            if gpu not in (None, pool.gpu) or (most_stages is not None and bounds.num_stages > most_stages):
                continue
            makespan = float(bounds.lower_bounds(numbers)[0])
            if np.isfinite(makespan):
                result.append(
                    _CostedPlace(pool, bounds, makespan, self._measure(pool.gpu, bounds.num_stages * makespan))
                )
        return result

    def _places_rest(self, replica: PlacedReplica, adapters: Sequence[int]) -> list[_CostedPlace]:
        """Return the places for a replica's other adapters: no more GPUs, of the same type, so that there is room."""
        return self._places(adapters, replica.gpu, replica.schedule.problem.num_stages)

    def _value(self, placed: PlacedReplica) -> float:
        return self._measure(placed.gpu, placed.schedule.gpu_time_s)

    def _measure(self, gpu: str, gpu_time_s: float) -> float:
        """Return what decides: money or GPU-seconds."""
        money = self._money(gpu, gpu_time_s) if self._objective is Objective.COST else None
        return gpu_time_s if money is None else money

    def _money(self, gpu: str, gpu_time_s: float) -> float | None:
        price = self._pools[gpu].price_per_hour
        return None if price is None else gpu_time_s * price / 3600


def _same_place(place: _CostedPlace, placed: PlacedReplica) -> bool:
    problem = placed.schedule.problem
    mine, other = place.bounds, problem.costs
    return (place.pool.gpu, mine.costs.recompute, mine.num_stages) == (placed.gpu, other.recompute, problem.num_stages)


def with_savings(plan: Plan, savings: Mapping[str, AdapterSaving]) -> Plan:
    """Return the plan with the figures of its adapters; those without any are stated as not evaluated."""
    replicas = tuple(
        r.model_copy(update={"savings": tuple(savings.get(name, AdapterSaving()) for name in r.adapters)})
        for r in plan.replicas
    )
    return plan.model_copy(update={"replicas": replicas})


def _relabelled(schedule: ReplicaSchedule, adapters: Sequence[int]) -> ReplicaSchedule:
    """Return the schedule for other adapters of the same kinds, position by position."""
    return replace(schedule, problem=replace(schedule.problem, adapters=tuple(adapters)))


def _projected(schedule: ReplicaSchedule, positions: Sequence[int]) -> ReplicaSchedule:
    """Return the schedule with the samples of these adapters only; no operation ends later than before."""
    place, whole = {old: new for new, old in enumerate(positions)}, schedule.problem
    adapters = tuple(whole.adapters[a] for a in positions)
    problem = ReplicaProblem(whole.instance, whole.costs, adapters, whole.num_stages, whole.memory_gib)
    order: list[Batch] = []
    rank: dict[int, int] = {}
    for k, batch in enumerate(schedule.order):
        samples = [(place[a], n) for a, n in batch.samples if a in place]
        what = batch.evaluation
        if samples:
            rank[k] = len(order)
            order.append(problem.batch(samples, batch.urgency_s))
        elif what is not None and what.adapter in place:
            rank[k] = len(order)
            order.append(problem.evaluation(what._replace(adapter=place[what.adapter])))
    operations = [
        [rank[op] if op >= 0 else ~rank[~op] for op in stage if (op if op >= 0 else ~op) in rank]
        for stage in schedule.operations
    ]
    return build_schedule(problem, order, operations)
