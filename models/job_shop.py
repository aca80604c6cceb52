"""Packing and order in a window of a replica's schedule: a job shop in CP-SAT.

Jobs are micro-batches, machines are stages. Some jobs may share out their samples anew: then their times follow from
what is in them, as in the model of a whole replica.

Indices: i sample, a adapter, j optimizer step, b job that is packed anew, s stage, c curve, w way (F forward,
B backward); k, l jobs.
"""

from collections.abc import Iterable, Mapping, Sequence

from ortools.sat.python import cp_model

from cappuccino.models.batch_time import OpenBatch, add_batch_time
from cappuccino.models.cp_sat import limited_solver
from cappuccino.models.job_shop_data import Kind, Step, WindowData, WindowPacking, WindowSolution
from cappuccino.models.replica_data import ROUNDING, SCALE, WAYS, Way

_TANGENTS = 16
"""Of a curve: about 0.1% off, so that the model hardly takes what gains nothing for something better."""


class JobShopWindow:
    """CP-SAT model of one window; `solve` returns something better, if there is any."""

    def __init__(self, data: WindowData) -> None:
        self.data = data
        self.model = cp_model.CpModel()
        self.starts: list[cp_model.IntVar] = []
        """By operation."""
        self._intervals: list[cp_model.IntervalVar] = []
        self._at = {(o.kind, o.stage, o.job): i for i, o in enumerate(data.operations)}
        self._packed = _Packing(self.model, data.packing, data) if data.packing is not None else None
        self._ends: list[cp_model.LinearExprT] = []
        self._variables()
        # the order of these calls does not matter to the result; machines first makes an exported model easy to read
        self._stages_do_one_thing_at_a_time()
        self._inputs_arrive()
        self._links_are_fifo("F")
        self._links_are_fifo("B")
        self._memory_fits()
        self._steps_of_packed_jobs_come_in_order()
        self._minimise_makespan()

    def _variables(self) -> None:
        for o in self.data.operations:
            latest = self.data.makespan - o.tail - (0 if self._is_packed(o.job) else o.duration)
            start = self.model.new_int_var(o.earliest, max(latest, o.start), f"{o.label}.start")
            self.model.add_hint(start, o.start)
            self.starts.append(start)
            if self._packed is None or not self._is_packed(o.job):
                self._intervals.append(self.model.new_fixed_size_interval_var(start, o.duration, o.label))
                self._ends.append(start + o.duration)
            else:
                used, end = self._packed.used[o.job], self.model.new_int_var(0, self.data.makespan, f"{o.label}.end")
                duration = self._packed.durations[o.kind, o.stage, o.job]
                self._intervals.append(self.model.new_optional_interval_var(start, duration, end, used, o.label))
                self._ends.append(end)

    def _stages_do_one_thing_at_a_time(self) -> None:
        """No two operations of one stage overlap."""
        for stage in sorted({o.stage for o in self.data.operations}):
            mine = [self._intervals[i] for i, o in enumerate(self.data.operations) if o.stage == stage]
            self.model.add_no_overlap(mine)

    def _inputs_arrive(self) -> None:
        """`start_j >= start_i + duration_i + lag` for an input or a step of j that i provides.

        The lag between operations of a packed job follows from its tokens.
        """
        for i, j, lag in self.data.precedences:
            job, gap = self.data.operations[i].job, self.starts[j] - self._ends[i]
            if self._packed is None or not self._is_packed(job):
                self.model.add(gap >= lag)
                continue
            least, rate = self._packed.data.lag
            if self.data.operations[i].stage == self.data.operations[j].stage:
                least = rate = 0
            arrives = SCALE * gap >= SCALE * least + rate * self._packed.tokens[job] - ROUNDING
            self.model.add(arrives).only_enforce_if(self._packed.used[job])

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
                both = self._both_used(k, l)
                if (k, l) in fixed or (l, k) in fixed:
                    first, second = (k, l) if (k, l) in fixed else (l, k)
                    for s in common:
                        self._before(kind, s, first, second, both)
                    continue
                before = self.model.new_bool_var(f"{kind}_before[{k},{l}]")
                s0 = common[0]
                operations = self.data.operations
                now = operations[self._at[kind, s0, k]].start <= operations[self._at[kind, s0, l]].start
                self.model.add_hint(before, now)
                for s in common:
                    self._before(kind, s, k, l, [*both, before])
                    self._before(kind, s, l, k, [*both, ~before])

    def _before(self, kind: Kind, stage: int, first: int, second: int, when: Sequence[cp_model.LiteralT]) -> None:
        self.model.add(self._end(kind, stage, first) <= self._start(kind, stage, second)).only_enforce_if(*when)

    def _both_used(self, *jobs: int) -> list[cp_model.IntVar]:
        return [] if self._packed is None else [self._packed.used[k] for k in jobs if self._is_packed(k)]

    def _memory_fits(self) -> None:
        """Tokens held, from the start of a job's F to the end of its B, never exceed the stage's capacity."""
        for held in self.data.memory:
            s = held.stage
            intervals: list[cp_model.IntervalVar] = []
            demands: list[cp_model.LinearExprT] = []
            first = min(o.earliest for o in self.data.operations if o.stage == s)
            for kind, jobs in (("before", held.from_before), ("within", held.within), ("beyond", held.beyond)):
                for job, tokens in jobs:
                    begin = first if kind == "before" else self._start("F", s, job)
                    end = self.data.makespan if kind == "beyond" else self._end("B", s, job)
                    size = self.model.new_int_var(0, self.data.makespan, f"held_for[{s},{job}]")
                    label = f"held[{s},{job}]"
                    if self._packed is None or not self._is_packed(job):
                        intervals.append(self.model.new_interval_var(begin, size, end, label))
                        demands.append(tokens)
                    else:
                        used = self._packed.used[job]
                        intervals.append(self.model.new_optional_interval_var(begin, size, end, used, label))
                        demands.append(self._packed.tokens[job])
            self.model.add_cumulative(intervals, demands, held.capacity)

    def _steps_of_packed_jobs_come_in_order(self) -> None:
        """`start[F,0,b] >= end[B,0,b']` where b has a sample of the step behind one of which b' has a sample.

        Likewise with the operations of other jobs; on the other stages that follows.
        """
        if self._packed is None:
            return
        has = self._packed.has
        steps = sorted({step for step, _ in has})
        for a, j in steps:
            first = [(self._at["F", 0, b], when) for (step, b), when in has.items() if step == (a, j)]
            for i in self._packed.data.after.get((a, j), ()):
                for f, when in first:
                    self.model.add(self.starts[f] >= self._ends[i]).only_enforce_if(when)
            for (step, b), when in has.items():
                if step != (a, j):
                    continue
                end = self._end("B", 0, b)
                for i in self._packed.data.before.get((a, j), ()):
                    self.model.add(self.starts[i] >= end).only_enforce_if(when)
                for (other, k), then in has.items():
                    if other == (a, j + 1) and k != b:
                        self.model.add(self._start("F", 0, k) >= end).only_enforce_if(when, then)
                    elif other == (a, j + 1):
                        self.model.add_at_most_one(when, then)

    def _minimise_makespan(self) -> None:
        """`makespan >= start_i + duration_i + tail_i`."""
        makespan = self.model.new_int_var(0, self.data.makespan, "makespan")
        for end, o in zip(self._ends, self.data.operations, strict=True):
            self.model.add(makespan >= end + o.tail).only_enforce_if(*self._both_used(o.job))
        self.model.add_hint(makespan, self.data.makespan)
        self.model.minimize(makespan)

    def inside(self, sample: int, job: int) -> cp_model.IntVar:
        """Return whether a sample that is packed anew is in a job."""
        if self._packed is None:
            raise ValueError("nothing is packed anew in this window")
        return self._packed.inside[sample, job]

    def _is_packed(self, job: int) -> bool:
        return self._packed is not None and job in self._packed.used

    def _start(self, kind: Kind, stage: int, job: int) -> cp_model.IntVar:
        return self.starts[self._at[kind, stage, job]]

    def _end(self, kind: Kind, stage: int, job: int) -> cp_model.LinearExprT:
        return self._ends[self._at[kind, stage, job]]

    def solve(
        self, *, time_limit_s: float | None, deterministic_limit: float, seed: int, workers: int = 1
    ) -> WindowSolution | None:
        """Return the best that is found, None when nothing better is.

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
        places = None if self._packed is None else self._packed.places(solver)
        return WindowSolution(int(solver.objective_value), tuple(solver.value(v) for v in self.starts), places)


class _Packing:
    """The part of the model that says which samples are in which of the jobs that are packed anew."""

    def __init__(self, model: cp_model.CpModel, data: WindowPacking, window: WindowData) -> None:
        self.model, self.data, self._horizon = model, data, window.makespan
        samples = range(len(data.samples))
        self.inside = {(i, b): model.new_bool_var(f"in[{i},{b}]") for i in samples for b in data.jobs}
        self.used = {b: model.new_bool_var(f"used[{b}]") for b in data.jobs}
        self.tokens = {b: model.new_int_var(0, data.max_tokens, f"tokens[{b}]") for b in data.jobs}
        self.has: dict[tuple[Step, int], cp_model.IntVar] = {}
        self.durations: dict[tuple[Way, int, int], cp_model.IntVar] = {}
        for (i, b), inside in self.inside.items():
            model.add_hint(inside, data.jobs[data.places[i]] == b)
        self._every_sample_once()
        self._memory_holds_a_micro_batch()
        more = {(o.kind, o.stage, o.job): o.duration for o in window.operations if o.job in self.used}
        for b in data.jobs:
            self._times_follow_work(b, more)

    def _every_sample_once(self) -> None:
        """`sum_b in[i,b] = 1`; `used[b]` and `has[a,j,b]` where one of the samples is in."""
        for i in range(len(self.data.samples)):
            self.model.add_exactly_one(self.inside[i, b] for b in self.data.jobs)
        members: dict[Step, list[int]] = {}
        for i, sample in enumerate(self.data.samples):
            members.setdefault((sample.adapter, sample.step), []).append(i)
        for b in self.data.jobs:
            self.model.add_max_equality(self.used[b], [self.inside[i, b] for i in range(len(self.data.samples))])
            for (a, j), mine in members.items():
                has = self.model.new_bool_var(f"has[{a},{j},{b}]")
                self.model.add_max_equality(has, [self.inside[i, b] for i in mine])
                self.has[(a, j), b] = has

    def _memory_holds_a_micro_batch(self) -> None:
        """`tokens[b] = sum_i tokens_i in[i,b] <= max_tokens`."""
        for b in self.data.jobs:
            inside = sum(x.tokens * self.inside[i, b] for i, x in enumerate(self.data.samples))
            self.model.add(self.tokens[b] == inside)

    def _times_follow_work(self, b: int, more: Mapping[tuple[Way, int, int], int]) -> None:
        """`duration[w,s,b]` as `add_batch_time` has it."""
        has: dict[int, list[cp_model.IntVar]] = {}
        for ((a, _), job), inside in self.has.items():
            if job == b:
                has.setdefault(a, []).append(inside)
        batch = OpenBatch(b, self.used[b], [self.inside[i, b] for i in range(len(self.data.samples))], has)
        for w in WAYS:
            curves = self.data.curves[w]
            ratios = [self._ratios(w, c) for c in range(len(curves))]
            besides = {s: taken for (way, s, job), taken in more.items() if (way, job) == (w, b)}
            found = add_batch_time(self.model, batch, w, self.data.samples, curves, besides, self._horizon, ratios)
            self.durations.update({(w, s, b): duration for s, duration in found.items()})

    def _ratios(self, w: Way, c: int) -> list[float]:
        """Return ratios of work to floor that lie close where micro-batches of these samples can be."""
        curve, works = self.data.curves[w][c], [x.work[w][c] for x in self.data.samples]
        adapters = {x.adapter for x in self.data.samples}
        floors = max(1, curve.floor), max(1, curve.floor + sum(curve.adapter_floor[a] for a in adapters))
        least, most = max(1, min(works)) / floors[1], max(1, sum(works)) / floors[0]
        return [least * (most / least) ** (k / (_TANGENTS - 1)) for k in range(_TANGENTS)]

    def places(self, solver: cp_model.CpSolver) -> tuple[int, ...]:
        """Return where in the jobs every sample is."""
        jobs = self.data.jobs
        return tuple(
            next(p for p, b in enumerate(jobs) if solver.value(self.inside[i, b]))
            for i in range(len(self.data.samples))
        )


def order_of(starts: Sequence[int], indices: Iterable[int]) -> list[int]:
    """Return operation indices by start."""
    return sorted(indices, key=lambda i: starts[i])
