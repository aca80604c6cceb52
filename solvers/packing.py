"""Packing on the fly: micro-batches are formed when the first stage is free, from the steps that are open then."""

from dataclasses import dataclass

import numpy as np

from cappuccino.plan import Sample
from cappuccino.solvers.replica_problem import Batch, ReplicaProblem

_OVERSHOOT = 1.1
"""How far above the target filling up may lead."""


@dataclass(frozen=True)
class PackingRule:
    """What guides the packing."""

    target_work_s: float
    """Work of a micro-batch that is aimed at."""
    fill: float = 0.75
    """A micro-batch with less than this fraction of the target is filled with samples of other adapters."""
    noise: float = 0.0
    """Relative standard deviation of the priorities."""


@dataclass(frozen=True, slots=True)
class _Part:
    samples: tuple[Sample, ...]
    work_s: float
    tokens: int
    longest: int


class DynamicPacking:
    """A source of micro-batches for the list scheduler.

    The open step of the adapter with the longest remaining path leads; it is split evenly into parts of about the
    target. A part far below the target is filled with parts of other open steps, longest remaining path first.
    """

    def __init__(self, problem: ReplicaProblem, rule: PackingRule, rng: np.random.Generator) -> None:
        self._problem, self._rule, self._rng = problem, rule, rng
        self._padded = problem.instance.layout == "padded"
        self._step = [0] * len(problem.adapters)
        self._parts: list[list[_Part]] = []
        self._pending: list[int] = [0] * len(problem.adapters)
        self._tail: list[list[float]] = []
        for a, works in enumerate(problem.sample_work):
            passages = [self._passage(float(w)) for w in works.sum(axis=1)]
            self._tail.append([*np.cumsum(passages[::-1])[::-1].tolist(), 0.0])
            self._parts.append(self._split(a, 0))
        self._candidate: tuple[Batch, list[tuple[int, _Part]]] | None = None
        self._left = sum(problem.num_steps)

    def _passage(self, work: float) -> float:
        n = max(1, round(work / self._rule.target_work_s))
        return (n + self._problem.num_stages - 1) * self._problem.time_of_work(work / n)

    def _split(self, a: int, j: int) -> list[_Part]:
        """Split step j evenly into parts within the memory, heaviest first."""
        works = self._problem.sample_work[a][j]
        lengths = self._problem.lengths[a][j]
        batch = len(works)
        count = min(batch, max(1, round(float(works.sum()) / self._rule.target_work_s)))
        order = np.argsort(-works, kind="stable").tolist()
        while True:
            groups: list[list[int]] = [[] for _ in range(count)]
            load = [0.0] * count
            for i in order:
                lightest = load.index(min(load))
                groups[lightest].append(i)
                load[lightest] += works[i]
            parts = [
                _Part(
                    tuple((a, j * batch + i) for i in sorted(group)),
                    float(works[group].sum()),
                    self._tokens(lengths[group]),
                    int(lengths[group].max()),
                )
                for group in groups
                if group
            ]
            if count == batch or all(p.tokens <= self._problem.max_tokens for p in parts):
                return sorted(parts, key=lambda p: -p.work_s)
            count += 1

    def _tokens(self, lengths: np.ndarray) -> int:
        return int(lengths.max() * len(lengths)) if self._padded else int(lengths.sum())

    def _priority(self, a: int) -> float:
        pending = sum(p.work_s for p in self._parts[a])
        path = self._tail[a][self._step[a] + 1] + self._passage(pending)
        return path * (1 + self._rule.noise * float(self._rng.standard_normal())) if self._rule.noise else path

    def peek(self) -> Batch | None:
        """Return the micro-batch to forward next, None while no step is open."""
        if self._candidate is None:
            candidates = sorted((a for a, p in enumerate(self._parts) if p), key=self._priority, reverse=True)
            if not candidates:
                return None
            self._candidate = self._form(candidates)
        return self._candidate[0]

    def _form(self, candidates: list[int]) -> tuple[Batch, list[tuple[int, _Part]]]:
        target, most = self._rule.target_work_s, self._problem.max_tokens
        lead = candidates[0]
        part = self._parts[lead][0]
        chosen = [(lead, part)]
        work, tokens, count, longest = part.work_s, part.tokens, len(part.samples), part.longest
        if work < self._rule.fill * target:
            for a in candidates[1:]:
                for other in self._parts[a]:
                    peak = max(longest, other.longest)
                    size = len(other.samples)
                    total = peak * (count + size) if self._padded else tokens + other.tokens
                    if work + other.work_s <= _OVERSHOOT * target and total <= most:
                        chosen.append((a, other))
                        work, tokens, count, longest = work + other.work_s, total, count + size, peak
                        break
                if work >= self._rule.fill * target:
                    break
        return self._problem.batch(s for _, p in chosen for s in p.samples), chosen

    def take(self) -> None:
        """Hand out the micro-batch last returned by `peek`."""
        assert self._candidate is not None
        for a, part in self._candidate[1]:
            self._parts[a].remove(part)
            self._pending[a] += 1
            if not self._parts[a]:
                self._left -= 1
        self._candidate = None

    def backward_done(self, batch: Batch) -> None:
        """Open an adapter's next step when this was the last micro-batch of its current one."""
        for a, j in batch.steps:
            self._pending[a] -= 1
            if not self._pending[a] and not self._parts[a] and j + 1 < self._problem.num_steps[a]:
                self._step[a] = j + 1
                self._parts[a] = self._split(a, j + 1)
                self._candidate = None

    @property
    def exhausted(self) -> bool:
        """Whether every sample has been handed out."""
        return self._left == 0
