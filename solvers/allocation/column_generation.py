"""The linear relaxation of the set partitioning over all columns, found column by column, with a bound at every moment.

Legend: K kinds, n_k adapters of kind k, N_p GPUs of pool p, pi prices of adapters, sigma charges for GPUs.

The relaxation over the columns known so far gives prices; pricing looks for columns that are paid more than they cost.
Farley's bound makes prices of any origin valid: where no column is paid more than theta times its cost and charge,
prices / theta support all columns, so `sum n pi / theta - sum N sigma` is a bound on every partition, integral or not.
Prices are smoothed towards the best ones so far (Wentges), because the relaxation's own jump about.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyomo.environ as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers import Highs

from cappuccino.errors import CappuccinoError
from cappuccino.models.partition_relaxation import PartitionRelaxation
from cappuccino.solvers.allocation.pricing import BoundProof, ColumnPool, GeneratedColumn, GeneratedKey, Pricing
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.settings import DEFAULT, AllocationSettings

_TINY = 1e-9
_PROVES_NOTHING = 1e100
"""Ratio of price to cost from which on a column that is free is paid: no prices of this form support it."""


@dataclass(frozen=True)
class RelaxationResult:
    """Where the relaxation stands."""

    bound: float
    """Proven: no partition is below."""
    value: float
    """Optimum over the columns found; infinite where they do not cover everything."""
    prices: np.ndarray
    """Prices that prove the bound: no column is paid more than it costs, shape (K,)."""
    charges: dict[str, float]
    """Charges for a GPU by type that prove the bound."""
    weights: dict[GeneratedKey, float]
    """How much of each column the relaxation takes, where it takes any."""


def solve_relaxation(
    pricing: Pricing,
    pools: Mapping[str, int],
    pool: ColumnPool,
    clock: Clock,
    *,
    limit_s: float | None = None,
    share_only: bool = False,
    tolerance: float = 1e-3,
    stop_at: float = np.inf,
    start: tuple[np.ndarray, dict[str, float]] | None = None,
    settings: AllocationSettings = DEFAULT.allocation,
) -> RelaxationResult:
    """Generate columns until bound and relaxation meet.

    Parameters
    ----------
    pricing
        All columns; every kind is admitted somewhere within the limit.
    pools
        GPUs by type.
    pool
        Columns to begin with; those found are added.
    limit_s
        Deadline of the makespan.
    share_only
        Ask for the share of the pools that a partition takes, not for its cost; the places' rates are to be 0 then.
    tolerance
        Relative distance of bound and relaxation to reach.
    stop_at
        Stop as well when the bound exceeds this; with `share_only`, also when the relaxation does not.
    start
        Prices and charges that are believed to be good.
    """
    search = _ColumnGeneration(pricing, pools, pool, limit_s, share_only, settings)
    if start is not None:
        search.price(*start)
    stalled = 0
    while True:
        before = search.bound, search.value
        search.solve_master()
        found = search.price_smoothed()
        meet = search.bound >= search.value * (1 - tolerance) - _TINY
        decided = search.bound > stop_at or (share_only and search.value <= stop_at < np.inf)
        moved = abs(search.bound - before[0]) + abs(search.value - before[1]) > settings.progress * search.value
        stalled = 0 if moved else stalled + 1
        if decided or clock.over:
            break
        if meet or not found or stalled > settings.patience:
            if not search.raise_ceilings():
                break
            stalled = 0
    return search.result()


def least_makespan(
    pricing: Pricing,
    pools: Mapping[str, int],
    pool: ColumnPool,
    clock: Clock,
    *,
    low_s: float,
    high_s: float,
    tolerance: float,
    settings: AllocationSettings = DEFAULT.allocation,
) -> tuple[float, RelaxationResult | None, BoundProof | None]:
    """Bisect for the makespan below which even the relaxation needs more GPUs than there are.

    Parameters
    ----------
    pricing
        All columns, at rates of 0.
    low_s, high_s
        A bound on the makespan, and a makespan that some partition reaches.
    tolerance
        Relative distance of the two at which to stop.

    Returns
    -------
    bound_s
        No partition ends before.
    result
        The last relaxation that was not refuted, None where there was none.
    proof
        Of the bound.
    """
    last: RelaxationResult | None = None
    proof: BoundProof | None = None
    start: tuple[np.ndarray, dict[str, float]] | None = None
    while high_s - low_s > tolerance * high_s and not clock.over:
        middle = (low_s + high_s) / 2
        refuted, found = _refuted(pricing, pools, pool, clock, middle, start, settings)
        start = start if found is None else (found.prices, found.charges)
        if refuted:
            low_s, proof = middle, refuted
        else:
            high_s, last = middle, found
    # prices show that nothing ends within a limit: what nothing ends before is a hair above one
    return low_s, last, proof or _refuted(pricing, pools, pool, clock, low_s * (1 - 1e-7), start, settings)[0]


def _refuted(
    pricing: Pricing, pools: Mapping[str, int], pool: ColumnPool, clock: Clock, limit_s: float,
    start: tuple[np.ndarray, dict[str, float]] | None, settings: AllocationSettings,
) -> tuple[BoundProof | None, RelaxationResult | None]:  # fmt: skip
    """Return what proves that no partition ends within a limit, None for nothing, and the relaxation's state."""
    if not all(np.any([p.admits(limit_s) for p in pricing.places], axis=0)):
        return BoundProof(limit_s, np.zeros(len(pricing.counts)), dict.fromkeys(pools, 0.0), limit_s), None
    found = solve_relaxation(
        pricing, pools, pool, clock,
        limit_s=limit_s, share_only=True, tolerance=1e-4, stop_at=1.0, start=start, settings=settings,
    )  # fmt: skip
    proof = BoundProof(limit_s, found.prices, found.charges, limit_s)
    return proof if found.bound > 1.0 + _TINY else None, found


