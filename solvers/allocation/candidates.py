"""What is known before anything is scheduled: a proven bound, partitions, and the columns to choose from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cappuccino.errors import CappuccinoError, InfeasibleError
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.column_generation import RelaxationResult, least_makespan, solve_relaxation
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.allocation.filling import Partition, filled_partitions, memory_suffices, shortest_partition
from cappuccino.solvers.allocation.knapsack_pricing import KnapsackPricing
from cappuccino.solvers.allocation.milp import PartitionProblem, TimeUpError
from cappuccino.solvers.allocation.pricing import (
    BoundProof,
    ColumnPool,
    EnumeratedPricing,
    GeneratedColumn,
    GeneratedKey,
    Place,
    Pricing,
)
from cappuccino.solvers.budget import Clock

_TINY = 1e-9
_USUAL = 1000.0
"""About what a partition costs in the unit used here: the tolerances of solvers are absolute."""


@dataclass(frozen=True)
class Candidates:
    """Columns, what the relaxation thinks of them, and partitions made of them."""

    bound: float
    """Proven: no plan's objective is below."""
    proof: BoundProof | None
    """Of the bound, or of the relaxation's where the bound is above that."""
    place: np.ndarray
    """Place of every column, shape (C,)."""
    numbers: np.ndarray
    """Adapters of each kind in every column, shape (C, K)."""
    bounds_s: np.ndarray
    """Proven bounds on the makespans, shape (C,)."""
    paid: np.ndarray
    """What a column's adapters are worth at the prices that prove the bound, shape (C,)."""
    charge: np.ndarray
    """What its GPUs are charged there, shape (C,)."""
    partitions: tuple[tuple[int, ...], ...]
    """Indices of columns, each as often as it is in the partition."""


def find_candidates(context: Context) -> Candidates:
    """Prove a bound and collect columns.

    The bound is that of the set partitioning, to the gap, where the columns that matter for it can be listed in time;
    elsewhere it is that of its relaxation. Where all sets are enumerated, all columns are candidates; elsewhere those
    that were generated or filled.

    Raises
    ------
    InfeasibleError
        When the pools, or the deadline, admit no partition.
    """
    return _Finder(context).find()


