"""Fastest passage of given micro-batches through a pipeline as its last stage sees it, over all orders: a lower bound.

The last stage runs the F's in one order and the B's in one order, each after its F. Let X be the micro-batches up to
and with the k-th F: the last of them arrives after `sum f' + max (f" - f')` over X at the earliest, where f" is an F's
time on all stages before the last and f' one that neither the first stage nor the last but one is below: any one of X
goes down the stages behind those before it and ahead of those after it. In the same way, what is left after a B on the
last stage takes at least `sum b' + max (b" - b')` over it and the B's that follow it. Both depend on sets alone, so a
dynamic program over (F's done, B's done) finds the least time of the last stage. What it leaves out are the F's and B's
that get into each other's way on the other stages.

Legend: n micro-batches, bit sets of them of shape (2^n,); the rows of times are f', f" and f on the last stage.
"""

import numpy as np

from cappuccino.compiled import compiled

PRECISION = 2e-3
"""Relative distance to the program's optimum up to which the bound is worked out."""


@compiled
def last_stage_bound(forward: np.ndarray, backward: np.ndarray, count: int, least_s: float, most_s: float) -> float:
    """Return a lower bound on the passage of the first `count` micro-batches, without transfers, seconds.

    Parameters
    ----------
    forward, backward
        Their times, shape (3, n) or wider, seconds.
    least_s
        A lower bound that is known, seconds.
    most_s
        Bounds above this are of no interest: it is returned where the bound is larger.
    """
    heads, tails = _ends(forward, count), _ends(backward, count)
    size = 1 << count
    earliest = np.empty((size, size))
    low, high = least_s, most_s
    if not _is_possible(forward, backward, heads, tails, count, high, earliest):
        return high
    while high - low > PRECISION * high:
        middle = 0.5 * (low + high)
        if _is_possible(forward, backward, heads, tails, count, middle, earliest):
            high = middle
        else:
            low = middle
    return low


@compiled
def last_stage_order(forward: np.ndarray, backward: np.ndarray, count: int, limit_s: float) -> np.ndarray:
    """Return an order of the F's that reaches a limit as the last stage sees it, shape (n,).

    Parameters
    ----------
    limit_s
        A little above the bound of these micro-batches, seconds. Where it is too tight, they stay in the order given.
    """
    heads, tails = _ends(forward, count), _ends(backward, count)
    size = 1 << count
    earliest = np.empty((size, size))
    possible = _is_possible(forward, backward, heads, tails, count, limit_s, earliest)
    order = np.arange(count)
    if not possible:
        return order
    f_done = b_done = size - 1
    place = count - 1
    while place >= 0:  # back from the end, along what was done earliest
        now = earliest[f_done, b_done]
        found = False
        for k in range(count):
            bit = 1 << k
            if not f_done & bit:
                continue
            if b_done & bit:
                end = earliest[f_done, b_done ^ bit] + backward[2, k]
                if end == now and end + tails[(size - 1) ^ (b_done ^ bit)] <= limit_s:
                    b_done ^= bit
                    found = True
                    break
            elif max(earliest[f_done ^ bit, b_done], heads[f_done]) + forward[2, k] == now:
                f_done ^= bit
                order[place] = k
                place -= 1
                found = True
                break
        if not found:
            return np.arange(count)
    return order


@compiled
def _ends(times: np.ndarray, count: int) -> np.ndarray:
    """Return how long sets of micro-batches take on all stages but the last, shape (2^n,)."""
    size = 1 << count
    total, most = np.zeros(size), np.zeros(size)
    result = np.zeros(size)
    for k in range(count):
        bit = 1 << k
        for rest in range(bit):
            total[rest | bit] = total[rest] + times[0, k]
            most[rest | bit] = max(most[rest], times[1, k] - times[0, k])
            result[rest | bit] = total[rest | bit] + most[rest | bit]
    return result


@compiled
def _is_possible(
    forward: np.ndarray,
    backward: np.ndarray,
    heads: np.ndarray,
    tails: np.ndarray,
    count: int,
    limit_s: float,
    earliest: np.ndarray,
) -> bool:
    """Return whether the last B can be back on the first stage by the limit.

    Parameters
    ----------
    earliest
        Room for when the last stage has done sets of F's and of B's, shape (2^n, 2^n).
    """
    whole = (1 << count) - 1
    for f_done in range(whole + 1):
        b_done = 0
        while True:  # all subsets of f_done, rising
            earliest[f_done, b_done] = np.inf
            b_done = (b_done - f_done) & f_done
            if b_done == 0:
                break
    earliest[0, 0] = 0.0
    for f_done in range(whole + 1):
        b_done = 0
        while True:
            now = earliest[f_done, b_done]
            if now < np.inf:
                for k in range(count):
                    bit = 1 << k
                    if not f_done & bit:
                        more = f_done | bit
                        end = max(now, heads[more]) + forward[2, k]
                        earliest[more, b_done] = min(earliest[more, b_done], end)
                    elif not b_done & bit:
                        end = now + backward[2, k]
                        if end + tails[whole ^ b_done] <= limit_s:
                            more = b_done | bit
                            earliest[f_done, more] = min(earliest[f_done, more], end)
            b_done = (b_done - f_done) & f_done
            if b_done == 0:
                break
    return bool(earliest[whole, whole] < np.inf)
