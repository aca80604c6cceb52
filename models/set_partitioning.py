"""Which adapters share a replica, on how many GPUs of which type: set partitioning in Pyomo."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyomo.environ as pyo

from cappuccino.plan import Objective

MOST_WEIGHT = 1000.0
"""Weight of the dearest column in the model: solvers have absolute tolerances."""


@dataclass(frozen=True)
class Column:
    """A possible replica."""

    adapters: tuple[int, ...]
    """Indices of the adapters, ascending."""
    gpu: str
    num_stages: int
    makespan_s: float
    """Makespan, or a bound on it."""
    price_per_second: float = 0.0
    """Money per GPU-second."""

    @property
    def gpu_time_s(self) -> float:
        """Stages x makespan, GPU-seconds."""
        return self.num_stages * self.makespan_s

    @property
    def cost(self) -> float:
        """Money."""
        return self.gpu_time_s * self.price_per_second

    def weight(self, objective: Objective) -> float:
        """Return what the column adds to an objective that is a sum over columns.

        Raises
        ------
        ValueError
            When the objective is the makespan.
        """
        if objective is Objective.MAKESPAN:
            raise ValueError("the makespan is no sum over columns")
        return self.gpu_time_s if objective is Objective.GPU_TIME else self.cost


class SetPartitioning:
    """Choose columns that cover every adapter once.

    Parameters
    ----------
    columns
        The possible replicas.
    kinds
        Kind of every adapter. A column stands for all replicas with as many adapters of each kind, and may be chosen
        several times.
    pools
        GPUs by type.
    objective
        What the chosen columns cost: GPU time or money. The least makespan is a question of which columns there are.
    at_least
        Cover adapters once or more: easier to solve, and whoever may leave adapters out of a replica at no cost loses
        nothing.
    most_cost
        Money that the chosen columns may cost at most; None: any.
    unit
        What one in the model's objective stands for, GPU-seconds or money; None: so that the dearest column weighs
        `MOST_WEIGHT`.

    Raises
    ------
    ValueError
        When no column holds some kind, or the objective is the makespan.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        kinds: Sequence[int],
        pools: Mapping[str, int],
        objective: Objective,
        at_least: bool = False,
        most_cost: float | None = None,
        unit: float | None = None,
    ) -> None:
        self.columns, self.pools = columns, pools
        self.demand = Counter(kinds)
        self.held = [Counter(kinds[i] for i in column.adapters) for column in columns]
        weights = [column.weight(objective) for column in columns]
        self.unit = unit or max(weights, default=0.0) / MOST_WEIGHT or 1.0
        """What one in the model's objective stands for, GPU-seconds or money."""
        model = self.model = pyo.ConcreteModel("set_partitioning")
        model.column = pyo.RangeSet(0, len(columns) - 1)
        model.kind = pyo.Set(initialize=sorted(self.demand))
        model.pool = pyo.Set(initialize=list(pools))
        self._may_repeat_columns()
        self._cover_adapters(at_least)
        self._respect_pools()
        if most_cost is not None:
            self._respect_budget(most_cost)
        self._minimise([weight / self.unit for weight in weights])

    def _may_repeat_columns(self) -> None:
        """`0 <= chosen[c] <= adapters there are / adapters held` of every kind, and `<= count_p / g_c`, integer."""

        def most(model: pyo.ConcreteModel, c: int) -> tuple[int, int]:
            column = self.columns[c]
            held = self.held[c].items()
            return 0, min(self.pools[column.gpu] // column.num_stages, *(-(-self.demand[k] // n) for k, n in held))

        self.model.chosen = pyo.Var(self.model.column, domain=pyo.NonNegativeIntegers, bounds=most)

    def _cover_adapters(self, at_least: bool) -> None:
        """`sum over columns c of adapters of kind k in S_c x chosen[c] = adapters of kind k`, for every kind k."""
        terms: dict[int, list[object]] = {k: [] for k in self.model.kind}
        for c, held in enumerate(self.held):
            for k, n in held.items():
                terms[k].append(n * self.model.chosen[c])

        bare = [k for k, columns in terms.items() if not columns]
        if bare:
            raise ValueError(f"no column holds an adapter of kind {bare[0]}")

        def rule(model: pyo.ConcreteModel, k: int) -> object:
            covered = pyo.quicksum(terms[k])
            return covered >= self.demand[k] if at_least else covered == self.demand[k]

        self.model.covered = pyo.Constraint(self.model.kind, rule=rule)

    def _respect_pools(self) -> None:
        """`sum over columns c on type p of g_c chosen[c] <= count_p` for every pool p."""

        def rule(model: pyo.ConcreteModel, gpu: str) -> object:
            terms = [c.num_stages * model.chosen[k] for k, c in enumerate(self.columns) if c.gpu == gpu]
            return pyo.quicksum(terms) <= self.pools[gpu] if terms else pyo.Constraint.Skip

        self.model.within_pool = pyo.Constraint(self.model.pool, rule=rule)

    def _respect_budget(self, most_cost: float) -> None:
        """`sum over columns c of cost_c chosen[c] <= most_cost`, in units of the dearest column."""
        unit = max((c.cost for c in self.columns), default=0.0) / MOST_WEIGHT
        if unit > 0:
            spent = pyo.quicksum(c.cost / unit * self.model.chosen[k] for k, c in enumerate(self.columns))
            self.model.within_budget = pyo.Constraint(expr=spent <= most_cost / unit)

    def _minimise(self, weights: Sequence[float]) -> None:
        """`sum of g_c T_c chosen[c]`, or the same in money, in the model's unit."""
        total = pyo.quicksum(w * self.model.chosen[c] for c, w in enumerate(weights))
        self.model.objective = pyo.Objective(expr=total)