class _Finder:
    """The work of `find_candidates`."""

    def __init__(self, context: Context) -> None:
        space, goal, clock = context.space, context.goal, context.clock
        self.space, self.objective, self.deadline_s = space, goal.objective, goal.deadline_s
        self.settings = context.settings.allocation
        self.tolerance = goal.gap / 4 + 1e-6
        self.counts, self.pools = space.kinds.counts, space.pools
        places = space.places(goal.objective)
        self.unit = self._usual_cost(places) / _USUAL or 1.0
        self.places = tuple(replace(p, rate=p.rate / self.unit) for p in places)
        # the places' bounds, which nothing can do without, may have taken all the time
        self.clock = clock if clock.left is None else Clock(max(clock.left, self.settings.least_bound_time_s))
        self.pool = ColumnPool()
        self._full: dict[GeneratedKey, float] = {}
        kinds = space.kinds.of_adapter.tolist()
        self.problem = PartitionProblem(
            kinds, self.pools, goal.objective, self.tolerance, context.seed, tie_gap=self.settings.tie_gap
        )

    def _usual_cost(self, places: Sequence[Place]) -> float:
        """Return about what a partition costs where it is not free; 0 where the makespan counts."""
        least = [np.full(len(self.counts), np.inf), *(p.least_costs() for p in places if p.rate > 0)]
        costs = np.min(least, axis=0)
        return float(self.counts[np.isfinite(costs)] @ costs[np.isfinite(costs)])

    def find(self) -> Candidates:
        """See `find_candidates`."""
        bound = self.space.objective_bound(self.objective) / self.unit
        partitions = self._partitions(bound)
        if not partitions:
            self._refute()
        for place, numbers in (replica for partition in partitions for replica in partition):
            self.pool.add(GeneratedColumn(place, numbers, self._priced_bound(place, numbers)))
        if self.objective is Objective.MAKESPAN:
            bound, relaxed, proof = self._relax_makespan(bound, partitions)
        else:
            relaxed = solve_relaxation(
                self._pricing(self.places), self.pools, self.pool, self.clock,
                limit_s=self.deadline_s, tolerance=self.tolerance, settings=self.settings,
            )  # fmt: skip
            bound = max(bound, relaxed.bound)
            proof = BoundProof(relaxed.bound, relaxed.prices, relaxed.charges, self.deadline_s)
        bound, exact = self._solve_exactly(bound, relaxed, partitions)
        return self._collect(bound, proof and proof.scaled(self.unit), relaxed, [*exact, *partitions])

    def _partitions(self, low_s: float) -> list[Partition]:
        """Fill partitions; those that end in time by their full bounds."""
        found = filled_partitions(self.places, self.counts, self.pools, self.deadline_s, self.settings)
        high = max((self.places[p].makespans(n[None])[0] for f in found for p, n in f), default=self.deadline_s)
        if high is not None:
            low = low_s if self.objective is Objective.MAKESPAN else self.space.objective_bound(Objective.MAKESPAN)
            shortest = shortest_partition(self.places, self.counts, self.pools, low, float(high), self.settings)
            found += [shortest] if shortest is not None else []
        limit = math.inf if self.deadline_s is None else self.deadline_s
        self._learn(replica for partition in found for replica in partition)
        ends = [[self._full_bound(*replica) for replica in f] for f in found]
        return [f for f, bounds in zip(found, ends, strict=True) if max(bounds) <= limit and max(bounds) < math.inf]

    def _refute(self) -> None:
        """Raise an error if even the relaxation needs more GPUs than there are, or the adapters more memory."""
        if not memory_suffices(self.places, self.counts, self.pools):
            raise InfeasibleError(why_no_partition(self.space, self.deadline_s, proven=True))
        if self.deadline_s is None:
            return
        pricing = self._pricing(self.space.places(Objective.MAKESPAN))
        admitted = np.any([p.admits(self.deadline_s) for p in pricing.places], axis=0)
        if admitted.all():
            found = solve_relaxation(
                pricing, self.pools, self.pool, self.clock,
                limit_s=self.deadline_s, share_only=True, tolerance=1e-4, stop_at=1.0, settings=self.settings,
            )  # fmt: skip
            if found.bound <= 1.0 + _TINY:
                return
        raise InfeasibleError(why_no_partition(self.space, self.deadline_s, proven=True))

    def _relax_makespan(
        self, low_s: float, partitions: list[Partition]
    ) -> tuple[float, RelaxationResult | None, BoundProof | None]:
        ends = [max(self._priced_bound(*replica) for replica in partition) for partition in partitions]
        at_once = max(p.ramp_s + float(self.counts @ np.where(p.fits, p.shares, 0.0)) for p in self.places)
        high = min(ends, default=low_s + at_once if self.deadline_s is None else self.deadline_s)
        pricing = self._pricing(self.space.places(Objective.MAKESPAN))
        return least_makespan(
            pricing, self.pools, self.pool, self.clock,
            low_s=low_s, high_s=high, tolerance=self.tolerance, settings=self.settings,
        )  # fmt: skip

    def _pricing(self, places: Sequence[Place]) -> Pricing:
        if self.space.enumerates_all:
            return EnumeratedPricing(places, self.counts, self.space.sets, self.space.set_bounds)
        return KnapsackPricing(places, self.counts, self.settings)

    def _full_bound(self, place: int, numbers: np.ndarray) -> float:
        key = place, numbers.tobytes()
        if key not in self._full:
            self._learn([(place, numbers)])
        return self._full[key]

    def _learn(self, replicas: Iterable[tuple[int, np.ndarray]]) -> None:
        """Work out full bounds, of many replicas at once; where all sets are enumerated they are known."""
        if self.space.enumerates_all:
            known = list(replicas)
            if known:
                ranks = self.space.kinds.ranks(np.array([numbers for _, numbers in known]))
                found = self.space.set_bounds[[place for place, _ in known], ranks]
                self._full.update({(p, n.tobytes()): float(b) for (p, n), b in zip(known, found, strict=True)})
            return
        fresh: dict[int, dict[bytes, np.ndarray]] = {}
        for place, numbers in replicas:
            if (place, numbers.tobytes()) not in self._full:
                fresh.setdefault(place, {})[numbers.tobytes()] = numbers
        for place, sets in fresh.items():
            found = self.space.bounds[place][1].lower_bounds(np.array(list(sets.values())))
            self._full.update({(place, name): float(bound) for name, bound in zip(sets, found, strict=True)})

    def _priced_bound(self, place: int, numbers: np.ndarray) -> float:
        """Return the bound that the pricing knows: it may be the additive one."""
        if self.space.enumerates_all:
            return self._full_bound(place, numbers)
        return float(self.places[place].makespans(numbers[None])[0])

    def _collect(
        self, bound: float, proof: BoundProof | None, relaxed: RelaxationResult | None, partitions: list[Partition]
    ) -> Candidates:
        """Return all columns that are enumerated, or those found, with their full bounds."""
        # as wide as wherever columns are let in, so that every partition's are among them
        limit = np.finfo(float).max if self.deadline_s is None else self.deadline_s * (1 + 4 * _TINY)
        if self.space.enumerates_all:
            place, rank = np.nonzero(self.space.set_bounds <= limit)
            numbers, bounds_s = self.space.sets[rank], self.space.set_bounds[place, rank]
        else:
            known = sorted(self.pool.columns)
            place = np.array([p for p, _ in known])
            numbers = np.array([self.pool.columns[key].numbers for key in known])
            bounds_s = np.zeros(len(known))
            for p, (_, bounds) in enumerate(self.space.bounds):
                here = place == p
                bounds_s[here] = bounds.lower_bounds(numbers[here])
            kept = bounds_s <= limit
            place, numbers, bounds_s = place[kept], numbers[kept], bounds_s[kept]
        index = {(int(p), n.tobytes()): c for c, (p, n) in enumerate(zip(place, numbers, strict=True))}
        prices = relaxed.prices if relaxed is not None else np.zeros(len(self.counts))
        charges = np.array(
            [(relaxed.charges[p.gpu] if relaxed is not None else 0.0) * p.num_stages for p in self.places]
        )
        return Candidates(
            bound=bound * self.unit,
            proof=proof,
            place=place,
            numbers=numbers,
            bounds_s=bounds_s,
            paid=numbers @ prices * self.unit,
            charge=charges[place] * self.unit,
            partitions=tuple(tuple(index[p, n.tobytes()] for p, n in partition) for partition in partitions),
        )

    def _solve_exactly(
        self, bound: float, relaxed: RelaxationResult | None, partitions: list[Partition]
    ) -> tuple[float, list[Partition]]:
        """Improve the bound to that of the set partitioning with full bounds as makespans, where that is in reach.

        Columns whose reduced cost (cost and charge less what they are paid) exceeds the distance of the relaxation's
        bound from the best partition are in no better one, and of the others there may be few enough.
        """
        values = [self._value(partition) for partition in partitions]
        best = min(values, default=math.inf)
        if best < math.inf and best - bound <= self.tolerance * best:
            return bound, []
        limit, slack = self.deadline_s, math.inf
        if self.objective is Objective.MAKESPAN:
            # bounds of one set, worked out among different others, may differ in the last digit
            limit = min(best, math.inf if limit is None else limit) * (1 + _TINY)
            relaxed = solve_relaxation(
                self._pricing(self.places), self.pools, self.pool, self.clock,
                limit_s=limit if limit < math.inf else None, share_only=True, tolerance=1e-4, settings=self.settings,
            )  # fmt: skip
            slack = 1.0 - relaxed.bound + _TINY
        elif relaxed is not None and best < math.inf:
            slack = (best - relaxed.bound) * (1 + 1e-6) + _TINY
        assert relaxed is not None  # only the makespan goes without
        columns = self._columns_within(relaxed, limit, slack)
        if columns is None:
            return bound, []
        start = partitions[int(np.argmin(values))] if partitions else []
        known = {(place, numbers.tobytes()) for place, numbers, _ in columns}
        columns += [(p, n, self._full_bound(p, n)) for p, n in start if (p, n.tobytes()) not in known]
        index = {(place, numbers.tobytes()): c for c, (place, numbers, _) in enumerate(columns)}
        try:
            solved = self.problem.solve(
                [self.space.column(*column) for column in columns],
                self.clock,
                [index[place, numbers.tobytes()] for place, numbers in start],
                bound * self.unit,
            )
        except TimeUpError:
            return bound, []
        if solved is None:
            if partitions:
                raise CappuccinoError("HiGHS refuses a partition that is one")
            raise InfeasibleError(why_no_partition(self.space, self.deadline_s, proven=True))
        chosen = [columns[c][:2] for c in solved.chosen]
        for place, numbers in chosen:
            self.pool.add(GeneratedColumn(place, numbers, self._priced_bound(place, numbers)))
        proven = bound if solved.bound is None else solved.bound / self.unit
        return max(bound, min(best, proven)), [chosen]

    def _columns_within(
        self, relaxed: RelaxationResult, limit_s: float | None, slack: float
    ) -> list[tuple[int, np.ndarray, float]] | None:
        """Return place, adapters and full bound of all columns within the slack; None where there are too many."""
        pricing = self._pricing(self.places)
        found: list[tuple[int, np.ndarray, float]] = []
        for number, place in enumerate(self.places):
            charge = relaxed.charges[place.gpu] * place.num_stages
            left = self.settings.most_exact - len(found)
            sets = pricing.within_slack(number, relaxed.prices, charge, limit_s, slack, left)
            if sets is None:
                return None
            bounds_s = self.space.bounds[number][1].lower_bounds(sets)
            possible = np.isfinite(bounds_s)
            costs = place.rate * np.where(possible, bounds_s, 0.0) + charge - sets @ relaxed.prices
            useful = possible & (costs <= slack)
            if limit_s is not None:
                useful &= bounds_s <= limit_s * (1 + _TINY)
            found += [(number, numbers, bound) for numbers, bound in zip(sets[useful], bounds_s[useful], strict=True)]
        return found

    def _value(self, partition: Partition) -> float:
        """Return the objective at full bounds."""
        bounds_s = [self._full_bound(*replica) for replica in partition]
        if self.objective is Objective.MAKESPAN:
            return max(bounds_s)
        return sum(self.places[place].rate * bound for (place, _), bound in zip(partition, bounds_s, strict=True))


