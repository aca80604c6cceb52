"""Which set of adapters is paid more than a replica of it costs: a knapsack per pool and depth.

Legend: K kinds of adapters (of equal samples and costs, hence equal bounds), N sets, given by how many adapters of each
kind they hold.

A replica S of depth g costs at least `rate max(head + sum of shares, longest path)` (`ReplicaBounds.additive`) and is
charged for its GPUs. Among sets whose longest path is that of kind l only the sum of shares matters: with kinds in the
order of their paths, one dynamic program over the shares answers for every l. Shares are rounded down to a grid, so
what it finds is at least as attractive as any true set, and bounds derived from it hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cappuccino.bounds.room import Room
from cappuccino.plan import Recompute


@dataclass(frozen=True)
class Place:
    """A pool and a depth, and the additive bounds there."""

    gpu: str
    num_stages: int
    rate: float
    """Objective per second of makespan; 0 where only GPUs are charged."""
    ramp_s: float
    shares: np.ndarray
    """By kind, seconds, shape (K,); infinite where an adapter does not fit."""
    paths: np.ndarray
    """By kind, seconds, shape (K,); infinite where an adapter does not fit."""
    room: Room | None = None
    """What memory leaves for adapters and samples; None: it sets no limit."""
    recompute: Recompute | None = None

    @property
    def fits(self) -> np.ndarray:
        """Whether an adapter of each kind fits, shape (K,)."""
        return np.asarray(np.isfinite(self.paths))

    def admits(self, limit_s: float | None) -> np.ndarray:
        """Return whether an adapter of each kind can end within a limit here, shape (K,)."""
        limit = np.finfo(float).max if limit_s is None else limit_s
        return np.asarray((self.paths <= limit) & (self.ramp_s + self.shares <= limit))

    def least_costs(self, limit_s: float | None = None) -> np.ndarray:
        """Return what an adapter of each kind costs at least, in whatever company, shape (K,)."""
        admitted = self.admits(limit_s)
        return np.where(admitted, self.rate * np.where(admitted, self.shares, 0.0), np.inf)

    def holds(self, sets: np.ndarray) -> np.ndarray:
        """Return whether memory holds sets of kinds, bool, shape (N,)."""
        return np.ones(len(sets), dtype=bool) if self.room is None else self.room.holds(sets)

    def makespans(self, sets: np.ndarray) -> np.ndarray:
        """Return the additive bound of sets, seconds, shape (N,); infinite where one does not fit the memory.

        Parameters
        ----------
        sets
            Shape (N, K).
        """
        held = sets > 0
        busy = self.ramp_s + sets @ np.where(self.fits, self.shares, 0.0)
        result = np.maximum(busy, np.where(held, np.where(self.fits, self.paths, 0.0), 0.0).max(axis=1))
        return np.where((held & ~self.fits).any(axis=1) | ~self.holds(sets), np.inf, result)


@dataclass(frozen=True)
class BoundProof:
    """Prices and charges that prove a bound, as `cappuccino.certificate` has them by name."""

    bound: float
    prices: np.ndarray
    """Of an adapter of each kind, shape (K,)."""
    charges: Mapping[str, float]
    """For a GPU by type."""
    limit_s: float | None

    def scaled(self, factor: float) -> "BoundProof":
        """Return the proof in another unit of money or time."""
        charges = {gpu: charge * factor for gpu, charge in self.charges.items()}
        return BoundProof(self.bound * factor, self.prices * factor, charges, self.limit_s)


@dataclass(frozen=True)
class Priced:
    """What pricing found at one place."""

    sets: np.ndarray
    """Attractive sets, shape (N, K)."""
    makespans: np.ndarray
    """Their bounds, seconds, shape (N,)."""
    ratio: float
    """No set of the place is paid more than this multiple of what it costs and is charged."""


class Pricing(Protocol):
    """Finds attractive columns among all that there are."""

    @property
    def places(self) -> Sequence[Place]:
        """Pools and depths."""

    @property
    def counts(self) -> np.ndarray:
        """Adapters of each kind, shape (K,)."""

    def price(self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, most: int) -> Priced:
        """Look for the most attractive sets of a place.

        Parameters
        ----------
        place
            Index into `places`.
        prices
            What a set is paid for an adapter of each kind, at least 0, shape (K,).
        charge
            What a replica here costs whatever it holds, at least 0.
        limit_s
            Deadline of the makespan.
        most
            Sets to return, about.
        """

    def within_slack(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, slack: float, most: int
    ) -> np.ndarray | None:
        """Return all sets of a place whose cost and charge exceed what they are paid by at most `slack`, shape (N, K).

        None where there are more than `most`; the other parameters are those of `price`.
        """


@dataclass(frozen=True)
class EnumeratedPricing:
    """All columns are known, with any bounds on their makespans."""

    places: Sequence[Place]
    counts: np.ndarray
    sets: np.ndarray
    """Shape (N, K)."""
    makespans: np.ndarray
    """Seconds, shape (places, N)."""

    def price(self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, most: int) -> Priced:
        """See `Pricing.price`."""
        limit = np.finfo(float).max if limit_s is None else limit_s
        within = np.flatnonzero(self.makespans[place] <= limit)
        paid = self.sets[within] @ prices
        makespans = self.makespans[place][within]
        cost = self.places[place].rate * makespans + charge
        ratio = paid_per_cost(paid, cost)
        best = np.argsort(cost - paid, kind="stable")[:most]
        if len(within):
            best = np.append(best, ratio.argmax())
        return Priced(self.sets[within[best]], makespans[best], float(ratio.max(initial=0.0)))

    def within_slack(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, slack: float, most: int
    ) -> np.ndarray | None:
        """See `Pricing.within_slack`."""
        limit = np.finfo(float).max if limit_s is None else limit_s
        makespans = self.makespans[place]
        cost = self.places[place].rate * np.where(makespans <= limit, makespans, 0.0) + charge
        near = (makespans <= limit) & (cost - self.sets @ prices <= slack)
        return self.sets[near] if near.sum() <= most else None


GeneratedKey = tuple[int, bytes]
"""Place, and how many adapters of each kind."""


@dataclass(frozen=True)
class GeneratedColumn:
    """A replica that the relaxation considers."""

    place: int
    numbers: np.ndarray
    """Adapters of each kind, shape (K,)."""
    makespan_s: float
    """The bound that it was priced with."""

    @property
    def key(self) -> GeneratedKey:
        """What tells columns apart."""
        return self.place, self.numbers.tobytes()


@dataclass
class ColumnPool:
    """The columns found so far; they serve every objective and deadline."""

    columns: dict[GeneratedKey, GeneratedColumn] = field(default_factory=dict)

    def add(self, column: GeneratedColumn) -> bool:
        """Keep a column; False where it is known."""
        return self.columns.setdefault(column.key, column) is column

    def within(self, limit_s: float | None) -> list[GeneratedColumn]:
        """Return the columns that end within a limit."""
        limit = np.inf if limit_s is None else limit_s
        return [c for c in self.columns.values() if c.makespan_s <= limit]


def paid_per_cost(paid: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return what is paid for a unit of cost; 0 where nothing is paid."""
    return np.where(paid > 0, paid / np.maximum(cost, 1e-300), 0.0)
