"""Lower bounds on a replica's makespan that hold for every packing and every order.

Legend: N sets of adapters, A adapters, S optimizer steps of all adapters one after the other; T tokens; x work of a
micro-batch (asymptotic seconds), t(x) its time; G stages, J curves that the times of a stage are sums of.

A micro-batch's time is convex in its work and positive at none, so n micro-batches of total work X take at least
n t(X / n), which grows with n: the fewest micro-batches that the rules allow give the bound.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cappuccino.bounds.divisible_passage import divisible_passages
from cappuccino.bounds.evaluation_times import EvaluationTimes
from cappuccino.bounds.memory_time import MemoryTimes
from cappuccino.bounds.packed_passages import PackedPassages
from cappuccino.bounds.passage import MOST_SAMPLES, membership
from cappuccino.bounds.room import Room
from cappuccino.bounds.stage_times import StageTimes, together, weighted
from cappuccino.bounds.step_statistics import StepStatistics
from cappuccino.costs import CostModel
from cappuccino.instance import Instance

MOST_STEPS_PACKED = 300
"""Optimizer steps for which every packing is looked at, where time sets no limit."""


@dataclass(frozen=True)
class ReplicaBounds:
    """Bounds for any set of adapters of an instance on `num_stages` GPUs of one type.

    A set may hold an adapter several times: that is as many adapters of the same samples and costs.
    """

    instance: Instance
    costs: CostModel
    num_stages: int
    memory_gib: float
    """Memory of one GPU of the pool."""
    packed_steps: int = MOST_STEPS_PACKED
    """Optimizer steps, those of the longest paths first, for which every packing is looked at; the bounds of others are
    weaker."""

    @cached_property
    def room(self) -> Room:
        """What memory leaves for adapters and samples."""
        return Room.of(self.instance, self.costs, self.num_stages, self.memory_gib)

    @cached_property
    def max_tokens(self) -> int:
        """Largest micro-batch of any replica, tokens: it holds some adapter."""
        return int(self.most_tokens.max(initial=0))

    @cached_property
    def most_tokens(self) -> np.ndarray:
        """Largest micro-batch of any replica that holds an adapter, tokens, shape (A,)."""
        return self.room.most_tokens()

    @cached_property
    def fits(self) -> np.ndarray:
        """Whether each adapter's longest sample fits where it is alone, shape (A,)."""
        return np.asarray(self.room.longest <= self.most_tokens)

    @cached_property
    def _steps(self) -> StepStatistics:
        return StepStatistics.of(self.instance)

    @cached_property
    def _adapters(self) -> np.ndarray:
        """What adapters add to floors, and to works per token, of forward and backward, shape (2, 2, A)."""
        found = self.costs.adapter_costs(self.num_stages, self.instance.adapters)
        return np.array([[found.forward_floor, found.backward_floor], [found.forward_work, found.backward_work]])

    @cached_property
    def _stages(self) -> StageTimes:
        return StageTimes(self.costs.pipeline(self.num_stages), self._adapters[0].min(axis=1))

    @cached_property
    def _floors(self) -> np.ndarray:
        """How much higher the floors of a step's micro-batches are than the least, shape (2, S)."""
        floors = self._adapters[0]
        return np.repeat(floors - floors.min(axis=1, keepdims=True), self._steps.count, axis=1)

    @cached_property
    def _per_token(self) -> np.ndarray:
        """What the adapter of every step adds to the work of a token, shape (2, S)."""
        return np.repeat(self._adapters[1], self._steps.count, axis=1)

    @cached_property
    def _step_work(self) -> np.ndarray:
        """Work of every step, shape (2, J, S)."""
        return self._stages.works(self._steps.tokens, self._steps.squares, self._per_token)

    @cached_property
    def _measures(self) -> np.ndarray:
        """What adds up over samples, by step: tokens, and the works one after the other, shape (1 + 2 J, S)."""
        return np.concatenate([self._steps.tokens[None], self._step_work.reshape(-1, len(self._steps.tokens))])

    @cached_property
    def _totals(self) -> np.ndarray:
        """Tokens and works of all samples by adapter, shape (1 + 2 J, A)."""
        return self._steps.total(self._measures)

    @cached_property
    def _largest_steps(self) -> np.ndarray:
        """The most tokens and works of a step by adapter, shape (1 + 2 J, A)."""
        return self._steps.most(self._measures)

    @cached_property
    def _shortest(self) -> np.ndarray:
        """Shortest sample by adapter, tokens, shape (A,)."""
        return self._steps.least(self._steps.shortest)

    @cached_property
    def _evaluations(self) -> EvaluationTimes:
        floors, works = self._adapters[:, 0]
        return EvaluationTimes.of(self.instance, self._stages.pipeline, self.room, floors, works)

    @cached_property
    def _memory_times(self) -> MemoryTimes:
        return MemoryTimes.of(self.instance, self.costs, self._stages, self._adapters)

    @cached_property
    def _lags(self) -> np.ndarray:
        """Least transfer of each adapter's micro-batches, seconds, shape (A,)."""
        return self.costs.transfer_time(self._shortest)

    @cached_property
    def paths(self) -> np.ndarray:
        """Path bound by adapter, seconds, shape (A,): its steps one after the other, each at its fastest passage.

        Every step ends with the optimizer's on the first stage, behind its last B there.
        """
        passage = self._passages.copy()
        for a, packed in self._packed.items():
            mine = slice(self._steps.first[a], self._steps.first[a] + len(packed.bounds_s))
            passage[mine] = np.maximum(passage[mine], packed.bounds_s)
        return self._path_bounds(passage)

    @cached_property
    def quick_paths(self) -> np.ndarray:
        """A path bound found without looking at packings, never above `paths`, seconds, shape (A,)."""
        return self._path_bounds(self._passages)

    def _path_bounds(self, passage: np.ndarray) -> np.ndarray:
        waits = self._steps.count * (2 * (self.num_stages - 1) * self._lags + self.costs.optimizer_s)
        waits = waits + self._evaluations.total(0, last=True)  # the first stage evaluates between an adapter's steps
        return np.where(self.fits, self._steps.total(passage) + waits, np.inf)

    @cached_property
    def _packed(self) -> dict[int, PackedPassages]:
        """The first steps of adapters with the longest paths, by adapter: only those paths of a replica count."""
        steps, left = self._steps, self.packed_steps
        result = {}
        for a in np.argsort(-steps.total(self._passages), kind="stable").tolist():
            if left <= 0 or not self.fits[a]:
                continue
            lengths = self.instance.step_lengths[a][:left]
            result[a] = self._packed_passages(a, lengths)
            left -= len(lengths)
        return result

    def fastest_places(self, adapter: int) -> np.ndarray | None:
        """Return how an adapter's steps pass fastest when they are alone, as the bound sees it.

        Returns
        -------
        numpy.ndarray or None
            The place of every sample's micro-batch in the order of the F's, shape (steps, global_batch_size), for the
            first steps; None where the bound has not looked at every packing of the whole step.
        """
        packed, count = self._packed.get(adapter), self.instance.step_lengths[adapter].shape[1]
        if packed is None or count > MOST_SAMPLES:
            return None
        return packed.places(count, self.num_stages)

    @cached_property
    def _passages(self) -> np.ndarray:
        """Bound on the passage of every step without its transfers, samples taken as divisible, shape (S,)."""
        most = np.repeat(np.maximum(self.most_tokens, 1), self._steps.count)
        return divisible_passages(
            self._stages,
            self._steps,
            self._step_work,
            self._per_token,
            self._floors,
            np.maximum(1, np.ceil(self._steps.tokens / most)),
            np.repeat(self._lags, self._steps.count),
        )

    def _packed_passages(self, adapter: int, lengths: np.ndarray) -> PackedPassages:
        """Return the bound on the passage of an adapter's steps over all packings of their largest samples.

        Parameters
        ----------
        lengths
            Shape (steps, samples), tokens.
        """
        count = min(lengths.shape[1], MOST_SAMPLES)
        largest = lengths
        if count < lengths.shape[1]:
            largest = -np.partition(-lengths, count - 1, axis=1)[:, :count]
        held = membership(count)
        if self.instance.layout == "padded":
            longest = np.where(held[None], largest[:, None, :], 0).max(axis=2)
            tokens = held.sum(axis=1) * longest
            squares = tokens * longest
        else:
            tokens = largest @ held.T
            squares = (largest * largest) @ held.T
        stages, least = self._stages, self._adapters[0].min(axis=1)
        floors, works = self._adapters[:, :, adapter]
        times = stages.times(
            stages.works(tokens, squares, np.multiply.outer(works, np.ones(tokens.shape))),
            np.multiply.outer(floors - least, np.ones(tokens.shape)),
        )
        ways = np.stack([stages.first, stages.before(self.num_stages - 1), stages.last])
        forward, backward = np.ascontiguousarray(np.moveaxis(np.tensordot(ways, times, axes=(1, 1)), 0, 2))
        fits = tokens <= self.most_tokens[adapter]
        return PackedPassages.of(forward, backward, fits, count, self.num_stages)

    @property
    def ramp_s(self) -> float:
        """Time that any replica takes before the stage that `shares` are of begins and after its last B, at least.

        The first F comes down to it, the last B goes up from it, and behind that B the first stage has an optimizer
        step; no sample is shorter than the shortest of all. On the first stage nothing is left: `shares` have all.
        """
        return self._busiest[0]

    def _ramp_s(self, stage: int) -> float:
        return float(self._ends(stage, self._shortest.min()).sum()) + (stage > 0) * self.costs.optimizer_s

    def _ends(self, stage: int, shortest: np.ndarray) -> np.ndarray:
        """Time of the first F down to a stage and of the last B up from it, micro-batches of one sample.

        Shape (2, *shortest.shape).
        """
        tokens = np.asarray(shortest, dtype=float)
        least = np.multiply.outer(self._adapters[1].min(axis=1), np.ones(tokens.shape))
        times = self._stages.times(self._stages.works(tokens, tokens**2, least))
        return weighted(self._stages.before(stage), times) + stage * self.costs.transfer_time(tokens)

    @property
    def shares(self) -> np.ndarray:
        """Additive work bound by adapter, seconds, shape (A,): a replica is busy at least the sum over its adapters.

        Proof. The replica's n micro-batches of at most M tokens hold its T tokens, so `n >= T / M`. A tangent
        `alpha + beta x` of the convex t(x) has `alpha >= 0`, since t(0) >= 0 and t(x) / x falls. So the micro-batches
        take at least `n alpha + beta X >= T alpha / M + beta X`, which adds up over samples, whoever shares a
        micro-batch with whom. The tangents touch where all adapters of the instance would stand in the fewest
        micro-batches; there the sum is as large as `work`'s bound before rounding. Optimizer steps are added, except
        each adapter's last on later stages than the first: they may take them while the last B goes up. Any stage
        gives a bound, and so does the memory of the first one (`MemoryTimes`); taken is what all adapters of the
        instance would keep busy longest, ramp included.

        An adapter that does not fit has an infinite share.
        """
        return self._busiest[1]

    @cached_property
    def _busiest(self) -> tuple[float, np.ndarray]:
        """Ramp and shares of the stage, or of the memory, that all adapters would keep busy longest."""
        if not self.fits.any():
            return self._ramp_s(self.num_stages - 1), np.full(len(self.fits), np.inf)
        found = [(self._ramp_s(s), self._shares(s)) for s in self._stages.kinds]
        found.append((0.0, np.where(self.fits, self._memory_times.shares(self.room), np.inf)))
        return max(found, key=lambda both: both[0] + float(both[1][self.fits].sum()))

    def _shares(self, stage: int) -> np.ndarray:
        tokens, count = self._totals[0], len(self._totals[0])
        fewest = float(tokens[self.fits].sum()) / self.max_tokens
        busy, works = np.zeros(count), self._totals[1:].reshape(2, -1, count)
        for curves, of_kind in zip(self._stages.curves, works, strict=True):
            for curve, work, share in zip(curves, of_kind, self._stages.pipeline.shares[stage], strict=True):
                alpha, beta = curve.tangent(float(work[self.fits].sum()) / fewest)
                busy += share * (alpha * tokens / self.max_tokens + beta * work)
        optimizer = (self._steps.count - (stage > 0)) * self.costs.optimizer_s
        # later stages have the last evaluations, as the last steps, while the last B goes up
        busy += self._evaluations.total(stage, last=stage == 0)
        return np.where(self.fits, busy + optimizer, np.inf)

    def additive(self, members: np.ndarray) -> np.ndarray:
        """Return the additive bound of sets of adapters, seconds, shape (N,): never above `lower_bounds`.

        It is `max(ramp_s + sum of shares, longest path)`, and infinite where the set does not fit the memory.

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        # infinite times nothing is no number
        busy = members @ np.where(self.fits, self.shares, 0.0) + self.ramp_s
        longest = np.where(members > 0, self.paths, 0.0).max(axis=1)
        return np.where(self.room.holds(members), np.maximum(busy, longest), np.inf)

    def work(self, members: np.ndarray) -> np.ndarray:
        """Return the work bound of sets of adapters that fit, seconds, shape (N,).

        Every stage processes everything, after the first F has come down to it: all optimizer steps as well, or all but
        each adapter's last before the last B goes up, behind which the first stage has one. Besides, the first stage's
        memory has to last (`MemoryTimes`).

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        m, held = members.astype(float), members > 0
        totals = m @ self._totals.T  # (N, 1 + 2 J)
        # a micro-batch holds at most one step per adapter
        most = m @ self._largest_steps.T
        count = np.divide(totals, most, out=np.ones_like(totals), where=most > 0).max(axis=1)
        count = np.ceil(np.maximum(count, totals[:, 0] / np.maximum(self.room.set_tokens(members), 1)) - 1e-9)
        count = np.maximum(count, np.where(held, self._steps.count, 0).max(axis=1))
        shares = (totals[:, 1:].T / count).reshape(2, -1, len(m))
        times = self._stages.times(shares)
        shortest = np.where(held, self._shortest, np.inf).min(axis=1)
        steps, step_s = m @ self._steps.count, self.costs.optimizer_s
        up_again = (m @ (self._steps.count - 1) + 1) * step_s
        bound = self._memory_times.bounds(self.room, members)
        for s in self._stages.kinds:
            busy = count * together(self._stages.pipeline.shares[s], times)
            down, up = self._ends(s, shortest)
            ends = steps * step_s + m @ self._evaluations.total(s, last=True)
            if s > 0:
                ends = np.maximum(ends, up + up_again + m @ self._evaluations.total(s, last=False))
            bound = np.maximum(bound, busy + down + ends)
        return bound

    def lower_bounds(self, members: np.ndarray) -> np.ndarray:
        """Return the larger of work and path bound, seconds, shape (N,); infinite where a set or sample does not fit.

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A); no set is empty.
        """
        used = np.flatnonzero((members > 0).any(axis=0))
        if 4 * len(used) < members.shape[1] and "_steps" not in self.__dict__:  # spare the others' statistics
            part = replace(self, instance=self.instance.subset(used.tolist()))
            return part.lower_bounds(members[:, used])
        result = np.full(len(members), np.inf)
        ok = self.room.holds(members)
        if ok.any():
            result[ok] = np.maximum(self.work(members[ok]), np.where(members[ok] > 0, self.paths, 0.0).max(axis=1))
        return result
