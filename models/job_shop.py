"""The order of operations in a window of a replica's schedule: a job shop in CP-SAT.

Jobs are micro-batches, machines are stages. Times are integers of a grid chosen by the caller. What happens before the
window is given as earliest starts, what comes after as tails: the longest path from the end of an operation through
everything behind the window.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ortools.sat.python import cp_model

from cappuccino.models.cp_sat import limited_solver

Kind = Literal["F", "B"]


@dataclass(frozen=True)
class WindowOperation:
    """One operation inside the window."""

    job: int
    kind: Kind
    stage: int
    duration: int
    earliest: int
    """Start that everything before the window allows."""
    tail: int
    """From the end of this operation to the end of the schedule, at least, whatever the window does."""
    start: int
    """Start in the schedule to be improved."""

    @property
    def label(self) -> str:
        """Role and index, for the names in the model."""
        return f"{'forward' if self.kind == 'F' else 'backward'}[{self.stage},{self.job}]"


@dataclass(frozen=True)
class HeldMemory:
    """What a stage holds during the window, in tokens."""

    stage: int
    capacity: int
    from_before: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded before the window and backwarded in it."""
    within: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded and backwarded in the window."""
    beyond: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded in the window and backwarded after it."""


@dataclass(frozen=True)
class WindowData:
    """All that the model needs."""

    operations: tuple[WindowOperation, ...]
    precedences: tuple[tuple[int, int, int], ...]
    """(i, j, lag): operation j starts at least `lag` after the end of operation i."""
    fixed_order: tuple[tuple[Kind, int, int], ...]
    """(kind, k, l): the operations of job k come before those of job l on every stage; other pairs are free."""
    memory: tuple[HeldMemory, ...]
    """Stages where memory can bind."""
    makespan: int
    """Makespan of the schedule to be improved: the horizon."""


class JobShopWindow:
    """CP-SAT model of one window; `solve` returns better starts, if there are any."""

    def __init__(self, data: WindowData) -> None:
        self.data = data
        self.model = cp_model.CpModel()
        self._starts: list[cp_model.IntVar] = []
        self._intervals: list[cp_model.IntervalVar] = []
        self._at = {(o.kind, o.stage, o.job): i for i, o in enumerate(data.operations)}
        self._variables()
        # the order of these calls does not matter to the result; machines first makes an exported model easy to read
        self._stages_do_one_thing_at_a_time()
        self._inputs_arrive()
        self._links_are_fifo("F")
        self._links_are_fifo("B")
        self._memory_fits()
        self._minimise_makespan()

    def _variables(self) -> None:
        for o in self.data.operations:
            latest = self.data.makespan - o.tail - o.duration
            start = self.model.new_int_var(o.earliest, max(latest, o.start), f"{o.label}.start")
            self.model.add_hint(start, o.start)
            self._starts.append(start)
            self._intervals.append(self.model.new_fixed_size_interval_var(start, o.duration, o.label))

    def _stages_do_one_thing_at_a_time(self) -> None:
        """No two operations of one stage overlap."""
        for stage in sorted({o.stage for o in self.data.operations}):
            mine = [self._intervals[i] for i, o in enumerate(self.data.operations) if o.stage == stage]
            self.model.add_no_overlap(mine)

    def _inputs_arrive(self) -> None:
        """`start_j >= start_i + duration_i + lag` for an input or a step of j that i provides."""
        for i, j, lag in self.data.precedences:
            self.model.add(self._starts[j] >= self._starts[i] + self.data.operations[i].duration + lag)

    def _links_are_fifo(self, kind: Kind) -> None:
        """Two jobs stand in one order on all stages: `end_k <= start_l` everywhere or `end_l <= start_k` everywhere."""
        fixed = {(first, second) for what, first, second in self.data.fixed_order if what == kind}
        stages_of: dict[int, set[int]] = {}
        for o in self.data.operations:
            if o.kind == kind:
                stages_of.setdefault(o.job, set()).add(o.stage)
        jobs = sorted(stages_of)
        for k in jobs:
            for l in jobs:  # noqa: E741
                common = sorted(stages_of[k] & stages_of[l])
                if k >= l or not common:
                    continue
                if (k, l) in fixed or (l, k) in fixed:
                    first, second = (k, l) if (k, l) in fixed else (l, k)
                    for s in common:
                        self.model.add(self._end(kind, s, first) <= self._start(kind, s, second))
                    continue
                before = self.model.new_bool_var(f"{kind}_before[{k},{l}]")
                s0 = common[0]
                operations = self.data.operations
                now = operations[self._at[kind, s0, k]].start <= operations[self._at[kind, s0, l]].start
                self.model.add_hint(before, now)
                for s in common:
                    self.model.add(self._end(kind, s, k) <= self._start(kind, s, l)).only_enforce_if(before)
                    self.model.add(self._end(kind, s, l) <= self._start(kind, s, k)).only_enforce_if(~before)

    def _memory_fits(self) -> None:
        """Tokens held, from the start of a job's F to the end of its B, never exceed the stage's capacity."""
        for held in self.data.memory:
            s = held.stage
            intervals, demands = [], []
            first = min(o.earliest for o in self.data.operations if o.stage == s)
            for kind, jobs in (("before", held.from_before), ("within", held.within), ("beyond", held.beyond)):
                for job, tokens in jobs:
                    begin = first if kind == "before" else self._start("F", s, job)
                    end = self.data.makespan if kind == "beyond" else self._end("B", s, job)
                    size = self.model.new_int_var(0, self.data.makespan, f"held_for[{s},{job}]")
                    intervals.append(self.model.new_interval_var(begin, size, end, f"held[{s},{job}]"))
                    demands.append(tokens)
            self.model.add_cumulative(intervals, demands, held.capacity)

    def _minimise_makespan(self) -> None:
        """`makespan >= start_i + duration_i + tail_i`."""
        makespan = self.model.new_int_var(0, self.data.makespan, "makespan")
        for start, o in zip(self._starts, self.data.operations, strict=True):
            self.model.add(makespan >= start + o.duration + o.tail)
        self.model.add_hint(makespan, self.data.makespan)
        self.model.minimize(makespan)

    def _start(self, kind: Kind, stage: int, job: int) -> cp_model.IntVar:
        return self._starts[self._at[kind, stage, job]]

    def _end(self, kind: Kind, stage: int, job: int) -> cp_model.LinearExpr:
        i = self._at[kind, stage, job]
        return self._starts[i] + self.data.operations[i].duration

    def solve(
        self, *, time_limit_s: float | None, deterministic_limit: float, seed: int, workers: int = 1
    ) -> tuple[int, list[int]] | None:
        """Return the best makespan found and the starts by operation, None when nothing better is found.

        Parameters
        ----------
        time_limit_s
            Wall-clock limit; None leaves only the deterministic one, so that equal seeds give equal results.
        deterministic_limit
            Limit in CP-SAT's deterministic seconds.
        """
        solver = limited_solver(
            time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed, workers=workers
        )
        status = solver.solve(self.model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE) or solver.objective_value >= self.data.makespan:
            return None
        return int(solver.objective_value), [solver.value(v) for v in self._starts]


def order_of(starts: Sequence[int], indices: Iterable[int]) -> list[int]:
    """Return operation indices by start."""
    return sorted(indices, key=lambda i: starts[i])
