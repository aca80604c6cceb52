"""The inner loops of pricing: a dynamic program over a grid of shares, and its relaxation.

Kinds of adapters come in the order of their paths, each split into parts that are taken whole or not at all. Sets among
the kinds up to l cost `base[l]` while their shares are small, and an affine function of the shares beyond.
"""

import numpy as np

from cappuccino.compiled import compiled


@compiled
def fill(
    weights: np.ndarray,
    profits: np.ndarray,
    ends: np.ndarray,
    pays: np.ndarray,
    base: np.ndarray,
    slope: float,
    offset: float,
    cells: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the best profit within c cells for every c, part by part, and what is best against the costs.

    Parameters
    ----------
    weights, profits
        Of the parts: cells that they take, and what they are paid.
    ends
        The parts before `ends[l]` belong to the kinds up to l.
    pays, base
        Up to cell `pays[l]` a set of kinds up to l costs `base[l]`.
    slope, offset
        Beyond, a set within c cells costs `offset + slope c`.

    Returns
    -------
    taken
        Whether a part is in the best set within c cells of the parts up to it, shape (parts, cells).
    margins, ratios
        Largest profit - cost and profit / cost among kinds up to l, shape (K,).
    at
        Cells where they are, -1 for none, shape (K, 2).
    """
    count = len(ends)
    taken = np.zeros((len(weights), cells), dtype=np.bool_)
    margins, ratios, at = np.full(count, -np.inf), np.zeros(count), np.full((count, 2), -1)
    best, other = np.zeros(cells), np.zeros(cells)
    part = 0
    for kind in range(count):
        while part < ends[kind]:
            weight, profit = min(weights[part], cells), profits[part]
            other[:weight] = best[:weight]
            for c in range(weight, cells):
                other[c] = max(best[c], best[c - weight] + profit)
                taken[part, c] = other[c] > best[c]
            best, other = other, best
            part += 1
        free = min(pays[kind], cells - 1)
        margin, ratio = -np.inf, 0.0
        if free >= 0:
            margin = best[free] - base[kind]
            at[kind, 0] = free
            if best[free] > 0:
                ratio = best[free] / max(base[kind], 1e-300)
                at[kind, 1] = free
        for c in range(max(free, -1) + 1, cells):
            cost = offset + slope * c
            if best[c] - cost > margin:
                margin = best[c] - cost
                at[kind, 0] = c
            if best[c] > ratio * cost:
                ratio = best[c] / max(cost, 1e-300)
                at[kind, 1] = c
        margins[kind], ratios[kind] = margin, ratio
    return taken, margins, ratios, at


@compiled
def mark_parts(taken: np.ndarray, weights: np.ndarray, end: int, cell: int) -> np.ndarray:
    """Return which parts the best set within `cell` cells among the parts before `end` is made of."""
    uses = np.zeros(len(weights), dtype=np.bool_)
    for part in range(end - 1, -1, -1):
        if taken[part, cell]:
            uses[part] = True
            cell -= weights[part]
    return uses


@compiled
def bound_ratios(
    order: np.ndarray,
    shares: np.ndarray,
    worth: np.ndarray,
    free: np.ndarray,
    base: np.ndarray,
    slope: float,
    offset: float,
    room: float,
) -> np.ndarray:
    """Bound the ratio of profit to cost by that of sets that may hold a kind in part.

    The best of them take kinds in the order of worth per share. Between two kinds the ratio is monotone, so that it is
    largest after a kind, where costs begin to grow, or where the room ends.

    Parameters
    ----------
    order
        Kinds by falling worth per share.
    shares, worth
        Of all adapters of a kind.
    free, base
        Up to shares of `free[l]` a set of kinds up to l costs `base[l]`.
    slope, offset
        Beyond, a set of shares x costs `offset + slope x`.
    room
        Most that shares may add up to.
    """
    ratios = np.zeros(len(shares))
    for last in range(len(shares)):
        filled = paid = best = 0.0
        turn = min(free[last], room)
        for kind in order:
            if kind > last:
                continue
            density = worth[kind] / shares[kind]
            if filled < turn <= filled + shares[kind]:
                best = max(best, (paid + density * (turn - filled)) / max(base[last], 1e-300))
            if filled + shares[kind] > room:
                cost = max(base[last], offset + slope * room)
                best = max(best, (paid + density * (room - filled)) / max(cost, 1e-300))
                break
            filled += shares[kind]
            paid += worth[kind]
            best = max(best, paid / max(base[last], offset + slope * filled, 1e-300))
        ratios[last] = best
    return ratios


@compiled
def list_sets(
    order: np.ndarray,
    counts: np.ndarray,
    shares: np.ndarray,
    paths: np.ndarray,
    prices: np.ndarray,
    ramp_s: float,
    rate: float,
    charge: float,
    limit_s: float,
    slack: float,
    nodes_per_set: int,
    found: np.ndarray,
) -> int:
    """List all sets whose cost and charge exceed what they are paid by no more than `slack`.

    A tree of decisions, one kind after the other. What the kinds to come can add at most is the relaxation of a
    knapsack: they cost nothing until the shares reach the longest path, and `rate` per second after that.

    Parameters
    ----------
    order
        Kinds by falling price per share.
    counts, shares, paths, prices
        By kind, falling paths: the first kind held has the longest path.
    ramp_s, rate, charge
        A set costs `rate max(ramp_s + sum of shares, longest path) + charge`.
    limit_s
        Latest end.
    nodes_per_set
        Decisions that may be looked at for each set that there is room for.
    found
        Receives the sets, shape (N, K).

    Returns
    -------
    int
        How many there are, -1 when `found` is too small or listing them takes too long for its size.
    """
    kinds = len(counts)
    numbers = np.zeros(kinds + 1, dtype=np.int64)
    # before each kind is decided: sum of shares, longest path, sum of prices
    filled, longest, paid = np.zeros(kinds + 1), np.zeros(kinds + 1), np.zeros(kinds + 1)
    size, kind, visited = 0, 0, 0
    numbers[0] = -1
    while kind >= 0:
        visited += 1
        if visited > nodes_per_set * len(found):
            return -1
        numbers[kind] += 1
        load = filled[kind] + numbers[kind] * shares[kind]
        if numbers[kind] > counts[kind] or ramp_s + load > limit_s * (1 + 1e-12):
            kind -= 1
            continue
        path = longest[kind]
        if numbers[kind] > 0 and path == 0.0:
            path = paths[kind]
        worth = paid[kind] + numbers[kind] * prices[kind]
        free = max(path - ramp_s - load, 0.0) if rate > 0 else np.inf
        room = limit_s - ramp_s - load
        surplus = rate * max(ramp_s + load, path) + charge - worth
        for other in order:
            if other <= kind:
                continue
            share = min(shares[other] * counts[other], room)
            if share <= 0:
                break
            density = prices[other] / shares[other]
            unpaid = min(share, free)
            surplus -= density * unpaid + max(density - rate, 0.0) * (share - unpaid)
            free -= unpaid
            room -= share
        if surplus > slack:
            continue
        if kind == kinds - 1:
            if load > 0:
                if size == len(found):
                    return -1
                found[size] = numbers[:kinds]
                size += 1
            continue
        kind += 1
        filled[kind], longest[kind], paid[kind] = load, path, worth
        numbers[kind] = -1
    return size
