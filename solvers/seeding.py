"""The plans of the baselines as incumbents, so that no plan is worse than one of them."""

import time

from cappuccino.errors import InfeasibleError
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.baselines import Baseline, baseline_replicas
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.schedule import PlacedReplica

BASELINE = "baseline"
"""Method of plans that a baseline has made."""
_PACE_S = {
    Baseline.REFERENCE: (6e-5, 0.0),
    Baseline.GROUPED: (0.0, 8e-6),
    Baseline.SEQUENTIAL: (2e-5, 0.0),
    Baseline.MLORA: (0.0, 8e-6),
}
"""About what they take, seconds by sample, and by sample and adapter; those that were best most often come first."""
_TOLERANCE = 1e-9


def offer_baselines(context: Context) -> None:
    """Offer what the baselines make of the instance, where the options admit it.

    A baseline knows no limit of time: it is begun only where what it usually takes is left.

    Parameters
    ----------
    context
        A share of its clock is the time for it; its incumbent takes the plans.
    """
    incumbent, space, clock = context.incumbent, context.space, _clock(context)
    places = {(p.gpu, b.costs.recompute, b.num_stages) for p, b in space.bounds}
    samples = sum(lengths.size for lengths in space.instance.step_lengths)
    slower = 1.0  # than usual, this machine
    for baseline, (by_sample, by_pair) in _PACE_S.items():
        expected_s = samples * (by_sample + by_pair * len(space.instance.adapters))
        left = clock.left
        if clock.over or (left is not None and slower * expected_s > left):
            continue
        if incumbent.objective <= incumbent.bound * (1 + _TOLERANCE):
            return  # nothing is better
        begin = time.monotonic()
        try:
            replicas = baseline_replicas(baseline, space.instance, space.costs)
        except InfeasibleError:
            continue  # it cannot run on the instance
        slower = max(slower, (time.monotonic() - begin) / expected_s)
        if all(_place(r) in places for r in replicas):
            incumbent.offer(replicas, BASELINE)


def _clock(context: Context) -> Clock:
    left, settings = context.clock.left, context.settings
    if left is None:
        return context.clock
    return Clock(max(settings.baseline_share * left, min(settings.least_baseline_s, left / 2)))


def _place(replica: PlacedReplica) -> tuple[str, object, int]:
    problem = replica.schedule.problem
    return replica.gpu, problem.costs.recompute, problem.num_stages
