"""The possible replicas of an instance with their proven bounds, and why an adapter may have none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.bounds import ReplicaBounds
from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import GpuPool, Instance
from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective

MOST_ENUMERATED = 12
"""Adapters up to which every subset becomes a column."""


@dataclass(frozen=True)
class ReplicaSpace:
    """Which replicas an instance allows: every pool and depth, with the bounds of any set of adapters there."""

    instance: Instance
    costs: Mapping[str, CostModel]
    bounds: tuple[tuple[GpuPool, ReplicaBounds], ...]

    @classmethod
    def of(
        cls,
        instance: Instance,
        costs: Mapping[str, CostModel],
        num_stages: int | None = None,
        profiled_only: bool = False,
    ) -> "ReplicaSpace":
        """Collect the depths worth considering in every pool.

        Parameters
        ----------
        num_stages
            Fixes the depth.
        profiled_only
            Forbids depths that the cost table does not hold.

        Raises
        ------
        InfeasibleError
            When an adapter fits nowhere; the message says what it needs and what would make it fit.
        """
        bounds = []
        for pool in instance.gpu_pools:
            model = costs[pool.gpu]
            counts = model.stage_counts(pool.count, profiled_only)
            if num_stages is not None:
                allowed = num_stages <= min(pool.count, model.num_layers or pool.count)
                profiled = not (profiled_only and model.extrapolated(num_stages))
                counts = (num_stages,) if allowed and profiled else ()
            bounds += [(pool, ReplicaBounds(instance, model, g, pool.memory_gib)) for g in counts]
        space = cls(instance, costs, tuple(bounds))
        space._require_a_place_for_all(num_stages, profiled_only)
        return space

    @property
    def enumerates_all(self) -> bool:
        """Whether every subset of adapters becomes a column."""
        return len(self.instance.adapters) <= MOST_ENUMERATED

    @cached_property
    def members(self) -> np.ndarray:
        """The sets of adapters that become columns, bool, shape (sets, adapters)."""
        count = len(self.instance.adapters)
        if self.enumerates_all:
            numbers = np.arange(1, 2**count)
            return (numbers[:, None] >> np.arange(count) & 1).astype(bool)
        return _merged_sets(self)

    def columns(self, deadline_s: float | None = None) -> list[Column]:
        """Return a column for every set, pool and depth that fits, its makespan the proven bound.

        Columns that cannot meet the deadline are left out.
        """
        result = []
        limit = np.inf if deadline_s is None else deadline_s
        members = self.members
        if deadline_s is not None and not self.enumerates_all:
            members = np.unique(np.concatenate([members, _sets_within(self, deadline_s)]), axis=0)
        adapters = [tuple(np.flatnonzero(m).tolist()) for m in members]
        for pool, bounds in self.bounds:
            makespans = bounds.lower_bounds(members)
            price = (pool.price_per_hour or 0.0) / 3600
            for k in np.flatnonzero(np.isfinite(makespans) & (makespans <= limit)):
                result.append(Column(adapters[k], pool.gpu, bounds.num_stages, float(makespans[k]), price))
        return result

    def objective_bound(self, objective: Objective) -> float:
        """Return a bound on the objective that holds for every partition, enumerated or not.

        Every adapter costs at least its own work at the best efficiency that memory allows, wherever it runs. In terms
        of the makespan, all that work is spread over all GPUs, and no adapter is faster than its path.
        """
        gpu_time = np.full(len(self.instance.adapters), np.inf)
        money = gpu_time.copy()
        paths = gpu_time.copy()
        for pool, bounds in self.bounds:
            work = bounds.num_stages * bounds.efficient_work
            price = (pool.price_per_hour or 0.0) / 3600
            gpu_time = np.minimum(gpu_time, np.where(bounds.fits, work, np.inf))
            money = np.minimum(money, np.where(bounds.fits, work * price, np.inf))
            paths = np.minimum(paths, bounds.paths)
        if objective is Objective.GPU_TIME:
            return float(gpu_time.sum())
        if objective is Objective.COST:
            return float(money.sum())
        gpus = sum(p.count for p in self.instance.gpu_pools)
        return max(float(gpu_time.sum()) / gpus, float(paths.max()))

    def _require_a_place_for_all(self, num_stages: int | None, profiled_only: bool) -> None:
        for i, adapter in enumerate(self.instance.adapters):
            if not any(bounds.fits[i] for _, bounds in self.bounds):
                remedies = list(self._remedies(i, num_stages, profiled_only))
                longest = int(self.instance.step_lengths[i].max())
                message = f'{self.instance.source}: adapters[{i}] "{adapter.name}" fits nowhere: '
                needs = "; ".join(self._needs(longest)) or "no allowed number of stages fits the pools"
                raise InfeasibleError(f"{message}{needs}; {' or '.join(remedies)}")

    def _needs(self, longest: int) -> Iterator[str]:
        if self.bounds:
            yield f"its longest sample has {longest} tokens"
        for pool, bounds in self.bounds:
            memory = bounds.costs.memory_model(bounds.num_stages)
            need = float(memory.peak(longest, longest))
            limit = bounds.costs.memory_limit(pool.memory_gib)
            stages = "1 stage needs" if bounds.num_stages == 1 else f"{bounds.num_stages} stages need"
            yield f"on {pool.gpu} {stages} {need:.1f} GiB of {limit:.1f} usable each"

    def _remedies(self, adapter: int, num_stages: int | None, profiled_only: bool) -> Iterator[str]:
        longest = int(self.instance.step_lengths[adapter].max())
        shorter = max((bounds.max_tokens for _, bounds in self.bounds), default=0)
        if shorter > 0:
            yield f"set max_sequence_length to at most {shorter}"
        for pool in self.instance.gpu_pools:
            model = self.costs[pool.gpu]
            most = min(model.num_layers or 64, 64)
            fitting = [g for g in range(1, most + 1) if model.max_tokens(g, pool.memory_gib) >= longest]
            if fitting:
                allow = " and allow stage counts that were not profiled" if profiled_only else ""
                fixed = " instead of the fixed depth" if num_stages is not None else ""
                count = "1 GPU" if fitting[0] == 1 else f"{fitting[0]} GPUs"
                yield f"give {pool.gpu} at least {count}{fixed}{allow}"
        yield "use GPUs with more memory"


def _sets_within(space: ReplicaSpace, deadline_s: float) -> np.ndarray:
    """Fill replicas of every pool and depth up to the deadline: heaviest adapter first, each where it fits tightest.

    Schedules end above their bounds, so sets with some room to the deadline are made as well.
    """
    count = len(space.instance.adapters)
    sets: list[np.ndarray] = []
    for _, bounds in space.bounds:
        alone = bounds.lower_bounds(np.eye(count, dtype=bool))
        order = [i for i in np.argsort(-alone) if alone[i] <= deadline_s]
        for room in (1.0, 0.97, 0.9, 0.8):
            groups = np.zeros((0, count), dtype=bool)
            for i in order:
                extended = groups.copy()
                extended[:, i] = True
                makespans = bounds.lower_bounds(extended) if len(groups) else np.zeros(0)
                makespans = np.where(makespans <= room * deadline_s, makespans, -np.inf)
                if len(groups) and np.isfinite(makespans).any():
                    groups[int(makespans.argmax()), i] = True
                else:
                    groups = np.concatenate([groups, np.eye(count, dtype=bool)[i : i + 1]])
            sets += list(groups)
    return np.array(sets).reshape(-1, count)


def _merged_sets(space: ReplicaSpace) -> np.ndarray:
    """Merge adapters pairwise, best saving of the bound first, until one set is left.

    Returns the sets on the way, and at every level the unions that would have saved most besides.
    """
    count = len(space.instance.adapters)
    seen: dict[bytes, np.ndarray] = {}

    def best_cost(members: np.ndarray) -> np.ndarray:
        cost = np.full(len(members), np.inf)
        for _, bounds in space.bounds:
            cost = np.minimum(cost, bounds.num_stages * bounds.lower_bounds(members))
        return cost

    groups = np.eye(count, dtype=bool)
    cost = best_cost(groups)
    seen |= {g.tobytes(): g for g in groups}
    while len(groups) > 1:
        left, right = np.triu_indices(len(groups), 1)
        unions = groups[left] | groups[right]
        merged = best_cost(unions)
        saving = cost[left] + cost[right] - merged
        order = np.argsort(-np.nan_to_num(saving, nan=-np.inf), kind="stable")
        for k in order[: max(8, count)]:
            seen[unions[k].tobytes()] = unions[k]
        best = order[0]
        keep = [g for g in range(len(groups)) if g not in (left[best], right[best])]
        groups = np.concatenate([groups[keep], unions[best : best + 1]])
        cost = np.concatenate([cost[keep], merged[best : best + 1]])
    return np.array(list(seen.values()))
