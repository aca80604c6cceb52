"""Which points a profile measures."""

import math
from dataclasses import dataclass
from typing import Literal

from cappuccino.backbone import ALL_LINEAR, ATTENTION_MODULES
from cappuccino.errors import InputError
from cappuccino.plan import Recompute

Targets = tuple[str, ...] | Literal["all-linear"]
RANK, TARGETS = 16, ATTENTION_MODULES
"""Rank and target modules of the adapter that tokens and sequence lengths are measured with."""


@dataclass(frozen=True)
class Point:
    """Micro-batches of one kind."""

    samples: int
    """Of a micro-batch, shared out evenly to its adapters."""
    length: int
    """Tokens of a sample."""
    num_adapters: int = 1
    """In a micro-batch."""
    rank: int = RANK
    target_modules: Targets = TARGETS
    dropout: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.samples * self.length


@dataclass(frozen=True)
class ProfileGrid:
    """Every number of tokens that is a multiple of a sequence length, at every depth; and kinds of adapters.

    Ranks, target modules and numbers of adapters are varied one at a time, with few tokens and with more, the largest
    number of adapters with the most; adapters with dropout have it on all linear modules.
    """

    num_stages: tuple[int, ...] = (1, 2)
    tokens: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Tokens of a micro-batch."""
    sequence_lengths: tuple[int, ...] = (32, 128, 512)
    num_adapters: tuple[int, ...] = (2, 4)
    """Of a micro-batch, besides 1."""
    ranks: tuple[int, ...] = (64,)
    """Besides 16."""
    target_modules: tuple[Targets, ...] = (("q_proj", "v_proj"), ALL_LINEAR)
    """Besides q, k, v and o."""
    grad_acc_steps: int = 3
    """Micro-batches of an optimizer step."""
    repeats: int = 2
    """Optimizer steps measured per point, after one to warm up and before one among all others."""
    dropout: float = 0.05
    """What it costs depends on the modules that have it, not on how much is dropped; 0: it is not measured."""
    recompute: Recompute = Recompute.NONE
    """Activation recomputation of all points."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a point in all."""
        return self.repeats + 2

    def __post_init__(self) -> None:
        for option, values, needed in (
            ("--num-stages", self.num_stages, True),
            ("--tokens", self.tokens, True),
            ("--sequence-lengths", self.sequence_lengths, True),
            ("--num-adapters", self.num_adapters, False),
            ("--ranks", self.ranks, False),
            ("--micro-batches", (self.grad_acc_steps,), True),
            ("--repeats", (self.repeats,), True),
        ):
            if (needed and not values) or (values and min(values) < 1):
                raise InputError(option, "", f"{list(values)} is not allowed", "give positive integers")
            if len(set(values)) < len(values):
                raise InputError(option, "", f"{list(values)} names a value twice", "name each once")

    def points(self) -> list[Point]:
        """Return the points by ascending tokens, and by the memory of their adapters: memory only grows on the way.

        Raises
        ------
        InputError
            When a number of tokens, a length or a number of adapters would be left out.
        """
        plain = [Point(t // n, n) for t in sorted(self.tokens) for n in sorted(self.sequence_lengths) if t % n == 0]
        for option, values, used in (
            ("--tokens", self.tokens, {p.tokens for p in plain}),
            ("--sequence-lengths", self.sequence_lengths, {p.length for p in plain}),
        ):
            unused = sorted(set(values) - used)
            if unused:
                problem = f"{unused[0]} is in no point: a micro-batch holds whole samples"
                raise InputError(option, "", problem, "give tokens that are multiples of a sequence length")
        points = [*plain, *self._adapter_points(plain)]
        return sorted(points, key=lambda p: (p.tokens, p.num_adapters, p.length, p.rank))

    def _adapter_points(self, plain: list[Point]) -> list[Point]:
        kinds: list[tuple[int, int, Targets, float]] = [(k, RANK, TARGETS, 0.0) for k in self.num_adapters if k > 1]
        kinds += [(1, rank, TARGETS, 0.0) for rank in self.ranks if rank != RANK]
        kinds += [(1, RANK, targets, 0.0) for targets in self.target_modules if targets != TARGETS]
        kinds += [(1, RANK, ALL_LINEAR, self.dropout)] if self.dropout else []
        if not kinds:
            return []
        most = max(self.num_adapters, default=1)
        shareable = [p for p in plain if all(p.samples % k == 0 for k in self.num_adapters)]
        if not shareable:
            problem = f"{most} is in no point: every adapter needs a sample of each micro-batch"
            raise InputError("--num-adapters", "", problem, "give shorter --sequence-lengths, or fewer adapters")
        ends = {p.tokens: p for p in shareable}  # the longest length of those with equal tokens
        middle = math.sqrt(min(ends) * max(ends))  # there the work shows already, and the largest ones take long
        chosen = dict.fromkeys((ends[min(ends)], ends[min(t for t in ends if t >= middle)]))
        points = [Point(p.samples, p.length, *kind) for p in chosen for kind in kinds]
        if most > 1:  # what an adapter more takes grows with the tokens, and plans fill their micro-batches
            points.append(Point(ends[max(ends)].samples, ends[max(ends)].length, most))
        return list(dict.fromkeys(points))
