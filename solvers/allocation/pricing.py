"""Which set of adapters is paid more than a replica of it costs: a knapsack per pool and depth.

Legend: K kinds of adapters (of equal samples and costs, hence equal bounds), N sets, given by how many adapters of each
kind they hold.

A replica S of depth g costs at least `rate max(head + sum of shares, longest path)` (`ReplicaBounds.additive`) and is
charged for its GPUs. Among sets whose longest path is that of kind l only the sum of shares matters: with kinds in the
order of their paths, one dynamic program over the shares answers for every l. Shares are rounded down to a grid, so
what it finds is at least as attractive as any true set, and bounds derived from it hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cappuccino.solvers.allocation.knapsack import bound_ratios, fill, list_sets, mark_parts

TABLE_SIZE = 2**22
"""Entries of the dynamic program's table, which decide how fine the grid is."""
CELLS = (2**11, 2**14)
"""Fewest and most cells of the grid."""
EXTENSION = 2.0
"""How far the grid goes beyond the longest path, in multiples of the largest share."""
_HAIR = 1e-9
"""Rounding errors, in cells."""


@dataclass(frozen=True)
class Place:
    """A pool and a depth, and the additive bounds there."""

    gpu: str
    num_stages: int
    rate: float
    """Objective per second of makespan; 0 where only GPUs are charged."""
    head_s: float
    shares: np.ndarray
    """By kind, seconds, shape (K,); infinite where an adapter does not fit."""
    paths: np.ndarray
    """By kind, seconds, shape (K,); infinite where an adapter does not fit."""

    @property
    def fits(self) -> np.ndarray:
        """Whether an adapter of each kind fits, shape (K,)."""
        return np.isfinite(self.paths)

    def admits(self, limit_s: float | None) -> np.ndarray:
        """Return whether an adapter of each kind can end within a limit here, shape (K,)."""
        limit = np.finfo(float).max if limit_s is None else limit_s
        return np.asarray((self.paths <= limit) & (self.head_s + self.shares <= limit))

    def least_costs(self, limit_s: float | None = None) -> np.ndarray:
        """Return what an adapter of each kind costs at least, in whatever company, shape (K,)."""
        admitted = self.admits(limit_s)
        return np.where(admitted, self.rate * np.where(admitted, self.shares, 0.0), np.inf)

    def makespans(self, sets: np.ndarray) -> np.ndarray:
        """Return the additive bound of sets, seconds, shape (N,).

        Parameters
        ----------
        sets
            Shape (N, K).
        """
        held = sets > 0
        busy = self.head_s + sets @ np.where(self.fits, self.shares, 0.0)
        result = np.maximum(busy, np.where(held, np.where(self.fits, self.paths, 0.0), 0.0).max(axis=1))
        return np.where((held & ~self.fits).any(axis=1), np.inf, result)


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

    def within_reach(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, reach: float, most: int
    ) -> np.ndarray | None:
        """Return all sets of a place whose cost and charge exceed what they are paid by at most `reach`, shape (N, K).

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
        ratio = _ratios(paid, cost)
        best = np.argsort(cost - paid, kind="stable")[:most]
        if len(within):
            best = np.append(best, ratio.argmax())
        return Priced(self.sets[within[best]], makespans[best], float(ratio.max(initial=0.0)))

    def within_reach(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, reach: float, most: int
    ) -> np.ndarray | None:
        """See `Pricing.within_reach`."""
        limit = np.finfo(float).max if limit_s is None else limit_s
        makespans = self.makespans[place]
        cost = self.places[place].rate * np.where(makespans <= limit, makespans, 0.0) + charge
        near = (makespans <= limit) & (cost - self.sets @ prices <= reach)
        return self.sets[near] if near.sum() <= most else None


@dataclass(frozen=True)
class KnapsackPricing:
    """Columns are implicit; their makespans are the additive bounds."""

    places: Sequence[Place]
    counts: np.ndarray

    def price(self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, most: int) -> Priced:
        """See `Pricing.price`; some more sets fill what the best one leaves over."""
        where = self.places[place]
        kinds = np.flatnonzero((prices > 0) & where.admits(limit_s))
        if not len(kinds):
            return Priced(np.zeros((0, len(self.counts)), dtype=np.int64), np.zeros(0), 0.0)
        kinds = kinds[np.argsort(where.paths[kinds], kind="stable")]
        knapsack = _Knapsack.of(where, kinds, self.counts[kinds], prices[kinds], charge, limit_s)
        ratio, found = knapsack.solve(most)
        sets = np.zeros((len(found), len(self.counts)), dtype=np.int64)
        sets[:, kinds] = found
        if limit_s is not None:
            for row in sets:
                _trim(where, row, prices, limit_s)
            sets = sets[sets.any(axis=1)]
        return Priced(sets, where.makespans(sets), ratio)

    def within_reach(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, reach: float, most: int
    ) -> np.ndarray | None:
        """See `Pricing.within_reach`."""
        where = self.places[place]
        kinds = np.flatnonzero(where.admits(limit_s))
        found = np.zeros((most, len(kinds)), dtype=np.int64)
        if not len(kinds):
            return np.zeros((0, len(self.counts)), dtype=np.int64)
        kinds = kinds[np.argsort(-where.paths[kinds], kind="stable")]
        shares = np.maximum(where.shares[kinds], 1e-300)
        number = list_sets(
            np.argsort(-prices[kinds] / shares, kind="stable"),
            self.counts[kinds],
            shares,
            where.paths[kinds],
            prices[kinds],
            where.head_s,
            where.rate,
            charge,
            np.inf if limit_s is None else limit_s,
            reach,
            found,
        )
        sets = np.zeros((max(number, 0), len(self.counts)), dtype=np.int64)
        sets[:, kinds] = found[: len(sets)]
        return None if number < 0 else sets


@dataclass(frozen=True)
class _Knapsack:
    """The adapters that are worth something at a place, kinds in the order of their paths; arrays of shape (K,)."""

    shares: np.ndarray
    counts: np.ndarray
    prices: np.ndarray
    free: np.ndarray
    """Sum of shares up to which the kind's path decides what a set costs."""
    base: np.ndarray
    """What a set costs then."""
    offset: float
    slope: float
    """Beyond, a set of shares x costs `offset + slope x`."""
    room: float
    """Sum of shares that the grid covers."""
    bounded: bool
    """Whether the shares must not exceed the room."""

    @classmethod
    def of(
        cls,
        place: Place,
        kinds: np.ndarray,
        counts: np.ndarray,
        prices: np.ndarray,
        charge: float,
        limit_s: float | None,
    ) -> "_Knapsack":
        shares, free = place.shares[kinds], place.paths[kinds] - place.head_s
        if place.rate == 0:
            free = np.full(len(kinds), np.inf)
        everything = float(shares @ counts)
        bounded = limit_s is not None and place.head_s + everything > limit_s
        # beyond the longest path costs are linear in the shares, and little more of a grid is needed
        linear = float(free[-1] + EXTENSION * shares.max())
        room = limit_s - place.head_s if bounded and limit_s is not None else min(linear, everything)
        return cls(
            shares=np.maximum(shares, 1e-12 * max(everything, 1e-300)),
            counts=counts,
            prices=prices,
            free=free,
            base=place.rate * place.paths[kinds] + charge,
            offset=place.rate * place.head_s + charge,
            slope=place.rate,
            room=max(room, float(shares.min()), 1e-300),
            bounded=bounded,
        )

    def solve(self, most: int) -> tuple[float, np.ndarray]:
        """Return a bound on the ratio of price to cost, and attractive sets, shape (N, K)."""
        copies = np.minimum(self.counts, np.floor(self.room / self.shares + _HAIR)).astype(np.int64)
        owner, multiple = _parts(copies)
        cells = int(np.clip(TABLE_SIZE // max(len(owner), 1), *CELLS))
        cell = self.room / cells
        weights = np.floor(multiple * self.shares[owner] / cell - _HAIR).clip(0).astype(np.int64)
        ends = np.searchsorted(owner, np.arange(len(self.shares)), side="right")
        pays = np.floor(np.minimum(self.free / cell, cells) + _HAIR).astype(np.int64)
        profits = multiple * self.prices[owner]
        taken, margins, ratios, at = fill(
            weights, profits, ends, pays, self.base, self.slope * cell, self.offset, cells + 1
        )
        order = np.argsort(-self.prices / self.shares, kind="stable")
        room = self.room if self.bounded else np.inf
        # rounding spoils sets of many small shares, for which taking adapters in part is a good bound
        in_part = bound_ratios(
            order,
            self.shares * self.counts,
            self.prices * self.counts,
            self.free,
            self.base,
            self.slope,
            self.offset,
            room,
        )
        ratio = float(np.minimum(ratios, in_part).max())
        found: dict[bytes, np.ndarray] = {}
        for kind in [int(ratios.argmax()), *np.argsort(-margins)[: 4 * most].tolist()]:
            for cell_at in {int(at[kind, 0]), int(at[kind, 1])}:
                if cell_at >= 0 and len(found) < most:
                    uses = mark_parts(taken, weights, int(ends[kind]), cell_at)
                    numbers = np.zeros(len(self.shares), dtype=np.int64)
                    np.add.at(numbers, owner[uses], multiple[uses])
                    found.setdefault(numbers.tobytes(), numbers)
        if not self.bounded and self.room < float(self.shares @ self.counts) * (1 - 1e-12):
            beyond, numbers = self._beyond_the_grid(order)
            ratio = max(ratio, beyond)
            found.setdefault(numbers.tobytes(), numbers)
        sets = np.array(list(found.values()))
        return ratio, sets[sets.any(axis=1)]

    def _beyond_the_grid(self, order: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the best ratio of price to cost among sets whose shares exceed the room, and the best such set.

        There costs are linear in the shares: the best ratio is among the prefixes in `order` (of price per share), the
        one that just reaches the room taken in part.
        """
        owner = np.repeat(order, self.counts[order])
        filled, paid = np.cumsum(self.shares[owner]), np.cumsum(self.prices[owner])
        beyond = np.flatnonzero(filled > self.room)
        first = int(beyond[0])
        over = (filled[first] - self.room) / self.shares[owner[first]]
        at_room = (paid[first] - over * self.prices[owner[first]]) / max(self.offset + self.slope * self.room, 1e-300)
        ratios = _ratios(paid[beyond], self.offset + self.slope * filled[beyond])
        numbers = np.bincount(owner[: beyond[ratios.argmax()] + 1], minlength=len(self.shares))
        return max(float(at_room), float(ratios.max())), numbers


def _ratios(paid: np.ndarray, cost: np.ndarray) -> np.ndarray:
    return np.where(paid > 0, paid / np.maximum(cost, 1e-300), 0.0)


def _parts(copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split copies into parts of which every number can be composed: 1, 2, 4, ... and the rest.

    Returns each part's owner (index into `copies`) and size, in the order of the owners.
    """
    owners, sizes = [], []
    for k, number in enumerate(copies.tolist()):
        done = 0
        while done < number:
            owners.append(k)
            sizes.append(min(done + 1, number - done))
            done += sizes[-1]
    return np.array(owners, dtype=np.int64), np.array(sizes, dtype=np.int64)


def _trim(place: Place, numbers: np.ndarray, prices: np.ndarray, limit_s: float) -> None:
    """Take adapters out of a set that rounding let grow beyond the limit, at little loss.

    Either the least paid one that suffices, or as many as it takes of those paid least per share.
    """
    held = np.repeat(np.flatnonzero(numbers), numbers[numbers > 0])
    shares = place.shares[held]
    over = place.head_s + float(shares.sum()) - limit_s
    if over <= 0:
        return
    enough = np.flatnonzero(shares >= over)
    order = np.argsort(prices[held] / shares, kind="stable")
    few = order[: int(np.searchsorted(np.cumsum(shares[order]), over)) + 1]
    if len(enough):
        one = enough[[prices[held[enough]].argmin()]]
        few = min(few, one, key=lambda out: prices[held[out]].sum())
    np.subtract.at(numbers, held[few], 1)
