"""The linear relaxation of the set partitioning, as the prices that support it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression


class PartitionRelaxation:
    """Pay as much as possible for training the adapters, and for no replica more than it costs.

    This is the dual of the set partitioning without integrality: its optimum is the same, its variables are the duals
    of the cover and pool rows, and the weight of a column there is the dual of that column's row here. New columns are
    new rows, which a solver that keeps its basis takes well.

    Two questions have this form. What must a partition cost? Then a column costs its part of the objective. And what
    share of the pools must it take, if any share could be had? Then columns are free but for their GPUs, and more than
    1 means that there is no partition.

    Parameters
    ----------
    demand
        Adapters by kind.
    pools
        GPUs by type.
    ceilings
        Most to pay for an adapter by kind: what leaving it out would cost. Where it binds, the optimum is too low.
    share_only
        Ask for the share of the pools.
    """

    def __init__(
        self, demand: Sequence[int], pools: Mapping[str, int], ceilings: Sequence[float], share_only: bool = False
    ) -> None:
        self.share_only = share_only
        model = self.model = pyo.ConcreteModel("partition_relaxation")
        model.kind = pyo.RangeSet(0, len(demand) - 1)
        model.pool = pyo.Set(initialize=list(pools))
        model.price = pyo.Var(model.kind, bounds=lambda m, k: (0.0, float(ceilings[k])))
        model.charge = pyo.Var(model.pool, domain=pyo.NonNegativeReals)
        paid = LinearExpression(
            linear_coefs=[float(n) for n in demand], linear_vars=[model.price[k] for k in model.kind]
        )
        rent = LinearExpression(
            linear_coefs=[float(n) for n in pools.values()], linear_vars=[model.charge[p] for p in pools]
        )
        self._maximise(paid, rent)
        if share_only:
            self._spend_one_rent(rent)
        model.affordable = pyo.ConstraintList()

    def _maximise(self, paid: LinearExpression, rent: LinearExpression) -> None:
        """`sum over kinds of n_k price[k] - sum over pools of count_p charge[p]`; the rent counts with costs only."""
        self.model.objective = pyo.Objective(expr=paid if self.share_only else paid - rent, sense=pyo.maximize)

    def _spend_one_rent(self, rent: LinearExpression) -> None:
        """`sum over pools of count_p charge[p] = 1`: charges are weights of the pools."""
        self.model.whole_rent = pyo.Constraint(expr=rent == 1.0)

    def add_column(self, numbers: np.ndarray, gpu: str, num_stages: int, cost: float) -> pyo.Constraint:
        """Add `affordable[c]: sum over kinds of numbers[k] price[k] - g_c charge[p_c] <= cost_c`.

        Parameters
        ----------
        numbers
            Adapters of each kind in the replica, shape (K,).
        cost
            Part of the objective; without effect where only the share is asked for.
        """
        model = self.model
        held = np.flatnonzero(numbers)
        paid = LinearExpression(
            linear_coefs=[*(float(numbers[k]) for k in held), -float(num_stages)],
            linear_vars=[*(model.price[int(k)] for k in held), model.charge[gpu]],
        )
        return model.affordable.add((None, paid, 0.0 if self.share_only else float(cost)))
