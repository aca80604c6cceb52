"""All samples of a replica as flat arrays, and each adapter's own micro-batches.

Legend: N samples of a replica, adapter by adapter in training order.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.compiled import compiled
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem


@dataclass(frozen=True)
class Samples:
    """The samples of a replica; arrays have shape (N,)."""

    position: np.ndarray
    """Position of the adapter in the replica."""
    number: np.ndarray
    """Number in the adapter's training order."""
    step: np.ndarray
    """Optimizer step of the adapter."""
    step_id: np.ndarray
    """Steps of all adapters numbered one after the other, so that step j + 1 of an adapter follows its step j."""
    length: np.ndarray
    """Tokens."""

    @classmethod
    def of(cls, problem: ReplicaProblem) -> "Samples":
        """Return the samples of a replica."""
        shapes = np.array([x.shape for x in problem.lengths], dtype=np.int64)
        steps, batch = shapes.T
        size = steps * batch
        position = np.repeat(np.arange(len(size)), size)
        number = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        step = number // batch[position]
        return cls(
            position=position,
            number=number,
            step=step,
            step_id=step + np.repeat(np.cumsum(steps) - steps, size),
            length=np.concatenate([x.ravel() for x in problem.lengths]).astype(np.int64),
        )


def own_micro_batches(problem: ReplicaProblem, samples: Samples) -> np.ndarray:
    """Cut every step into micro-batches of the adapter's own `micro_batch_size`, as it would run alone.

    Consecutive samples share a micro-batch; one that memory cannot hold is cut further, into as few as consecutive
    samples allow.

    Returns
    -------
    np.ndarray
        Number of each sample's micro-batch within its adapter, counted over all steps, shape (N,).
    """
    jobs = [problem.instance.adapters[i] for i in problem.adapters]
    batch = np.array([job.global_batch_size for job in jobs])
    size = np.array([job.micro_batch_size for job in jobs])
    padded = problem.instance.layout == "padded"
    return _cut(samples.position, samples.number, samples.length, batch, size, problem.max_tokens, padded)


@compiled
def _cut(
    position: np.ndarray,
    number: np.ndarray,
    length: np.ndarray,
    batch: np.ndarray,
    size: np.ndarray,
    max_tokens: int,
    padded: bool,
) -> np.ndarray:
    result = np.zeros(len(length), np.int64)
    current, count, tokens, longest = 0, 0, 0, 0
    for i in range(len(length)):
        a = position[i]
        new_longest = max(longest, length[i])
        grown = new_longest * (count + 1) if padded else tokens + length[i]
        if number[i] == 0:
            current, count = 0, 0
        elif number[i] % batch[a] % size[a] == 0 or grown > max_tokens:
            current, count = current + 1, 0
        if count == 0:
            new_longest = length[i]
            grown = length[i]
        result[i] = current
        count += 1
        tokens, longest = grown, new_longest
    return result
