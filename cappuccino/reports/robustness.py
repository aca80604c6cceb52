"""How a plan fares when operations take other times than predicted: its programs are run under multiplicative noise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.simulator import run_programs
from cappuccino.workload import Workload


@dataclass(frozen=True)
class NoisyRuns:
    """What running a plan many times under noise gives; arrays of shape (runs,)."""

    sigma: float
    """Standard deviation of the logarithm of every factor."""
    gpu_time_s: np.ndarray
    makespan_s: np.ndarray
    planned_gpu_time_s: float
    """Without noise, as `planned_makespan_s`."""
    planned_makespan_s: float

    @property
    def slowdowns(self) -> np.ndarray:
        """GPU time of every run over that of the plan: what the noise costs through waiting, for its mean is 1."""
        return np.asarray(self.gpu_time_s / self.planned_gpu_time_s)


def run_under_noise(
    plan: Plan, instance: Instance, costs: Mapping[str, CostModel], sigma: float, runs: int, seed: int = 0
) -> NoisyRuns:
    """Run the programs of a valid plan again and again, every operation's time multiplied by a factor of its own.

    The factors of operations and transfers are log-normal, independent and of mean 1. The order of the programs stays:
    a plan degrades gracefully when delays are taken up by the bubbles instead of adding up.

    Parameters
    ----------
    sigma
        Standard deviation of the logarithm of the factors; 0 gives the plan's own times.
    runs
        How often the plan is run.
    """
    rng = np.random.default_rng(seed)
    gpu_time, makespan = np.zeros(runs), np.zeros(runs)
    planned_gpu_time, planned_makespan = 0.0, 0.0
    for r in plan.replicas:
        workload = Workload.of(r, instance, costs[r.gpu])
        exact = run_programs(r.programs, workload, r.id)
        planned_gpu_time += r.num_stages * exact.makespan
        planned_makespan = max(planned_makespan, exact.makespan)
        durations = [end - start for start, end in zip(exact.starts, exact.ends, strict=True)]
        for n in range(runs):
            noisy = [d * _factors(rng, sigma, len(d)) for d in durations]
            transfers = workload.transfer_s * _factors(rng, sigma, len(workload.transfer_s))
            run = run_programs(r.programs, replace(workload, transfer_s=transfers), r.id, noisy)
            gpu_time[n] += r.num_stages * run.makespan
            makespan[n] = max(makespan[n], run.makespan)
    return NoisyRuns(sigma, gpu_time, makespan, planned_gpu_time, planned_makespan)


def _factors(rng: np.random.Generator, sigma: float, count: int) -> np.ndarray:
    return np.exp(sigma * rng.standard_normal(count) - sigma**2 / 2)
