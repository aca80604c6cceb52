"""Which adapters share a replica, on how many GPUs of which type: set partitioning in Pyomo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyomo.environ as pyo

from cappuccino.plan import Objective


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


class SetPartitioning:
    """Choose columns that cover every adapter once.

    Parameters
    ----------
    columns
        The possible replicas.
    num_adapters
        Adapters 0 to `num_adapters - 1` are to be covered.
    pools
        GPUs by type.
    objective
        What the chosen columns cost: GPU time or money. The least makespan is a question of which columns there are.

    Raises
    ------
    ValueError
        When no column holds some adapter, or the objective is the makespan.
    """

    def __init__(
        self, columns: Sequence[Column], num_adapters: int, pools: Mapping[str, int], objective: Objective
    ) -> None:
        if objective is Objective.MAKESPAN:
            raise ValueError("the makespan is no sum over columns")
        self.columns = columns
        model = self.model = pyo.ConcreteModel("set_partitioning")
        model.column = pyo.RangeSet(0, len(columns) - 1)
        model.adapter = pyo.RangeSet(0, num_adapters - 1)
        model.pool = pyo.Set(initialize=list(pools))
        model.chosen = pyo.Var(model.column, domain=pyo.Binary)
        self._cover_adapters()
        self._respect_pools(pools)
        self._minimise(objective)

    def _cover_adapters(self) -> None:
        """`sum over columns c with i in S_c of chosen[c] = 1` for every adapter i."""
        of_adapter: dict[int, list[int]] = {i: [] for i in self.model.adapter}
        for c, column in enumerate(self.columns):
            for i in column.adapters:
                of_adapter[i].append(c)

        bare = [i for i, columns in of_adapter.items() if not columns]
        if bare:
            raise ValueError(f"no column holds adapter {bare[0]}")

        def rule(model: pyo.ConcreteModel, i: int) -> object:
            return pyo.quicksum(model.chosen[c] for c in of_adapter[i]) == 1

        self.model.covered = pyo.Constraint(self.model.adapter, rule=rule)

    def _respect_pools(self, pools: Mapping[str, int]) -> None:
        """`sum over columns c on type p of g_c chosen[c] <= count_p` for every pool p."""

        def rule(model: pyo.ConcreteModel, gpu: str) -> object:
            terms = [c.num_stages * model.chosen[k] for k, c in enumerate(self.columns) if c.gpu == gpu]
            return pyo.quicksum(terms) <= pools[gpu] if terms else pyo.Constraint.Skip

        self.model.within_pool = pyo.Constraint(self.model.pool, rule=rule)

    def _minimise(self, objective: Objective) -> None:
        """`sum of g_c T_c chosen[c]`, or the same in money."""
        weights = [c.gpu_time_s if objective is Objective.GPU_TIME else c.cost for c in self.columns]
        total = pyo.quicksum(w * self.model.chosen[c] for c, w in enumerate(weights))
        self.model.objective = pyo.Objective(expr=total)