def why_no_partition(space: ReplicaSpace, deadline_s: float | None, proven: bool) -> str:
    """Return the message for an instance without a partition.

    Parameters
    ----------
    proven
        Whether there is none, or only none was found.
    """
    source = space.instance.source
    within = "" if deadline_s is None else f" within {deadline_s:g} s"
    if not proven:
        return f"{source}: no partition{within} found, though bounds exclude none; give more GPUs or a longer deadline"
    if deadline_s is not None:
        least = space.objective_bound(Objective.MAKESPAN)
        if deadline_s < least:
            advice = f"give a deadline of at least {_rounded_up(least)} s"
            return f"{source}: no plan can end within {deadline_s:g} s; {advice}"
        return (
            f"{source}: the pools are too small for a deadline of {deadline_s:g} s; give a longer one (at least "
            f"{_rounded_up(least)} s) or more GPUs"
        )
    needs = ", ".join(f"{p.gpu}: {p.count}" for p in space.instance.gpu_pools)
    return f"{source}: gpu_pools ({needs}) are too small to place every adapter; give more GPUs"


def _rounded_up(seconds: float) -> str:
    """Return a number of four significant digits that is not below `seconds`."""
    scale = 10.0 ** (3 - math.floor(math.log10(seconds)))
    text = f"{math.ceil(seconds * scale) / scale:f}"
    return text.rstrip("0").rstrip(".")
