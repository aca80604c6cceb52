"""Baseline `mlora`: the adapters of a replica take turns (mLoRA, arXiv 2312.02515).

mLoRA pipelines independent adapters through one backbone: the micro-batches of one fill the bubbles of the others, and
nothing is flushed. Micro-batches are the adapters' own, of one adapter each: its pipeline does not pack.

Of every replica the best of three schedules counts: mLoRA's own executor (`eager.py`), and 1F1B with turns by
micro-batch or by batch, which others evaluate it with (LoRAFusion, arXiv 2510.00206). All adapters at the shallowest
depth that fits them all are tried as well as each adapter at its own, and every number of replicas that the pools
admit; the least GPU time counts.
"""

from collections.abc import Mapping, Sequence

from cappuccino.costs import CostModel
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.solvers.baselines.eager import eager_turns
from cappuccino.solvers.baselines.layout import Layout, best_layout
from cappuccino.solvers.baselines.one_f_one_b import OneFOneB
from cappuccino.solvers.baselines.placement import ReplicaShape, least_places, own_places, places_of
from cappuccino.solvers.baselines.replica import BaselineReplica, ranks_of
from cappuccino.solvers.baselines.samples import Samples, own_micro_batches
from cappuccino.solvers.baselines.sequential import alone_gpu_time, one_after_the_other
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


def mlora(instance: Instance, costs: Mapping[str, CostModel]) -> Layout:
    """Return the replicas.

    Raises
    ------
    InfeasibleError
        When an adapter fits nowhere, or no replicas of one depth hold them all.
    """
    places = places_of(instance, costs)
    everyone = range(len(instance.adapters))
    assignments: list[dict[ReplicaShape, list[int]]] = [{place: list(everyone)} for place in least_places(places)]
    assignments.append(own_places(places, alone_gpu_time))

    def best(assignments: Sequence[Mapping[ReplicaShape, Sequence[int]]]) -> Layout:
        return best_layout(
            assignments,
            lambda place, adapters: round_robin(place.problem(adapters)),
            _busy_s,
            lambda most: range(1, most + 1),
        )

    try:
        return best(assignments)
    except InfeasibleError:  # deeper replicas hold more adapters
        return best([{place: list(everyone)} for place in places if place.fits.all()])


def round_robin(problem: ReplicaProblem) -> BaselineReplica:
    """Return the best of mLoRA's own executor and of 1F1B with turns by micro-batch or by batch."""
    samples = Samples.of(problem)
    own = own_micro_batches(problem, samples)
    orders = (ranks_of(own, samples.position), ranks_of(samples.step, samples.position, own))
    candidates: list[BaselineReplica] = [OneFOneB(problem, samples, rank) for rank in orders]
    return min([*candidates, eager_turns(problem, samples, own)], key=lambda replica: replica.makespan_s)


def _busy_s(place: ReplicaShape, adapter: int) -> float:
    """Return how long an adapter keeps the busiest stage busy."""
    batches = one_after_the_other(place.problem([adapter])).batches
    return float((batches.forward_s + batches.backward_s).sum(axis=0).max())
