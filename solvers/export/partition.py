"""The set partitioning of a plan as LP and MPS files, with a table of its columns.

Legend: K kinds of adapters.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, log10
from pathlib import Path

import highspy
import numpy as np
from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

from cappuccino.errors import CappuccinoError
from cappuccino.models.set_partitioning import Column, SetPartitioning
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.context import Goal
from cappuccino.solvers.allocation.selection import OfferedColumn
from cappuccino.solvers.export.names import LONGEST_NAME, LONGEST_TOKEN, Names, cleaned
from cappuccino.solvers.scheduling.schedule import PlacedReplica

_FROM_BELOW = -1
"""What Pyomo's standard form says of rows whose right-hand side is a lower bound; 1 of an upper, 0 of an equal one."""


@dataclass(frozen=True)
class PartitionModel:
    """The set partitioning over the columns that were chosen from last and the plan's replicas."""

    space: ReplicaSpace
    goal: Goal
    offered: tuple[OfferedColumn, ...]
    """Each set of adapters in each place once."""
    chosen: tuple[int, ...]
    """How often the plan has each of them."""

    @classmethod
    def of(
        cls, space: ReplicaSpace, goal: Goal, offered: Sequence[OfferedColumn], replicas: Sequence[PlacedReplica]
    ) -> "PartitionModel":
        """Return the model of the columns offered, where the plan's replicas stand with their own makespans.

        Columns that miss the deadline are left out and, where the makespan is the objective, those longer than the
        plan.
        """
        columns = {(c.place, c.numbers.tobytes()): c for c in offered}
        places = {(p.gpu, b.costs.recompute, b.num_stages): k for k, (p, b) in enumerate(space.bounds)}
        used: dict[tuple[int, bytes], int] = {}
        for replica in replicas:
            problem = replica.schedule.problem
            place = places[replica.gpu, problem.costs.recompute, problem.num_stages]
            numbers = space.kinds.numbers([problem.adapters])[0]
            key, makespan_s = (place, numbers.tobytes()), replica.schedule.makespan_s
            known = columns.get(key)
            if known is None or not known.scheduled or known.makespan_s > makespan_s:
                columns[key] = OfferedColumn(place, numbers, makespan_s, scheduled=True)
            used[key] = used.get(key, 0) + 1
        limit = np.inf if goal.deadline_s is None else goal.deadline_s
        if goal.objective is Objective.MAKESPAN:
            limit = max(r.schedule.makespan_s for r in replicas)
        kept = [(c, used.get(key, 0)) for key, c in columns.items() if c.makespan_s <= limit]
        return cls(space, goal, tuple(c for c, _ in kept), tuple(n for _, n in kept))

    @property
    def objective(self) -> Objective:
        """What the model minimises: where the plan's makespan counts, GPU time among the columns that are no longer."""
        return Objective.GPU_TIME if self.goal.objective is Objective.MAKESPAN else self.goal.objective

    @property
    def at_least(self) -> bool:
        """Whether adapters may be covered more than once, as in the planner where it does not know every set."""
        return not self.space.enumerates_all

    def columns(self) -> list[Column]:
        """Return the columns with their makespans."""
        return [self.space.column(c.place, c.numbers, c.makespan_s) for c in self.offered]

    def build(self) -> SetPartitioning:
        """Return the model, in GPU-seconds or money where these are not small."""
        columns = self.columns()
        dearest = max(c.weight(self.objective) for c in columns)
        # absolute tolerances of solvers are about a millionth
        unit = 1.0 if dearest >= 1 or dearest == 0 else 10.0 ** floor(log10(dearest))
        kinds = self.space.kinds.of_adapter.tolist()
        return SetPartitioning(columns, kinds, self.space.pools, self.objective, self.at_least, unit=unit)


