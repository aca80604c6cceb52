"""mLoRA's own executor: a stage takes the B that has arrived, else the F that has, whatever is in flight.

Every adapter has one micro-batch in flight at most; when its backward has returned, its next one may enter. Adapters
take turns in entering. Only the memory limits how many adapters are in flight.

Legend: M micro-batches; G stages.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.errors import CappuccinoError
from cappuccino.solvers.baselines.replica import BaselineReplica
from cappuccino.solvers.baselines.samples import Samples
from cappuccino.solvers.scheduling.construction import run_source, source_of
from cappuccino.solvers.scheduling.kernels.source import PackingRule
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


@dataclass(frozen=True)
class EagerReplica(BaselineReplica):
    """Adapters that take turns, one micro-batch of each in flight."""

    program: np.ndarray
    """Rank k for an F, ~k for a B, shape (G, 2 M)."""
    before: np.ndarray
    """As `evaluated_before`: where its stages have evaluated."""

    @property
    def operations(self) -> np.ndarray:
        """Rank k for the F of a micro-batch and ~k for its B, by stage, shape (G, 2 M)."""
        return self.program

    @property
    def evaluated_before(self) -> np.ndarray:  # type: ignore[override]
        """By evaluation micro-batch, the rank of the F that it stands before; `count` for the end of the programs."""
        return self.before


def eager_turns(problem: ReplicaProblem, samples: Samples, own: np.ndarray) -> EagerReplica:
    """Return the replica that mLoRA's executor makes of micro-batches of one adapter each.

    Parameters
    ----------
    own
        Number of each sample's micro-batch within its adapter, shape (N,).
    """
    source = source_of(problem, PackingRule(1.0, round_robin=True))
    first = np.full(int(samples.step_id.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, samples.step_id, own)
    source.place[:] = own - first[samples.step_id]
    found = run_source(problem, source)
    if found is None:
        raise CappuccinoError("adapters that take turns block each other")
    operations, jobs = found
    trained = jobs.evaluation < 0
    rank = np.cumsum(trained) - 1  # among those that are trained
    before = np.zeros(len(problem.evaluations), np.int64)
    before[jobs.evaluation[~trained]] = rank[~trained] + 1
    program = [
        [rank[op] if op >= 0 else ~rank[~op] for op in stage if trained[op if op >= 0 else ~op]] for stage in operations
    ]
    return EagerReplica(problem, samples, rank[source.batch_of], np.array(program), before)
