"""The possible replicas of an instance with their proven bounds, and why an adapter may have none."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.bounds.replica_bounds import MOST_STEPS_PACKED, ReplicaBounds
from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import GpuPool, Instance
from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.adapter_classes import AdapterClasses
from cappuccino.solvers.allocation.pricing import Place
from cappuccino.solvers.settings import DEFAULT


@dataclass(frozen=True)
class ReplicaSpace:
    """Which replicas an instance allows: every pool, depth and recomputation, with the bounds of all sets there."""

    instance: Instance
    costs: Mapping[str, CostModel]
    kinds: AdapterClasses
    bounds: tuple[tuple[GpuPool, ReplicaBounds], ...]
    """Of an instance with one adapter of each kind: sets are given by how many adapters of each kind they hold."""
    most_sets: int = DEFAULT.allocation.most_sets
    """Sets of adapters up to which every one becomes a column."""

    @classmethod
    def of(
        cls,
        instance: Instance,
        costs: Mapping[str, CostModel],
        num_stages: int | None = None,
        profiled_only: bool = False,
        most_sets: int = DEFAULT.allocation.most_sets,
        packed_steps: int | None = None,
    ) -> "ReplicaSpace":
        """Collect the depths worth considering in every pool, with every kind of recomputation.

        Parameters
        ----------
        num_stages
            Fixes the depth.
        profiled_only
            Forbids depths that the cost table does not hold.
        most_sets
            Sets of adapters up to which every one becomes a column.
        packed_steps
            Optimizer steps in all places together for which the bounds look at every packing; None: as many as they
            ever do.

        Raises
        ------
        InfeasibleError
            When an adapter fits nowhere; the message says what it needs and what would make it fit.
        """
        places = []
        for pool in instance.gpu_pools:
            for model in costs[pool.gpu].choices:
                counts = model.stage_counts(pool.count, profiled_only)
                if num_stages is not None:
                    allowed = num_stages <= min(pool.count, model.num_layers or pool.count)
                    profiled = not (profiled_only and model.extrapolated(num_stages))
                    counts = (num_stages,) if allowed and profiled else ()
                places += [(pool, model, g) for g in counts]
        kinds = AdapterClasses.of(instance, [model.adapter_costs(g, instance.adapters) for _, model, g in places])
        representatives = instance.subset(kinds.representatives)
        most = MOST_STEPS_PACKED
        if packed_steps is not None and places:
            most = min(most, packed_steps // len(places))
        bounds = [(pool, ReplicaBounds(representatives, model, g, pool.memory_gib, most)) for pool, model, g in places]
        space = cls(instance, costs, kinds, tuple(bounds), most_sets)
        space._require_a_place_for_all(num_stages, profiled_only)
        return space

    @property
    def pools(self) -> dict[str, int]:
        """GPUs by type."""
        return {p.gpu: p.count for p in self.instance.gpu_pools}

    @property
    def enumerates_all(self) -> bool:
        """Whether every set of adapters becomes a column."""
        return self.kinds.number_of_sets <= self.most_sets

    @cached_property
    def sets(self) -> np.ndarray:
        """Every set of adapters, shape (N, K); only where `enumerates_all`."""
        return self.kinds.all_sets()

    @cached_property
    def set_bounds(self) -> np.ndarray:
        """Proven bound on the makespan of every set in every place, seconds, shape (places, N)."""
        return np.array([bounds.lower_bounds(self.sets) for _, bounds in self.bounds])

    def places(self, objective: Objective) -> tuple[Place, ...]:
        """Return the additive bounds of every pool and depth, in the order of `bounds`."""
        return tuple(
            Place(
                gpu=pool.gpu,
                num_stages=bounds.num_stages,
                rate=self.rate(pool.gpu, bounds.num_stages, objective),
                ramp_s=bounds.ramp_s,
                shares=bounds.shares,
                paths=paths,
                room=bounds.room,
                recompute=bounds.costs.recompute,
            )
            for (pool, bounds), paths in zip(self.bounds, self._paths, strict=True)
        )

    @cached_property
    def _paths(self) -> tuple[np.ndarray, ...]:
        """Path bounds by place, worked out in parallel: the compiled search for them releases the lock."""
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as executor:
            return tuple(executor.map(lambda entry: entry[1].paths, self.bounds))

    def rate(self, gpu: str, num_stages: int, objective: Objective) -> float:
        """Return what a second of a replica adds to the objective; 0 for the makespan, which is no sum."""
        if objective is Objective.MAKESPAN:
            return 0.0
        price = 1.0 if objective is Objective.GPU_TIME else self.price_per_second(gpu)
        return num_stages * price

    def price_per_second(self, gpu: str) -> float:
        """Return the price of a GPU-second; 0 where the pool has none."""
        return (self.instance.pool(gpu).price_per_hour or 0.0) / 3600

    def column(self, place: int, numbers: np.ndarray, makespan_s: float) -> Column:
        """Return the column of a set, standing for all that hold as many adapters of each kind."""
        pool, bounds = self.bounds[place]
        adapters = self.kinds.adapters(numbers)
        return Column(adapters, pool.gpu, bounds.num_stages, float(makespan_s), self.price_per_second(pool.gpu))

    def objective_bound(self, objective: Objective) -> float:
        """Return a bound on the objective that holds for every partition, from the work alone.

        Every adapter costs at least its own work at the best efficiency that memory allows, wherever it runs. In terms
        of the makespan, all that work is spread over all GPUs, and no adapter is faster than its path.
        """
        places = self.places(objective if objective is not Objective.MAKESPAN else Objective.GPU_TIME)
        counts = self.kinds.counts
        least = np.min([p.least_costs() for p in places], axis=0)
        total = float(counts @ least)
        if objective is not Objective.MAKESPAN:
            return total
        paths = np.min([p.paths for p in places], axis=0)
        return max(total / sum(self.pools.values()), float(paths.max()))

    def _require_a_place_for_all(self, num_stages: int | None, profiled_only: bool) -> None:
        for i, adapter in enumerate(self.instance.adapters):
            if not any(bounds.fits[self.kinds.of_adapter[i]] for _, bounds in self.bounds):
                remedies = list(self._remedies(i, num_stages, profiled_only))
                longest = int(self.instance.step_lengths[i].max())
                message = f'{self.instance.source}: adapters[{i}] "{adapter.name}" fits nowhere: '
                needs = (
                    "; ".join(self._needs(int(self.kinds.of_adapter[i]), longest))
                    or "no allowed number of stages fits the pools"
                )
                raise InfeasibleError(f"{message}{needs}; {' or '.join(remedies)}")

    def _needs(self, kind: int, longest: int) -> Iterator[str]:
        if self.bounds:
            yield f"its longest sample has {longest} tokens"
        for pool, bounds in self.bounds:
            room = bounds.room
            beside = room.memory.beside(float(room.adapters_gib[kind]), float(room.masks_gib[kind]))
            need, limit = float(beside.peak(longest, longest)), room.limit_gib
            stages = "1 stage needs" if bounds.num_stages == 1 else f"{bounds.num_stages} stages need"
            several = len(self.costs[pool.gpu].choices) > 1
            mode = f" with recomputation {bounds.costs.recompute}" if several else ""
            yield f"on {pool.gpu} {stages} {need:.1f} GiB of {limit:.1f} usable each{mode}"

    def _remedies(self, adapter: int, num_stages: int | None, profiled_only: bool) -> Iterator[str]:
        longest = int(self.instance.step_lengths[adapter].max())
        kind = self.kinds.of_adapter[adapter]
        shorter = max((int(bounds.most_tokens[kind]) for _, bounds in self.bounds), default=0)
        if shorter > 0:
            yield f"set max_sequence_length to at most {shorter}"
        for pool in self.instance.gpu_pools:
            model = self.costs[pool.gpu].choices[-1]  # full recomputation where there is a choice
            most = min(model.num_layers or 64, 64)
            limit, alone = model.memory_limit(pool.memory_gib), [self.instance.adapters[adapter]]
            fitting = [
                g
                for g in range(1, most + 1)
                if model.adapter_costs(g, alone).beside(model.memory_model(g)).max_tokens(limit) >= longest
            ]
            if fitting:
                allow = " and allow stage counts that were not profiled" if profiled_only else ""
                fixed = " instead of the fixed depth" if num_stages is not None else ""
                count = "1 GPU" if fitting[0] == 1 else f"{fitting[0]} GPUs"
                yield f"give {pool.gpu} at least {count}{fixed}{allow}"
        yield "use GPUs with more memory"
