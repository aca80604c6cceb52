"""Lower bounds on a replica's makespan that hold for every packing and every order.

Legend: N sets of adapters, A adapters; x work of a micro-batch (asymptotic seconds on one stage), t(x) its time; g
stages.

A micro-batch's time is convex in its work and positive at none, so n micro-batches of total work X take at least
n t(X / n), which grows with n: the fewest micro-batches that the rules allow give the bound.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cappuccino.costs import CostModel, SmoothMaximum
from cappuccino.instance import Instance


@dataclass(frozen=True)
class ReplicaBounds:
    """Bounds for any set of adapters of an instance on `num_stages` GPUs of one type."""

    instance: Instance
    costs: CostModel
    num_stages: int
    memory_gib: float
    """Memory of one GPU of the pool."""

    @cached_property
    def max_tokens(self) -> int:
        """Largest micro-batch that fits a stage, tokens."""
        return self.costs.max_tokens(self.num_stages, self.memory_gib)

    @cached_property
    def longest(self) -> np.ndarray:
        """Longest sample by adapter, tokens, shape (A,)."""
        return np.array([lengths.max() for lengths in self.instance.step_lengths])

    @cached_property
    def fits(self) -> np.ndarray:
        """Whether each adapter's longest sample fits, shape (A,)."""
        return self.longest <= self.max_tokens

    @cached_property
    def _steps(self) -> np.ndarray:
        return np.array([len(lengths) for lengths in self.instance.step_lengths])

    @cached_property
    def _curves(self) -> tuple[SmoothMaximum, SmoothMaximum]:
        return self.costs.forward_curve(self.num_stages), self.costs.backward_curve(self.num_stages)

    def _work(self, lengths: np.ndarray) -> np.ndarray:
        """Forward and backward work of samples, shape (2, *lengths.shape)."""
        return np.stack([c.work(lengths, lengths.astype(float) ** 2) for c in self._curves])

    def _times(self, work: np.ndarray) -> np.ndarray:
        """Forward plus backward time of micro-batches with this (forward, backward) work, shape work.shape[1:]."""
        return self._curves[0].of_work(work[0]) + self._curves[1].of_work(work[1])

    @cached_property
    def _totals(self) -> np.ndarray:
        """Work of all samples by adapter, shape (2, A)."""
        return np.stack([self._work(s).sum(axis=(1, 2)) for s in self.instance.step_lengths], axis=1)

    @cached_property
    def _largest_steps(self) -> np.ndarray:
        """Work of the heaviest step by adapter, shape (2, A)."""
        return np.stack([self._work(s).sum(axis=2).max(axis=1) for s in self.instance.step_lengths], axis=1)

    @cached_property
    def _shortest(self) -> np.ndarray:
        """Shortest sample by adapter, tokens, shape (A,)."""
        return np.array([lengths.min() for lengths in self.instance.step_lengths])

    @cached_property
    def paths(self) -> np.ndarray:
        """Path bound by adapter, seconds, shape (A,): its steps one after the other, each at its fastest passage."""
        return np.array([self._path(steps) for steps in self.instance.step_lengths])

    def _path(self, steps: np.ndarray) -> float:
        if self.max_tokens < steps.max():
            return np.inf
        g, batch = self.num_stages, steps.shape[1]
        total = self._work(steps).sum(axis=2)  # (2, steps)
        smallest, largest = (self._times(self._work(lengths)) for lengths in (steps.min(axis=1), steps.max(axis=1)))
        fewest = np.maximum(1, np.ceil(steps.sum(axis=1) / self.max_tokens))
        passage = np.full(len(steps), np.inf)
        for n in range(1, batch + 1):
            share = self._times(total / n)
            # all work stands on the last stage between the first F's way down and the last B's way up; and some
            # micro-batch has at least an even share, one the longest sample, and each passes every stage twice
            time = np.maximum(n * share + (g - 1) * smallest, g * np.maximum(share, largest))
            passage = np.minimum(passage, np.where(n >= fewest, time, np.inf))
        transfers = 2 * (g - 1) * float(self.costs.transfer_time(steps.min()))
        return float(passage.sum()) + len(steps) * transfers + (len(steps) - 1) * self.costs.optimizer_s

    @cached_property
    def efficient_work(self) -> np.ndarray:
        """Time per stage of each adapter's samples in the fullest micro-batches that memory allows, shape (A,).

        A bound on its share of any replica's busy time, whoever it shares with: a micro-batch's time per work falls
        with its work.
        """
        overall = float(self.longest.max())
        most = np.array([c.work(self.max_tokens, self.max_tokens * overall) for c in self._curves])
        times = np.array([c.of_work(x) for c, x in zip(self._curves, most, strict=True)])
        ratio = np.divide(times, most, out=np.ones(2), where=most > 0)
        return np.asarray(ratio @ self._totals)

    def work(self, members: np.ndarray) -> np.ndarray:
        """Return the work bound of sets of adapters, seconds, shape (N,).

        The last stage processes everything, after the first F has come down to it and before the last B is back up.

        Parameters
        ----------
        members
            Which adapters each set holds, bool, shape (N, A).
        """
        m = members.astype(float)
        totals = m @ self._totals.T  # (N, 2)
        longest = np.where(members, self.longest, 0).max(axis=1)
        # a micro-batch of T tokens has squares of at most T x longest, and holds at most one step per adapter
        by_memory = np.stack(
            [c.work(self.max_tokens, self.max_tokens * longest.astype(float)) for c in self._curves], 1
        )
        most = np.minimum(by_memory, m @ self._largest_steps.T)
        full = np.divide(totals, most, out=np.ones_like(totals), where=most > 0)
        count = np.ceil(full.max(axis=1) - 1e-9)
        count = np.maximum(count, np.where(members, self._steps, 0).max(axis=1))
        busy = count * self._times(totals.T / count)
        shortest = np.where(members, self._shortest, np.iinfo(np.int64).max).min(axis=1)
        ends = self._times(self._work(shortest)) + 2 * self.costs.transfer_time(shortest)
        optimizer = (m @ self._steps - m.sum(axis=1)) * self.costs.optimizer_s
        return np.asarray(busy + (self.num_stages - 1) * ends + optimizer)

    def lower_bounds(self, members: np.ndarray) -> np.ndarray:
        """Return the larger of work and path bound, seconds, shape (N,); infinite where a sample does not fit.

        Parameters
        ----------
        members
            Which adapters each set holds, bool, shape (N, A).
        """
        result = np.full(len(members), np.inf)
        ok = ~(members & ~self.fits).any(axis=1)
        if ok.any():
            paths = np.where(members[ok], self.paths, 0.0).max(axis=1)
            result[ok] = np.maximum(self.work(members[ok]), paths)
        return result
