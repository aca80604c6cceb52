"""Lower bounds on a replica's makespan that hold for every packing and every order.

Legend: N sets of adapters, A adapters, J optimizer steps of all adapters one after the other; T tokens; x work of a
micro-batch (asymptotic seconds on one stage), t(x) its time; g stages.

A micro-batch's time is convex in its work and positive at none, so n micro-batches of total work X take at least
n t(X / n), which grows with n: the fewest micro-batches that the rules allow give the bound.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cappuccino.bounds.passage import MOST_SAMPLES, combinations, fastest_places, membership, packings, passage_bounds
from cappuccino.bounds.room import Room
from cappuccino.bounds.step_statistics import StepStatistics
from cappuccino.costs import AdapterCosts, CostModel, SmoothMaximum
from cappuccino.instance import Instance

MOST_STEPS_PACKED = 300
"""Optimizer steps, those of the longest paths first, for which every packing is looked at."""
FORWARD_WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Weights of the chain through the F's, the one through the B's has the rest."""


class PackedPassages(NamedTuple):
    """Passages of an adapter's steps over all packings, as `passage_bounds` takes and returns them."""

    forward_s: np.ndarray
    backward_s: np.ndarray
    bounds_s: np.ndarray
    rows: np.ndarray


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
    def _adapter_costs(self) -> AdapterCosts:
        return self.costs.adapter_costs(self.num_stages, self.instance.adapters)

    @cached_property
    def _adapters(self) -> np.ndarray:
        """What adapters add to floors, and to works per token, of forward and backward, shape (2, 2, A)."""
        found = self._adapter_costs
        return np.array([[found.forward_floor, found.backward_floor], [found.forward_work, found.backward_work]])

    @cached_property
    def _curves(self) -> tuple[SmoothMaximum, SmoothMaximum]:
        """Forward and backward time of any micro-batch, at least: it has some adapter."""
        least = self._adapters[0].min(axis=1)
        curves = self.costs.forward_curve(self.num_stages), self.costs.backward_curve(self.num_stages)
        return curves[0].raised(float(least[0])), curves[1].raised(float(least[1]))

    @cached_property
    def _floors(self) -> np.ndarray:
        """How much higher the floors of a step's micro-batches are than those of `_curves`, shape (2, J)."""
        floors = self._adapters[0]
        return np.repeat(floors - floors.min(axis=1, keepdims=True), self._steps.count, axis=1)

    def _work(self, tokens: np.ndarray, squares: np.ndarray, per_token: np.ndarray) -> np.ndarray:
        """Forward and backward work of samples, shape (2, *tokens.shape).

        Parameters
        ----------
        per_token
            What their adapters add per token, shape (2, *tokens.shape).
        """
        return np.stack(
            [c.work(tokens, squares) + more * tokens for c, more in zip(self._curves, per_token, strict=True)]
        )

    def _times(self, work: np.ndarray, floors: np.ndarray | tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Forward plus backward time of micro-batches with this (forward, backward) work, shape work.shape[1:]."""
        return self._curves[0].of_work(work[0], floors[0]) + self._curves[1].of_work(work[1], floors[1])

    @cached_property
    def _per_token(self) -> np.ndarray:
        """What the adapter of every step adds to the work of a token, shape (2, J)."""
        return np.repeat(self._adapters[1], self._steps.count, axis=1)

    @cached_property
    def _step_work(self) -> np.ndarray:
        """Work of every step, shape (2, J)."""
        return self._work(self._steps.tokens, self._steps.squares, self._per_token)

    @cached_property
    def _totals(self) -> np.ndarray:
        """Tokens, forward and backward work of all samples by adapter, shape (3, A)."""
        return self._steps.total(np.concatenate([self._steps.tokens[None], self._step_work]))

    @cached_property
    def _largest_steps(self) -> np.ndarray:
        """Tokens, forward and backward work of the heaviest step by adapter, shape (3, A)."""
        return self._steps.most(np.concatenate([self._steps.tokens[None], self._step_work]))

    @cached_property
    def _shortest(self) -> np.ndarray:
        """Shortest sample by adapter, tokens, shape (A,)."""
        return self._steps.least(self._steps.shortest)

    @cached_property
    def paths(self) -> np.ndarray:
        """Path bound by adapter, seconds, shape (A,): its steps one after the other, each at its fastest passage.

        Every step ends with the optimizer's on the first stage, behind its last B there.
        """
        g, steps = self.num_stages, self._steps
        if self.max_tokens < 1:
            return np.full(len(steps.count), np.inf)
        passage = self._passages.copy()
        waits = steps.count * 2 * (g - 1) * self.costs.transfer_time(self._shortest)
        waits = waits + steps.count * self.costs.optimizer_s
        for a, packed in self._packed.items():
            mine = slice(steps.first[a], steps.first[a] + len(packed.bounds_s))
            passage[mine] = np.maximum(passage[mine], packed.bounds_s)
        return np.where(self.fits, steps.total(passage) + waits, np.inf)

    @cached_property
    def _packed(self) -> "dict[int, PackedPassages]":
        """The first steps of adapters with the longest paths, by adapter: only those paths of a replica count."""
        steps, left = self._steps, MOST_STEPS_PACKED
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
        packed = self._packed.get(adapter)
        if packed is None or self.instance.step_lengths[adapter].shape[1] > MOST_SAMPLES:
            return None
        forward, backward, bounds, rows = packed
        count = self.instance.step_lengths[adapter].shape[1]
        return np.asarray(fastest_places(forward, backward, bounds, rows, packings(count), self.num_stages))

    @cached_property
    def _passages(self) -> np.ndarray:
        """Bound on the passage of every step, samples taken as divisible, shape (J,)."""
        g, steps = self.num_stages, self._steps
        curves, floors = self._curves, self._floors
        shortest = self._work(steps.shortest, steps.shortest * steps.shortest, self._per_token)
        first, last = (c.of_work(x, f) for c, x, f in zip(curves, shortest, floors, strict=True))
        longest = self._work(steps.longest, steps.longest * steps.longest, self._per_token)
        largest = self._times(longest, floors)
        most = np.repeat(np.maximum(self.most_tokens, 1), steps.count)
        fewest = np.maximum(1, np.ceil(steps.tokens / most))
        passage = np.full(len(steps.tokens), np.inf)
        for n in range(1, int(steps.batch.max()) + 1):
            share = self._times(self._step_work / n, floors)
            # all work stands on the last stage between the first F's way down and the last B's way up; and some
            # micro-batch has at least an even share, one the longest sample, and each passes every stage twice
            time = np.maximum(n * share + (g - 1) * (first + last), g * np.maximum(share, largest))
            # the chains of `passage` through that micro-batch; the others take least when they are alike
            heavy = np.maximum(longest, self._step_work / n)
            forward, backward = (c.of_work(x, f) for c, x, f in zip(curves, heavy, floors, strict=True))
            rest = np.maximum(self._step_work - heavy, 0) / max(n - 1, 1)
            others = [(n - 1) * c.of_work(x, f) for c, x, f in zip(curves, rest, floors, strict=True)]
            for u in FORWARD_WEIGHTS:
                chain = u * (g * forward + backward + (g - 1) * last + others[0])
                chain = chain + (1 - u) * ((g - 1) * first + forward + g * backward + others[1])
                time = np.maximum(time, chain)
            passage = np.minimum(passage, np.where((n >= fewest) & (n <= steps.batch), time, np.inf))
        return passage

    def _packed_passages(self, adapter: int, lengths: np.ndarray) -> "PackedPassages":
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
        curves = self.costs.forward_curve(self.num_stages), self.costs.backward_curve(self.num_stages)
        floors, works = self._adapters[:, :, adapter]
        forward, backward = (c(tokens, squares, f, w * tokens) for c, f, w in zip(curves, floors, works, strict=True))
        fits = tokens <= self.most_tokens[adapter]
        found = passage_bounds(forward, backward, fits, packings(count), combinations(), self.num_stages)
        return PackedPassages(forward, backward, *found)

    @cached_property
    def ramp_s(self) -> float:
        """Time that any replica takes before the last stage begins and after it has done its last B, at least.

        The first F comes down to it, the last B goes up from it, and behind that B the first stage has an optimizer
        step; no sample is shorter than the shortest of all. On one stage nothing is left: `shares` have all steps.
        """
        return float(self._ends(self._shortest.min())) + (self.num_stages > 1) * self.costs.optimizer_s

    def _ends(self, shortest: np.ndarray, down_only: bool = False) -> np.ndarray:
        """Time of the first F down to the last stage and of the last B up from it, micro-batches of one sample."""
        least = np.broadcast_to(self._adapters[1].min(axis=1)[:, None], (2, np.size(shortest)))
        work = self._work(np.atleast_1d(shortest), np.atleast_1d(shortest) ** 2, least)
        passage = self._curves[0].of_work(work[0]) if down_only else self._times(work)
        ways = 1 if down_only else 2
        lag = ways * self.costs.transfer_time(shortest)
        return np.asarray((self.num_stages - 1) * (passage.reshape(np.shape(shortest)) + lag))

    @cached_property
    def shares(self) -> np.ndarray:
        """Additive work bound by adapter, seconds, shape (A,): a replica is busy at least the sum over its adapters.

        Proof. The replica's n micro-batches of at most M tokens hold its T tokens, so `n >= T / M`. A tangent
        `alpha + beta x` of the convex t(x) has `alpha >= 0`, since t(0) >= 0 and t(x) / x falls. So the micro-batches
        take at least `n alpha + beta X >= T alpha / M + beta X`, which adds up over samples, whoever shares a
        micro-batch with whom. The tangents touch where all adapters of the instance would stand in the fewest
        micro-batches; there the sum is as large as `work`'s bound before rounding. Optimizer steps are added, on
        several stages except each adapter's last: the last stage may take them while the last B goes up.

        An adapter that does not fit has an infinite share.
        """
        if not self.fits.any():
            return np.full(len(self.fits), np.inf)
        tokens = self._totals[0]
        fewest = float(tokens[self.fits].sum()) / self.max_tokens
        busy = np.zeros(len(tokens))
        for curve, work in zip(self._curves, self._totals[1:], strict=True):
            alpha, beta = _tangent(curve, float(work[self.fits].sum()) / fewest)
            busy += alpha * tokens / self.max_tokens + beta * work
        optimizer = (self._steps.count - (self.num_stages > 1)) * self.costs.optimizer_s
        return np.where(self.fits, busy + optimizer, np.inf)

    def additive(self, members: np.ndarray) -> np.ndarray:
        """Return the additive bound of sets of adapters, seconds, shape (N,): never above `lower_bounds`.

        It is `max(ramp_s + sum of shares, longest path)`, and infinite where the set does not fit the memory.

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        held = members > 0
        # infinite times nothing is no number
        busy = members @ np.where(self.fits, self.shares, 0.0) + self.ramp_s
        result = np.maximum(busy, np.where(held, self.paths, 0.0).max(axis=1))
        return np.where(self.room.holds(members), result, np.inf)

    def work(self, members: np.ndarray) -> np.ndarray:
        """Return the work bound of sets of adapters, seconds, shape (N,).

        The last stage processes everything, after the first F has come down to it: all optimizer steps as well, or all
        but each adapter's last before the last B goes up, behind which the first stage has one.

        Parameters
        ----------
        members
            How often each set holds each adapter, shape (N, A).
        """
        m, held = members.astype(float), members > 0
        totals = m @ self._totals.T  # (N, 3)
        # a micro-batch holds at most one step per adapter
        most = m @ self._largest_steps.T
        count = np.divide(totals, most, out=np.ones_like(totals), where=most > 0).max(axis=1)
        count = np.ceil(np.maximum(count, totals[:, 0] / np.maximum(self.room.set_tokens(members), 1)) - 1e-9)
        count = np.maximum(count, np.where(held, self._steps.count, 0).max(axis=1))
        busy = count * self._times(totals[:, 1:].T / count)
        shortest = np.where(held, self._shortest, np.inf).min(axis=1)
        step_s = self.costs.optimizer_s
        on_last_stage = self._ends(shortest, down_only=True) + m @ self._steps.count * step_s
        up_again = self._ends(shortest) + (m @ (self._steps.count - 1) + 1) * step_s
        return np.asarray(busy + np.maximum(on_last_stage, up_again))

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
            paths = np.where(members[ok] > 0, self.paths, 0.0).max(axis=1)
            result[ok] = np.maximum(self.work(members[ok]), paths)
        return result


def _tangent(curve: SmoothMaximum, work: float) -> tuple[float, float]:
    """Return the curve's tangent at this work: its value at none (seconds), its slope."""
    if curve.floor_s == 0 or work == 0:
        return (0.0, 1.0) if curve.floor_s == 0 else (curve.floor_s, 0.0)
    time = float(curve.of_work(work))
    slope = (work / time) ** (curve.power - 1)
    return max(0.0, time - slope * work), slope
