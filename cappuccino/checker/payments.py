"""The most that a set of adapters is paid for a unit of what its replica costs, from above.

Legend: K kinds of adapters, of which a set holds some; in the order of their paths.

A set costs `rate max(ramp + sum of shares, longest path) + charge`. Two bounds on what is paid for a unit of it: over
sets whose shares are rounded down to a grid, by a dynamic program, and over sets that hold adapters in part, which take
those of the most price per share first. Neither looks at memory.
"""

from dataclasses import dataclass

import numpy as np

from cappuccino.checker.places import Place

CELLS = 2**15
"""Of the grid."""
_HAIR = 1e-9
"""Rounding errors, in cells."""
_TINY = 1e-300


@dataclass(frozen=True)
class _Offers:
    """The adapters that are paid for at a place, kinds by rising paths; arrays of shape (K,)."""

    shares: np.ndarray
    """Seconds that one of a kind keeps a replica busy at least."""
    paths: np.ndarray
    """Seconds that a replica with one of a kind takes at least."""
    prices: np.ndarray
    """What one of a kind is paid, in the unit of the charge."""
    counts: np.ndarray
    """Adapters of a kind."""
    rate: float
    """Cost of a second of a replica."""
    ramp_s: float
    charge: float
    """Of a replica."""
    limit_s: float

    @property
    def bounded(self) -> bool:
        """Whether all adapters together miss the limit."""
        return self.ramp_s + float(self.shares @ self.counts) > self.limit_s

    def room(self) -> float:
        """Return the sum of shares that the grid covers, seconds: to the limit, or to where costs are linear."""
        if self.bounded:
            return max(self.limit_s - self.ramp_s, _TINY)
        linear = float(self.paths.max() - self.ramp_s + 2 * self.shares.max())
        return max(min(linear, float(self.shares @ self.counts)), float(self.shares.min()), _TINY)

    def cost(self, shares: np.ndarray, kind: int) -> np.ndarray:
        """Return what sets of these sums of shares cost whose longest path is that of a kind."""
        return np.asarray(self.rate * np.maximum(self.ramp_s + shares, self.paths[kind]) + self.charge)


def largest_ratio(place: Place, prices: np.ndarray, counts: np.ndarray, limit_s: float, least: float) -> float:
    """Return a number that what any set is paid for a unit of its cost does not exceed.

    Parameters
    ----------
    prices, counts
        Of the kinds, shape (K,).
    limit_s
        Sets that end later do not count; infinite for none.
    least
        It suffices to know that the ratio is no larger than this: it is returned then.
    """
    kinds = np.flatnonzero((prices > 0) & place.admits(limit_s))
    if not len(kinds):
        return least
    kinds = kinds[np.argsort(place.paths[kinds], kind="stable")]
    offers = _Offers(
        np.maximum(place.shares[kinds], 1e-12 * max(float(place.shares[kinds] @ counts[kinds]), _TINY)),
        place.paths[kinds], prices[kinds], counts[kinds], place.rate, place.ramp_s, place.charge, limit_s,
    )  # fmt: skip
    in_part = _ratios_in_part(offers)
    if float(in_part.max()) <= least:
        return least
    room = offers.room()
    rounded = np.minimum(_ratios_on_grid(offers, room, in_part, least), in_part)
    found = max(least, float(rounded.max()))
    if not offers.bounded and room < float(offers.shares @ offers.counts):
        found = max(found, min(_ratio_beyond(offers, room), float(in_part.max())))
    return found


def _ratios_in_part(offers: _Offers) -> np.ndarray:
    """Return the best ratio among sets that may hold adapters in part, by the kind of the longest path, shape (K,).

    What is paid is concave and piecewise linear in the sum of shares, and costs are linear on either side of where the
    work exceeds the path: the best is at an end of a piece.
    """
    order = np.argsort(-offers.prices / offers.shares, kind="stable")
    most = offers.limit_s - offers.ramp_s if offers.bounded else np.inf
    result = np.empty(len(offers.shares))
    for kind in range(len(result)):
        among = order[order <= kind]
        filled = np.concatenate([[0.0], np.cumsum((offers.shares * offers.counts)[among])])
        paid = np.concatenate([[0.0], np.cumsum((offers.prices * offers.counts)[among])])
        turn = offers.paths[kind] - offers.ramp_s
        at = np.minimum(np.append(filled, max(turn, 0.0)), most)
        result[kind] = _most_per_unit(np.interp(at, filled, paid), offers.cost(at, kind))
    return result


def _ratios_on_grid(offers: _Offers, room: float, enough: np.ndarray, least: float) -> np.ndarray:
    """Return the best ratio among sets within the room, by the kind of the longest path, shape (K,).

    Parameters
    ----------
    enough, least
        Kinds for which `enough` is no more than `least` are not looked at: 0.
    """
    cell = room / CELLS
    at = np.arange(CELLS + 1) * cell
    best, result = np.zeros(CELLS + 1), np.zeros(len(offers.shares))
    for kind, (share, price) in enumerate(zip(offers.shares.tolist(), offers.prices.tolist(), strict=True)):
        copies = min(int(offers.counts[kind]), int(room / share + _HAIR))
        for number in _parts(copies):
            weight = max(0, int(np.floor(number * share / cell - _HAIR)))
            if weight <= CELLS:
                best[weight:] = np.maximum(best[weight:], best[: CELLS + 1 - weight] + number * price)
        if enough[kind] > least:
            result[kind] = _most_per_unit(best, offers.cost(at, kind))
    return result


def _ratio_beyond(offers: _Offers, room: float) -> float:
    """Return the best ratio among sets, adapters in part, of larger shares than the room, where costs are linear."""
    order = np.argsort(-offers.prices / offers.shares, kind="stable")
    filled = np.cumsum((offers.shares * offers.counts)[order])
    paid = np.cumsum((offers.prices * offers.counts)[order])
    at = np.append(filled[filled > room], room)
    worth = np.interp(at, np.append(0.0, filled), np.append(0.0, paid))
    return _most_per_unit(worth, offers.cost(at, len(order) - 1))


def _most_per_unit(paid: np.ndarray, cost: np.ndarray) -> float:
    """Return the most that is paid for a unit of cost; infinite where something free is paid for."""
    free = np.where(paid > 0, np.inf, 0.0)
    with np.errstate(over="ignore"):
        return float(np.divide(paid, cost, out=free, where=cost > 0).max())


def _parts(copies: int) -> list[int]:
    """Split a number into 1, 2, 4, ... and a rest, of which every smaller number can be composed."""
    result: list[int] = []
    while copies > 0:
        result.append(min(sum(result) + 1, copies))
        copies -= result[-1]
    return result