class _ColumnGeneration:
    """The state of the column generation."""

    def __init__(
        self,
        pricing: Pricing,
        pools: Mapping[str, int],
        pool: ColumnPool,
        limit_s: float | None,
        share_only: bool,
        settings: AllocationSettings,
    ) -> None:
        self.pricing, self.pools, self.pool, self.settings = pricing, pools, pool, settings
        self.limit_s, self.share_only = limit_s, share_only
        self.gpus = list(pools)
        self._begin_with_feasible_prices()
        self.ceilings, self.raises = self._ceilings(), 0
        self.full: list[int] = []  # kinds whose ceiling binds
        self.master = PartitionRelaxation(pricing.counts.tolist(), pools, self.ceilings.tolist(), share_only)
        self.rows: dict[GeneratedKey, pyo.Constraint] = {}
        self.value = np.inf
        self.weights: dict[GeneratedKey, float] = {}
        self.out_prices, self.out_charges = self.prices, self.charges
        self.solver = self._persistent_solver()
        self._add_rows(pool.within(limit_s))

    def _begin_with_feasible_prices(self) -> None:
        """Without charges, what every adapter costs at least; where GPUs alone count, its part of a full replica."""
        places, limit = self.pricing.places, self.limit_s
        if self.share_only:
            assert limit is not None  # a share of the pools is asked for under a deadline
            rent = 1.0 / sum(self.pools.values())
            self.charges = dict.fromkeys(self.gpus, rent)
            least = [
                np.where(
                    p.admits(limit), p.num_stages * rent * _finite(p.shares) / max(limit - p.ramp_s, _TINY), np.inf
                )
                for p in places
            ]
        else:
            self.charges = dict.fromkeys(self.gpus, 0.0)
            least = [p.least_costs(limit) for p in places]
        self.prices = _finite(np.min(least, axis=0))
        self.bound = float(self.pricing.counts @ self.prices)

    def _ceilings(self) -> np.ndarray:
        """Return what no adapter needs to be paid: several times its cost alone where that is not free, or all rent."""
        if self.share_only:
            return np.ones(len(self.prices))
        single = np.eye(len(self.prices), dtype=np.int64)
        alone = [np.full(len(self.prices), np.inf)] + [
            np.where(p.admits(self.limit_s), p.rate * _finite(p.makespans(single)), np.inf)
            for p in self.pricing.places
            if p.rate > 0
        ]
        least = np.min(alone, axis=0)
        known = np.isfinite(least)
        return np.asarray(
            self.settings.ceiling * np.maximum(np.where(known, least, least[known].max(initial=0.0)), _TINY)
        )

    def raise_ceilings(self) -> bool:
        """Let adapters be paid more that are paid all that is allowed; return whether there are any."""
        if self.share_only or self.raises == self.settings.most_raises:
            return False
        price = self.master.model.price
        for k in self.full:
            self.ceilings[k] *= self.settings.ceiling
            price[k].setub(float(self.ceilings[k]))
        if self.full:
            self.raises += 1
            self.solver.update_variables([price[k] for k in self.full])
        return bool(self.full)

    def _persistent_solver(self) -> Highs:
        solver = Highs()
        solver.config.load_solution = False
        solver.highs_options = {"threads": 1}
        for name in (
            "check_for_new_or_removed_constraints", "check_for_new_or_removed_vars",
            "check_for_new_or_removed_params", "check_for_new_objective",
            "update_constraints", "update_vars", "update_params", "update_named_expressions", "update_objective",
        ):  # fmt: skip
            setattr(solver.update_config, name, False)
        solver.set_instance(self.master.model)
        return solver

    def _add_rows(self, columns: list[GeneratedColumn]) -> None:
        new = []
        for column in columns:
            place = self.pricing.places[column.place]
            row = self.master.add_column(column.numbers, place.gpu, place.num_stages, place.rate * column.makespan_s)
            self.rows[column.key] = row
            new.append(row)
        if new:
            self.solver.add_constraints(new)

    def solve_master(self) -> None:
        """Find the prices that the columns known so far support."""
        result = self.solver.solve(self.master.model)
        if result.termination_condition is not TerminationCondition.optimal:
            raise CappuccinoError(f"HiGHS ended with '{result.termination_condition.name}' on the relaxation")
        self.value = float(result.best_feasible_objective)
        model = self.master.model
        values = self.solver.get_primals()
        self.out_prices = np.array([max(0.0, values[model.price[k]]) for k in model.kind])
        self.out_charges = {gpu: max(0.0, values[model.charge[gpu]]) for gpu in self.gpus}
        reduced = self.solver.get_reduced_costs([model.price[k] for k in model.kind])
        paid = zip(model.kind, self.out_prices, self.ceilings, strict=True)
        self.full = [k for k, p, most in paid if p >= most * (1 - 1e-6) and abs(reduced[model.price[k]]) > _TINY]
        duals = self.solver.get_duals() if self.rows else {}
        self.weights = {key: abs(duals[row]) for key, row in self.rows.items()}

    def price_smoothed(self) -> bool:
        """Look for columns at prices between the best and the relaxation's; return whether there are any."""
        weight = self.settings.smoothing
        while True:
            prices = weight * self.prices + (1 - weight) * self.out_prices
            charges = {g: weight * self.charges[g] + (1 - weight) * self.out_charges[g] for g in self.gpus}
            if self.price(prices, charges):
                return True
            if weight == 0:
                return False
            weight = weight / 2 if weight > 0.05 else 0.0

    def price(self, prices: np.ndarray, charges: dict[str, float]) -> bool:
        """Improve the bound with these prices; add columns that are paid too much by the relaxation's."""
        new: dict[GeneratedKey, GeneratedColumn] = {}
        theta = 0.0
        for number, place in enumerate(self.pricing.places):
            charge = charges[place.gpu] * place.num_stages
            priced = self.pricing.price(number, prices, charge, self.limit_s, self.settings.columns_per_place)
            theta = max(theta, priced.ratio)
            paid = priced.sets @ self.out_prices
            cost = place.rate * priced.makespans + self.out_charges[place.gpu] * place.num_stages
            for k in np.flatnonzero(paid - cost > _TINY * np.maximum(cost, _TINY)):
                column = GeneratedColumn(number, priced.sets[k], float(priced.makespans[k]))
                if column.key not in self.rows:
                    new[column.key] = column
                    self.pool.add(column)
        self._add_rows(list(new.values()))
        if 0 < theta < _PROVES_NOTHING:
            rent = sum(self.pools[g] * charges[g] for g in self.gpus)
            bound = float(self.pricing.counts @ prices) / theta - (0.0 if self.share_only else rent)
            if bound > self.bound:
                self.bound, self.prices, self.charges = bound, prices / theta, charges
        return bool(new)

    def result(self) -> RelaxationResult:
        """Return where the search stands."""
        return RelaxationResult(
            bound=self.bound,
            value=self.value,
            prices=self.prices,
            charges=self.charges,
            weights={key: w for key, w in self.weights.items() if w > 1e-7},
        )


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)