@dataclass(frozen=True)
class PartitionNames:
    """What rows and columns are called."""

    tokens: dict[int, str]
    """By kind, what stands for its adapters in names."""
    covers: dict[int, str]
    """Rows by kind."""
    pools: dict[str, str]
    """Rows by GPU type."""
    columns: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: PartitionModel) -> "PartitionNames":
        """Name everything after adapters and GPU types."""
        space, tokens, rows = model.space, Names(), Names()
        names = [space.instance.adapters[i].name for i in space.kinds.representatives]
        found = cls({k: tokens.unique(name, LONGEST_TOKEN) for k, name in enumerate(names)}, {}, {})
        for k, members in enumerate(space.kinds.members):
            alike = f"_and_{len(members) - 1}_alike" if len(members) > 1 else ""
            found.covers[k] = rows.unique(f"cover_{found.tokens[k]}{alike}")
        for gpu in space.pools:
            found.pools[gpu] = rows.unique(f"gpus_{gpu}")
        for c, column in enumerate(model.offered):
            found.columns.append(found._column(model, c, column))
        return found

    def _column(self, model: PartitionModel, number: int, column: OfferedColumn) -> str:
        """Return number, place and adapters, as many as there is room for: the number tells columns apart."""
        pool, bounds = model.space.bounds[column.place]
        mode = bounds.costs.recompute
        start = f"r{number}_{cleaned(pool.gpu)[:LONGEST_TOKEN]}_{bounds.num_stages}_stages"
        name = start if mode is None else f"{start}_recompute_{mode.value}"
        held = np.flatnonzero(column.numbers).tolist()
        for k, kind in enumerate(held):
            times = f"_x{column.numbers[kind]}" if column.numbers[kind] > 1 else ""
            longer = f"{name}_{self.tokens[kind]}{times}"
            if len(longer) > LONGEST_NAME:
                return f"{name}_and_{len(held) - k}_more"
            name = longer
        return name


def write_partition(built: SetPartitioning, names: PartitionNames, folder: Path, stem: str) -> None:
    """Write `stem.lp` and `stem.mps`.

    Raises
    ------
    CappuccinoError
        When HiGHS cannot write them.
    """
    highs = highspy.Highs()
    highs.silent()
    highs.passModel(_highs_model(built, names))
    for ending in ("lp", "mps"):
        status = highs.writeModel(str(folder / f"{stem}.{ending}"))
        if status == highspy.HighsStatus.kError:
            raise CappuccinoError(f"{folder / stem}.{ending}: HiGHS cannot write the model; free space on the disk")


def _highs_model(built: SetPartitioning, names: PartitionNames) -> highspy.HighsLp:
    """Return the Pyomo model as HiGHS holds it."""
    model = built.model
    form = LinearStandardFormCompiler().write(model, mixed_form=True)
    number = {id(model.chosen[c]): c for c in model.column}
    order = [number[id(v)] for v in form.columns]
    named = {id(model.covered[k]): names.covers[k] for k in model.covered}
    named |= {id(model.within_pool[gpu]): names.pools[gpu] for gpu in model.within_pool}
    lp = highspy.HighsLp()
    lp.model_name_ = "set_partitioning"
    lp.num_col_, lp.num_row_ = len(form.columns), len(form.rows)
    lp.col_cost_ = form.c.toarray()[0]
    lp.col_lower_ = np.zeros(len(order))
    lp.col_upper_ = np.array([float(v.ub) for v in form.columns])
    lp.integrality_ = [highspy.HighsVarType.kInteger] * len(order)
    kinds = [row.bound_type for row in form.rows]
    lp.row_lower_ = np.array([-np.inf if k > 0 else b for k, b in zip(kinds, form.rhs, strict=True)])
    lp.row_upper_ = np.array([np.inf if k == _FROM_BELOW else b for k, b in zip(kinds, form.rhs, strict=True)])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    matrix = form.A.tocsc()
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    lp.col_names_ = [names.columns[c] for c in order]
    lp.row_names_ = [named[id(row.constraint)] for row in form.rows]
    return lp


def column_table(model: PartitionModel, names: PartitionNames) -> str:
    """Return a CSV with a row a column: what it is, where its makespan comes from, and how often the plan has it."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["column", "gpu", "num_stages", "recompute", "adapters", "makespan_s", "makespan_is", "weight", "in_plan"]
    )
    space, columns = model.space, model.columns()
    for c, (column, offered) in enumerate(zip(columns, model.offered, strict=True)):
        mode = space.bounds[offered.place][1].costs.recompute
        adapters = " + ".join(space.instance.adapters[i].name for i in column.adapters)
        source = "scheduled" if offered.scheduled else "bound"
        figures = [repr(column.makespan_s), source, repr(column.weight(model.objective)), model.chosen[c]]
        start = [names.columns[c], column.gpu, column.num_stages, "" if mode is None else mode.value, adapters]
        writer.writerow([*start, *figures])
    return table.getvalue()
