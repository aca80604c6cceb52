"""The columns that have been scheduled, and what they let expect of the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.expectation import Expectation
from cappuccino.solvers.scheduling.schedule import PlacedReplica, ReplicaSchedule
from cappuccino.solvers.settings import DEFAULT, AllocationSettings

ColumnKey = tuple[int, bytes]
"""Place, and how many adapters of each kind."""


@dataclass(frozen=True)
class ChosenColumn:
    """A column that was chosen."""

    place: int
    numbers: np.ndarray
    """Adapters of each kind, shape (K,)."""

    @property
    def key(self) -> ColumnKey:
        """What tells columns apart."""
        return self.place, self.numbers.tobytes()


@dataclass(frozen=True)
class ScheduledColumn:
    """The best schedule of a column, of the first adapters of each kind."""

    schedule: ReplicaSchedule
    attempts: int = 1
    """How often it was worked on."""

    @property
    def makespan_s(self) -> float:
        """Of the schedule, seconds."""
        return self.schedule.makespan_s


class KnownColumns:
    """Keeps the schedules of columns.

    Parameters
    ----------
    effort
        Part of `gains` that there is time for, 0 to 1.
    """

    def __init__(
        self,
        space: ReplicaSpace,
        objective: Objective,
        effort: float = 1.0,
        settings: AllocationSettings = DEFAULT.allocation,
    ) -> None:
        self.space, self.places, self.settings = space, space.places(objective), settings
        self.expectation = Expectation(self.places, settings)
        self.gains = [effort * gain for gain in settings.gains]
        """Part of the distance to the bound that more effort closes, by attempts so far less one."""
        self._columns: dict[ColumnKey, ScheduledColumn] = {}

    def __len__(self) -> int:
        """How many columns have been scheduled."""
        return len(self._columns)

    def __contains__(self, column: ChosenColumn) -> bool:
        """Whether a column has been scheduled."""
        return column.key in self._columns

    def __getitem__(self, column: ChosenColumn) -> ScheduledColumn:
        """Return the schedule of a column."""
        return self._columns[column.key]

    def items(self) -> Iterator[tuple[ColumnKey, ScheduledColumn]]:
        """Return all of them."""
        return iter(self._columns.items())

    def bound(self, column: ChosenColumn) -> float:
        """Return the proven bound on a column's makespan, seconds."""
        return float(self.space.bounds[column.place][1].lower_bounds(column.numbers[None])[0])

    def to_gain(self, column: ChosenColumn) -> float:
        """Return what more effort on a scheduled column gains, about, seconds of its makespan."""
        known = self[column]
        return self.gains[known.attempts - 1] * (known.makespan_s - self.bound(column))

    def add(self, column: ChosenColumn, schedule: ReplicaSchedule) -> None:
        """Keep a first schedule, and learn from it what to expect of other columns."""
        self._columns[column.key] = ScheduledColumn(schedule)
        self.expectation.observe(column.place, column.numbers, self.bound(column), schedule.makespan_s)

    def update(self, column: ChosenColumn, schedule: ReplicaSchedule, attempts: int) -> None:
        """Keep a schedule that was worked on more than once."""
        self._columns[column.key] = ScheduledColumn(schedule, attempts)

    def learn(self, replicas: Sequence[PlacedReplica]) -> None:
        """Keep the schedules of replicas that were improved elsewhere, where they are the better ones."""
        kinds = self.space.kinds
        places = {(p.gpu, b.costs.recompute, b.num_stages): k for k, (p, b) in enumerate(self.space.bounds)}
        for replica in replicas:
            schedule = replica.schedule
            of_kind = [kinds.of_adapter[i] for i in schedule.problem.adapters]
            numbers = np.bincount(of_kind, minlength=len(kinds.counts))
            column = ChosenColumn(
                places[replica.gpu, schedule.problem.costs.recompute, schedule.problem.num_stages], numbers
            )
            if column not in self or schedule.makespan_s < self[column].makespan_s:
                problem = replace(schedule.problem, adapters=kinds.adapters(numbers))
                if [kinds.of_adapter[i] for i in problem.adapters] == of_kind:  # else it is another schedule
                    self.update(column, replace(schedule, problem=problem), self.settings.all_attempts)

    def replicas(self, columns: Sequence[ChosenColumn]) -> list[PlacedReplica]:
        """Return the replicas of scheduled columns, each for adapters of its own."""
        kinds = self.space.kinds
        unused = [list(members) for members in kinds.members]
        result = []
        for column in columns:
            schedule = self[column].schedule
            adapters = tuple(unused[kinds.of_adapter[i]].pop(0) for i in schedule.problem.adapters)
            mine = replace(schedule, problem=replace(schedule.problem, adapters=adapters))
            result.append(PlacedReplica(mine, self.places[column.place].gpu))
        return result
