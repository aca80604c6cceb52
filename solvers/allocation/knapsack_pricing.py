"""Pricing by knapsacks: sets of adapters of least reduced cost, where all sets are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cappuccino.solvers.allocation.knapsack import bound_ratios, fill, list_sets, mark_parts
from cappuccino.solvers.allocation.pricing import Place, Priced, paid_per_cost
from cappuccino.solvers.settings import DEFAULT, AllocationSettings

_HAIR = 1e-9
"""Rounding errors, in cells."""


@dataclass(frozen=True)
class KnapsackPricing:
    """Columns are implicit; their makespans are the additive bounds."""

    places: Sequence[Place]
    counts: np.ndarray
    settings: AllocationSettings = DEFAULT.allocation

    def price(self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, most: int) -> Priced:
        """See `Pricing.price`; some more sets fill what the best one leaves over."""
        where = self.places[place]
        kinds = np.flatnonzero((prices > 0) & where.admits(limit_s))
        if not len(kinds):
            return Priced(np.zeros((0, len(self.counts)), dtype=np.int64), np.zeros(0), 0.0)
        kinds = kinds[np.argsort(where.paths[kinds], kind="stable")]
        knapsack = _Knapsack.of(where, kinds, self.counts[kinds], prices[kinds], charge, limit_s, self.settings)
        ratio, found = knapsack.solve(most)
        sets = np.zeros((len(found), len(self.counts)), dtype=np.int64)
        sets[:, kinds] = found
        for row in sets:
            if limit_s is not None:
                _trim(where, row, prices, limit_s)
            _fit_memory(where, row, prices)
        sets = sets[sets.any(axis=1)]
        return Priced(sets, where.makespans(sets), ratio)

    def within_slack(
        self, place: int, prices: np.ndarray, charge: float, limit_s: float | None, slack: float, most: int
    ) -> np.ndarray | None:
        """See `Pricing.within_slack`."""
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
            where.ramp_s,
            where.rate,
            charge,
            np.inf if limit_s is None else limit_s,
            slack,
            self.settings.nodes_per_set,
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
    settings: AllocationSettings

    @classmethod
    def of(
        cls,
        place: Place,
        kinds: np.ndarray,
        counts: np.ndarray,
        prices: np.ndarray,
        charge: float,
        limit_s: float | None,
        settings: AllocationSettings,
    ) -> "_Knapsack":
        shares, free = place.shares[kinds], place.paths[kinds] - place.ramp_s
        if place.rate == 0:
            free = np.full(len(kinds), np.inf)
        everything = float(shares @ counts)
        bounded = limit_s is not None and place.ramp_s + everything > limit_s
        # beyond the longest path costs are linear in the shares, and little more of a grid is needed
        linear = float(free[-1] + settings.extension * shares.max())
        room = limit_s - place.ramp_s if bounded and limit_s is not None else min(linear, everything)
        return cls(
            shares=np.maximum(shares, 1e-12 * max(everything, 1e-300)),
            counts=counts,
            prices=prices,
            free=free,
            base=place.rate * place.paths[kinds] + charge,
            offset=place.rate * place.ramp_s + charge,
            slope=place.rate,
            room=max(room, float(shares.min()), 1e-300),
            bounded=bounded,
            settings=settings,
        )

    def solve(self, most: int) -> tuple[float, np.ndarray]:
        """Return a bound on the ratio of price to cost, and attractive sets, shape (N, K)."""
        copies = np.minimum(self.counts, np.floor(self.room / self.shares + _HAIR)).astype(np.int64)
        owner, multiple = _parts(copies)
        cells = int(np.clip(self.settings.table_size // max(len(owner), 1), *self.settings.cells))
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
        found = paid_per_cost(paid[beyond], self.offset + self.slope * filled[beyond])
        numbers = np.bincount(owner[: beyond[found.argmax()] + 1], minlength=len(self.shares))
        return max(float(at_room), float(found.max())), numbers


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
    over = place.ramp_s + float(shares.sum()) - limit_s
    if over <= 0:
        return
    enough = np.flatnonzero(shares >= over)
    order = np.argsort(prices[held] / shares, kind="stable")
    few = order[: int(np.searchsorted(np.cumsum(shares[order]), over)) + 1]
    if len(enough):
        one = enough[[prices[held[enough]].argmin()]]
        few = min(few, one, key=lambda out: prices[held[out]].sum())
    np.subtract.at(numbers, held[few], 1)


def _fit_memory(place: Place, numbers: np.ndarray, prices: np.ndarray) -> None:
    """Take adapters out of a set that the memory does not hold, those paid least for what they take first."""
    while place.room is not None and numbers.any() and not place.room.holds(numbers[None])[0]:
        held = np.flatnonzero(numbers)
        worth = prices[held] / np.maximum(place.room.adapters_gib[held], 1e-12)
        numbers[held[worth.argmin()]] -= 1
