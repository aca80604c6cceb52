"""Replicas so small that their least makespan is found by exhaustion."""

from collections.abc import Iterator

import numpy as np
from bounds.test_replica_bounds import random_case

from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule, build_schedule
from helpers.builders import make_problem
from helpers.exhaustive import least_makespan

ERROR = 0.007
"""Of a makespan: curves are replaced by tangents, times and memory are rounded."""


def worst_schedule(problem: ReplicaProblem) -> ReplicaSchedule:
    """Return the schedule of one sample after the other, evaluations where they belong."""
    order: list[Batch] = []
    for a, lengths in enumerate(problem.lengths):
        for j in range(len(lengths)):
            order += problem.batches([[(a, j * lengths.shape[1] + n)] for n in range(lengths.shape[1])])
            order += [b for b in problem.evaluations if b.evaluation is not None and b.evaluation[:2] == (a, j)]
    program = tuple(op for k, b in enumerate(order) for op in ((k, ~k) if b.evaluation is None else (k,)))
    return build_schedule(problem, order, (program,) * problem.num_stages)


def cases(seeds: range) -> Iterator[tuple[ReplicaProblem, float]]:
    """Yield drawn replicas with their least makespans over all packings and orders."""
    for seed in seeds:
        instance, costs, stages = random_case(seed)
        least = np.inf if instance.layout == "padded" else least_makespan(instance, costs, stages)
        if np.isfinite(least):
            yield make_problem(instance, costs, stages), least
