"""Baseline `sequential`: every adapter alone, as without any sharing.

Each adapter runs on the shallowest pipeline that its longest sample fits, in the pool where that costs the least GPU
time, with micro-batches of its own `micro_batch_size`, 1F1B and a flush at every step. As many such pipelines stand
side by side as the pools admit, balanced; each trains its adapters strictly one after the other, which costs the same
GPU time as any other number of pipelines.
"""

from collections.abc import Mapping

import numpy as np

from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.solvers.baselines.layout import Layout, spread
from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.placement import ReplicaShape, own_places, places_of
from cappuccino.solvers.baselines.replica import ranks_of
from cappuccino.solvers.baselines.samples import Samples, own_micro_batches
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


def sequential(instance: Instance, costs: Mapping[str, CostModel]) -> Layout:
    """Return one replica per group of adapters that take turns.

    Raises
    ------
    InfeasibleError
        When an adapter fits nowhere, or the adapters that take turns in a replica do not fit its memory together.
    """
    assignment = own_places(places_of(instance, costs), alone_gpu_time)
    times = {place: [alone_gpu_time(place, a) for a in adapters] for place, adapters in assignment.items()}
    layout: Layout = []
    for place, count in _numbers(times).items():
        for group in spread(times[place], count):
            adapters = [assignment[place][i] for i in group]
            if not place.holds(adapters):
                raise InfeasibleError("its replicas hold more adapters than fit the memory of their GPUs")
            layout.append((one_after_the_other(place.problem(adapters)), place.pool.gpu))
    return layout


def one_after_the_other(problem: ReplicaProblem) -> OneFOneB:
    """Return a replica that trains its adapters one after the other and flushes at every step."""
    samples = Samples.of(problem)
    rank = ranks_of(samples.position, own_micro_batches(problem, samples))
    flushed = np.zeros(int(rank.max()) + 1, dtype=bool)
    first = np.unique(samples.step_id, return_index=True)[1]
    flushed[rank[first]] = True
    return OneFOneB(problem, samples, rank, flushed)


def alone_gpu_time(place: ReplicaShape, adapter: int) -> float:
    """Return the GPU time of an adapter on a replica of its own."""
    return one_after_the_other(place.problem([adapter])).gpu_time_s


def _numbers(times: Mapping[ReplicaShape, list[float]]) -> dict[ReplicaShape, int]:
    """Return how many replicas each place gets: while there are GPUs, one more where replicas would end last."""
    numbers = dict.fromkeys(times, 1)
    free = {place.pool.gpu: place.pool.count for place in times}
    for place in times:
        free[place.pool.gpu] -= place.num_stages
    while True:
        growing = [p for p, n in numbers.items() if n < len(times[p]) and p.num_stages <= free[p.pool.gpu]]
        if not growing:
            return numbers
        place = max(growing, key=lambda p: sum(times[p]) / p.num_stages / numbers[p])
        numbers[place] += 1
        free[place.pool.gpu] -= place.num_stages
