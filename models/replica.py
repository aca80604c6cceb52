"""Packing and order of a whole replica in one CP-SAT model: which samples share a micro-batch, and who runs when.

Slots are the micro-batches in the order of their forwards, which is one on all stages; a slot without samples is not
used. Times are integers of a grid that the caller chooses, as are tokens of memory.

Indices: i sample, a adapter, j optimizer step, b slot, s stage, c curve, e evaluation, w way (F forward, B backward).
"""

from functools import cached_property

from ortools.sat.python import cp_model

from cappuccino.models.batch_time import OpenBatch, add_batch_time
from cappuccino.models.cp_sat import limited_solver
from cappuccino.models.replica_data import ROUNDING, SCALE, WAYS, Packing, ReplicaData, Solved, Way


class ReplicaModel:
    """CP-SAT model of a replica.

    Parameters
    ----------
    data
        What is to be packed and ordered.
    hint
        A solution to begin with.
    """

    def __init__(self, data: ReplicaData, hint: Packing | None = None) -> None:
        self.data = data
        self.model = cp_model.CpModel()
        self._stages, self._slots = range(data.num_stages), range(data.num_slots)
        self._assign()
        self._memory_holds_a_micro_batch()
        self._steps_come_in_order()
        self._times_follow_work()
        self._schedule()
        self._inputs_arrive()
        self._links_are_fifo()
        self._optimizer_steps()
        self._evaluations()
        self._stages_do_one_thing_at_a_time()
        self._memory_fits()
        self._minimise_makespan()
        if hint is not None:
            self._hint(hint)

    @cached_property
    def _steps(self) -> dict[tuple[int, int], list[int]]:
        """Samples by adapter and step."""
        found: dict[tuple[int, int], list[int]] = {}
        for i, sample in enumerate(self.data.samples):
            found.setdefault((sample.adapter, sample.step), []).append(i)
        return dict(sorted(found.items()))

    def _assign(self) -> None:
        """`sum_b in[i,b] = 1`; `used[b] >= in[i,b]`, `used[b] <= sum_i in[i,b]`, `used[b] >= used[b+1]`.

        Samples of one step that are alike keep their order: `slot[i] <= slot[i']`.
        """
        new = self.model.new_bool_var
        count = len(self.data.samples)
        self._in = {(i, b): new(f"in[{i},{b}]") for i in range(count) for b in self._slots}
        self._used = [new(f"used[{b}]") for b in self._slots]
        self._slot = [self.model.new_int_var(0, self.data.num_slots - 1, f"slot[{i}]") for i in range(count)]
        for i in range(count):
            self.model.add_exactly_one(self._in[i, b] for b in self._slots)
            self.model.add(self._slot[i] == sum(b * self._in[i, b] for b in self._slots))
        for (_, b), inside in self._in.items():
            self.model.add_implication(inside, self._used[b])
        for b in self._slots:
            self.model.add_bool_or([self._in[i, b] for i in range(count)]).only_enforce_if(self._used[b])
            if b:
                self.model.add_implication(self._used[b], self._used[b - 1])
        for members in self._steps.values():
            alike: dict[tuple[object, ...], int] = {}
            for i in members:
                sample = self.data.samples[i]
                key = (sample.tokens, *(sample.work[w] for w in WAYS))
                if key in alike:
                    self.model.add(self._slot[alike[key]] <= self._slot[i])
                alike[key] = i

    def _memory_holds_a_micro_batch(self) -> None:
        """`tokens[b] = sum_i tokens_i in[i,b] <= max_tokens`."""
        self._tokens = []
        for b in self._slots:
            tokens = self.model.new_int_var(0, self.data.max_tokens, f"tokens[{b}]")
            self.model.add(tokens == sum(x.tokens * self._in[i, b] for i, x in enumerate(self.data.samples)))
            self._tokens.append(tokens)

    def _steps_come_in_order(self) -> None:
        """`first[a,j] <= slot[i] <= last[a,j] < first[a,j+1]` for the samples i of step j of adapter a.

        `has[a,j,b]` says whether a sample of the step is in the slot.
        """
        new = self.model.new_int_var
        most = self.data.num_slots - 1
        self._has = {}
        last: dict[tuple[int, int], cp_model.IntVar] = {}
        for (a, j), members in self._steps.items():
            first = new(0, most, f"first[{a},{j}]")
            last[a, j] = new(0, most, f"last[{a},{j}]")
            for i in members:
                self.model.add(first <= self._slot[i])
                self.model.add(self._slot[i] <= last[a, j])
            if (a, j - 1) in last:
                self.model.add(last[a, j - 1] < first)
            for b in self._slots:
                has = self.model.new_bool_var(f"has[{a},{j},{b}]")
                self.model.add_max_equality(has, [self._in[i, b] for i in members])
                self._has[a, j, b] = has

    def _times_follow_work(self) -> None:
        """`duration[w,s,b]` as `add_batch_time` has it."""
        self._duration: dict[tuple[Way, int, int], cp_model.IntVar] = {}
        samples, nothing = self.data.samples, dict.fromkeys(self._stages, 0)
        batches = []
        for b in self._slots:
            has: dict[int, list[cp_model.IntVar]] = {}
            for (a, _, slot), inside in self._has.items():
                if slot == b:
                    has.setdefault(a, []).append(inside)
            batches.append(OpenBatch(b, self._used[b], [self._in[i, b] for i in range(len(samples))], has))
        for w in WAYS:
            curves = self.data.curves[w]
            for batch in batches:
                ratios = [None] * len(curves)
                found = add_batch_time(self.model, batch, w, samples, curves, nothing, self.data.horizon, ratios)
                self._duration.update({(w, s, batch.index): duration for s, duration in found.items()})

    def _schedule(self) -> None:
        """`end[w,s,b] = start[w,s,b] + duration[w,s,b]` for used slots."""
        new, horizon = self.model.new_int_var, self.data.horizon
        self._start: dict[tuple[Way, int, int], cp_model.IntVar] = {}
        self._end: dict[tuple[Way, int, int], cp_model.IntVar] = {}
        self._interval: dict[tuple[Way, int, int], cp_model.IntervalVar] = {}
        for key, duration in self._duration.items():
            w, s, b = key
            label = f"{'forward' if w == 'F' else 'backward'}[{s},{b}]"
            self._start[key], self._end[key] = (new(0, horizon, f"{label}.{what}") for what in ("start", "end"))
            self._interval[key] = self.model.new_optional_interval_var(
                self._start[key], duration, self._end[key], self._used[b], label
            )

    def _inputs_arrive(self) -> None:
        """`start[F,s+1,b] >= end[F,s,b] + lag[b]`, `start[B,s,b] >= end[B,s+1,b] + lag[b]`, the last B after its F."""
        last = self.data.num_stages - 1
        least, rate = self.data.lag
        for b in self._slots:
            for s in range(last):
                for start, end in (
                    (self._start["F", s + 1, b], self._end["F", s, b]),
                    (self._start["B", s, b], self._end["B", s + 1, b]),
                ):
                    arrives = SCALE * (start - end - least) >= rate * self._tokens[b] - ROUNDING
                    self.model.add(arrives).only_enforce_if(self._used[b])
            self.model.add(self._start["B", last, b] >= self._end["F", last, b]).only_enforce_if(self._used[b])

    def _links_are_fifo(self) -> None:
        """`end[F,s,b] <= start[F,s,b+1]`; of two backwards one is before the other on all stages."""
        for b in self._slots:
            for k in range(b):
                both = [self._used[b]]  # then the earlier slot is used as well
                before = self.model.new_bool_var(f"B_before[{k},{b}]")
                for s in self._stages:
                    if k == b - 1:
                        self.model.add(self._end["F", s, k] <= self._start["F", s, b]).only_enforce_if(both)
                    earlier = self._end["B", s, k] <= self._start["B", s, b]
                    later = self._end["B", s, b] <= self._start["B", s, k]
                    self.model.add(earlier).only_enforce_if([*both, before])
                    self.model.add(later).only_enforce_if([*both, ~before])

    def _optimizer_steps(self) -> None:
        """`start[S,s,a,j] >= end[B,s,b]` where `has[a,j,b]`, on all stages where clipped; `end[S] <= start[F,s,b']`."""
        horizon, taken = self.data.horizon, self.data.step_duration
        self._step: dict[tuple[int, int, int], cp_model.IntVar] = {}
        self._step_interval: dict[tuple[int, int, int], cp_model.IntervalVar] = {}
        for a, j in self._steps:
            for s in self._stages:
                start = self.model.new_int_var(0, horizon, f"step[{s},{a},{j}].start")
                self._step[s, a, j] = start
                label = f"step[{s},{a},{j}]"
                self._step_interval[s, a, j] = self.model.new_fixed_size_interval_var(start, taken, label)
                awaited = self._stages if a in self.data.clipped else (s,)
                for b in self._slots:
                    for r in awaited:
                        self.model.add(start >= self._end["B", r, b]).only_enforce_if(self._has[a, j, b])
                    if (a, j + 1) in self._steps:
                        follows = self._start["F", s, b] >= start + taken
                        self.model.add(follows).only_enforce_if(self._has[a, j + 1, b])

    def _evaluations(self) -> None:
        """Put evaluations behind their steps, before the adapters' next ones, and in one order with all forwards."""
        self._evaluate: dict[tuple[int, int], cp_model.IntVar] = {}
        last = self.data.num_stages - 1
        for e, what in enumerate(self.data.evaluations):
            for s in self._stages:
                start = self.model.new_int_var(0, self.data.horizon, f"evaluate[{s},{e}].start")
                self._evaluate[s, e] = start
                self.model.add(start >= self._step[s, what.adapter, what.step] + self.data.step_duration)
                end = start + what.durations[s]
                for b in self._slots:
                    if (what.adapter, what.step + 1) in self._steps:
                        follows = self._has[what.adapter, what.step + 1, b]
                        self.model.add(self._start["F", s, b] >= end).only_enforce_if(follows)
            for s in range(last):
                arrives = self._evaluate[s, e] + what.durations[s] + what.lag
                self.model.add(self._evaluate[s + 1, e] >= arrives)
            for b in self._slots:
                before = self.model.new_bool_var(f"E_before[{e},{b}]")
                for s in self._stages:
                    end = self._evaluate[s, e] + what.durations[s]
                    self.model.add(end <= self._start["F", s, b]).only_enforce_if([self._used[b], before])
                    later = self._end["F", s, b] <= self._evaluate[s, e]
                    self.model.add(later).only_enforce_if([self._used[b], ~before])
            for k in range(e):
                before = self.model.new_bool_var(f"E_before_E[{k},{e}]")
                for s in self._stages:
                    ends = [self._evaluate[s, x] + self.data.evaluations[x].durations[s] for x in (k, e)]
                    self.model.add(ends[0] <= self._evaluate[s, e]).only_enforce_if(before)
                    self.model.add(ends[1] <= self._evaluate[s, k]).only_enforce_if(~before)

    def _evaluation_intervals(self, stage: int) -> list[cp_model.IntervalVar]:
        new = self.model.new_fixed_size_interval_var
        return [
            new(self._evaluate[stage, e], what.durations[stage], f"evaluate[{stage},{e}]")
            for e, what in enumerate(self.data.evaluations)
        ]

    def _stages_do_one_thing_at_a_time(self) -> None:
        """No two operations of one stage overlap."""
        self._evaluating = [self._evaluation_intervals(s) for s in self._stages]
        for s in self._stages:
            mine = [interval for (_, stage, _), interval in self._interval.items() if stage == s]
            mine += [interval for (stage, _, _), interval in self._step_interval.items() if stage == s]
            self.model.add_no_overlap([*mine, *self._evaluating[s]])

    def _memory_fits(self) -> None:
        """`sum of held x tokens[b] from F to B + working x tokens of what runs <= room`, at every moment and stage."""
        held, working, room = self.data.held
        if held == 0:
            return  # then `max_tokens` says it all
        for s in self._stages:
            intervals, demands = list(self._evaluating[s]), [e.memory for e in self.data.evaluations]
            for b in self._slots:
                size = self.model.new_int_var(0, self.data.horizon, f"held_for[{s},{b}]")
                begin, end, used = self._start["F", s, b], self._end["B", s, b], self._used[b]
                label = f"held[{s},{b}]"
                intervals.append(self.model.new_optional_interval_var(begin, size, end, used, label))
                demands.append(held * self._tokens[b])
                if working:
                    for w in WAYS:
                        intervals.append(self._interval[w, s, b])
                        demands.append(working * self._tokens[b])
            self.model.add_cumulative(intervals, demands, room)

    def _minimise_makespan(self) -> None:
        """`makespan` is no less than the end of every operation, nor than a stage's work behind the way to it."""
        self._makespan = self.model.new_int_var(0, self.data.horizon, "makespan")
        for b in self._slots:
            self.model.add(self._makespan >= self._end["B", 0, b]).only_enforce_if(self._used[b])
        for start in self._step.values():
            self.model.add(self._makespan >= start + self.data.step_duration)
        for (s, e), start in self._evaluate.items():
            self.model.add(self._makespan >= start + self.data.evaluations[e].durations[s])
        for s in self._stages:
            work = sum(d for (_, stage, _), d in self._duration.items() if stage == s)
            work += self.data.step_duration * len(self._steps) + sum(e.durations[s] for e in self.data.evaluations)
            self.model.add(self._makespan >= work)
        self.model.minimize(self._makespan)

    def _hint(self, hint: Packing) -> None:
        for (i, b), inside in self._in.items():
            self.model.add_hint(inside, hint.slots[i] == b)
        for i, slot in enumerate(hint.slots):
            self.model.add_hint(self._slot[i], slot)
        used = set(hint.slots)
        for b in self._slots:
            self.model.add_hint(self._used[b], b in used)
        for key, start in hint.starts.items():
            self.model.add_hint(self._start[key], start)
        for at, start in hint.evaluation_starts.items():
            self.model.add_hint(self._evaluate[at], start)

    def solve(
        self, *, time_limit_s: float | None, deterministic_limit: float | None, seed: int, workers: int = 1
    ) -> Solved:
        """Return what CP-SAT finds within the limits.

        Parameters
        ----------
        time_limit_s
            Wall-clock limit; None leaves only the deterministic one, so that equal seeds give equal results.
        deterministic_limit
            Limit in CP-SAT's deterministic seconds.

        Raises
        ------
        ValueError
            When nothing ends by the horizon.
        """
        solver = limited_solver(
            time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed, workers=workers
        )
        status = solver.solve(self.model)
        if status == cp_model.INFEASIBLE:
            raise ValueError("no packing and order ends by the horizon")
        bound = int(solver.best_objective_bound)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Solved(None, None, bound, proven=False)
        slots = tuple(solver.value(slot) for slot in self._slot)
        used = set(slots)
        starts = {key: solver.value(start) for key, start in self._start.items() if key[2] in used}
        evaluated = {key: solver.value(start) for key, start in self._evaluate.items()}
        packing = Packing(slots, starts, evaluated)
        return Solved(packing, int(solver.objective_value), bound, proven=status == cp_model.OPTIMAL)
