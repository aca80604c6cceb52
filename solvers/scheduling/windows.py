"""Large-neighbourhood search: one window of the schedule at a time is given to a CP-SAT model, the rest stays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cappuccino.models.job_shop import JobShopWindow, order_of
from cappuccino.models.job_shop_data import HeldMemory, Kind, Step, WindowData, WindowOperation, WindowPacking
from cappuccino.solvers.scheduling.grid import curves_data, lag_data, sample_data
from cappuccino.solvers.scheduling.neighbourhoods import Neighbourhood, window_around
from cappuccino.solvers.scheduling.replica_problem import Batch
from cappuccino.solvers.scheduling.schedule import BlockedProgramsError, ReplicaSchedule, build_schedule
from cappuccino.solvers.scheduling.schedule_graph import (
    GRID,
    ScheduleGraph,
    is_better,
    job_predecessor,
    job_successors,
    rank_of,
    renumbered,
    schedule_graph,
)
from cappuccino.solvers.scheduling.window_limits import Ranges, fixed_pairs, held_memory, like, with_job


def improve_window(
    schedule: ReplicaSchedule,
    num_operations: int,
    neighbourhood: Neighbourhood,
    num_packed: int,
    rng: np.random.Generator,
    *,
    time_limit_s: float | None,
    deterministic_limit: float = 0.5,
    graph: ScheduleGraph | None = None,
) -> ReplicaSchedule | None:
    """Reorder the operations of a window, and repack some of its micro-batches; None when that gains nothing.

    Parameters
    ----------
    num_operations
        Operations in the window, over all stages.
    neighbourhood
        What the window is chosen by.
    num_packed
        Micro-batches at most that share out their samples anew; padded ones do not.
    time_limit_s
        Wall-clock limit of the model; None leaves the deterministic one.
    graph
        Of the schedule, where it is at hand.
    """
    graph = graph or schedule_graph(schedule)
    ranges = window_around(schedule, graph, neighbourhood, num_operations, rng)
    window = Window.of(schedule, graph, ranges, num_packed, rng)
    seed = int(rng.integers(2**31 - 1))
    model = JobShopWindow(window.data)
    solved = model.solve(time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed)
    if solved is None:
        return None
    try:
        new = window.schedule(solved.starts, solved.places)
    except BlockedProgramsError:  # operations that tie on the grid can be sorted into a circle: nothing gained
        return None
    return new if is_better(new, schedule) else None


@dataclass(frozen=True)
class Window:
    """A window, and what the model of it says."""

    old: ReplicaSchedule
    ranges: Ranges
    data: WindowData
    operations: tuple[tuple[int, int], ...]
    """By operation of the model, its stage and its code; a new micro-batch has the rank behind all others."""
    samples: tuple[tuple[int, int], ...]
    """Those that are packed anew, in the order of the model."""

    @classmethod
    def of(
        cls,
        schedule: ReplicaSchedule,
        graph: ScheduleGraph,
        ranges: Ranges,
        num_packed: int,
        rng: np.random.Generator,
    ) -> "Window":
        """Return the window of these operations, in which up to so many micro-batches are packed anew."""
        return _Building(schedule, graph, ranges).window(num_packed, rng)

    def schedule(self, starts: Sequence[int], places: Sequence[int] | None) -> ReplicaSchedule:
        """Return the schedule with what the model found.

        Raises
        ------
        BlockedProgramsError
            When operations wait for each other.
        """
        order: list[Batch] = list(self.old.order)
        gone = set[int]()
        if places is not None and self.data.packing is not None:
            jobs = self.data.packing.jobs
            groups = [[x for x, p in zip(self.samples, places, strict=True) if p == k] for k in range(len(jobs))]
            made = iter(self.old.problem.batches([group for group in groups if group]))
            for job, group in zip(jobs, groups, strict=True):
                if not group:
                    gone.add(job)
                elif job < len(order):
                    order[job] = next(made)
                else:
                    order.append(next(made))
        operations = []
        for s, (low, high) in enumerate(self.ranges):
            old = self.old.operations[s]
            mine = [i for i, (stage, _) in enumerate(self.operations) if stage == s]
            inside = [self.operations[i][1] for i in order_of(starts, mine)]
            operations.append([*old[:low], *(op for op in inside if rank_of(op) not in gone), *old[high:]])
        return build_schedule(self.old.problem, *renumbered(order, operations))


class _Building:
    """Puts a window together."""

    def __init__(self, schedule: ReplicaSchedule, graph: ScheduleGraph, ranges: Ranges) -> None:
        self.schedule, self.graph, self.ranges = schedule, graph, ranges
        self.stages = len(schedule.operations)
        self.nodes = [(s, i) for s, (low, high) in enumerate(ranges) for i in range(low, high)]
        self.index = {node: n for n, node in enumerate(self.nodes)}
        self.at = [{op: i for i, op in enumerate(stage)} for stage in schedule.operations]
        self.precedences: list[tuple[int, int, int]] = []
        self.items = [self._operation(s, i) for s, i in self.nodes]

    def window(self, num_packed: int, rng: np.random.Generator) -> Window:
        packed = self._packed_jobs(num_packed, rng)
        operations = [(s, self.schedule.operations[s][i]) for s, i in self.nodes]
        fixed, held = fixed_pairs(self.schedule.operations, self.ranges), held_memory(self.schedule, self.ranges)
        steps = list(self._step_pairs())
        in_order = [(i, j, 0) for i, j, jobs, _ in steps if not jobs & set(packed)]
        samples = tuple(x for k in packed for x in self.schedule.order[k].samples)
        packing = None
        if packed:
            self._without_batch_times(packed)
            jobs = [*packed, len(self.schedule.order)]
            operations += self._new_job(packed[-1])
            fixed += like(fixed, packed[-1], jobs[-1])
            fixed += [("F", first, second) for first, second in combinations(jobs, 2)]
            held = [with_job(x, jobs[-1]) for x in held]
            packing = self._packing(jobs, samples, held, steps)
        data = WindowData(
            tuple(self.items),
            tuple(self.precedences + in_order),
            tuple(fixed),
            tuple(held),
            self.graph.makespan,
            packing,
        )
        return Window(self.schedule, self.ranges, data, tuple(operations), samples)

    def _operation(self, s: int, i: int) -> WindowOperation:
        graph, operations = self.graph, self.schedule.operations
        op, duration = operations[s][i], graph.durations[s][i]
        earliest = self._begin(s)
        pred = job_predecessor(op, s, self.stages)
        if pred is not None:
            r, other = pred
            node = (r, self.at[r][other])
            lag = graph.lags[rank_of(op)] if r != s else 0
            if node in self.index:
                self.precedences.append((self.index[node], self.index[s, i], lag))
            else:
                earliest = max(earliest, graph.starts[r][node[1]] + graph.durations[r][node[1]] + lag)
        tail = self._tail(s)
        for r, other in job_successors(op, s, self.stages):
            node = (r, self.at[r].get(other, -1))
            if node not in self.index and node[1] >= 0:  # no B follows what is evaluated
                lag = graph.lags[rank_of(op)] if r != s else 0
                tail = max(tail, lag + graph.durations[r][node[1]] + graph.tails[r][node[1]])
        kind: Kind = "F" if op >= 0 else "B"
        return WindowOperation(rank_of(op), kind, s, duration, earliest, tail, graph.starts[s][i])

    def _begin(self, s: int) -> int:
        low = self.ranges[s][0]
        return self.graph.starts[s][low - 1] + self.graph.durations[s][low - 1] if low else 0

    def _tail(self, s: int) -> int:
        high = self.ranges[s][1]
        more = high < len(self.schedule.operations[s])
        return self.graph.durations[s][high] + self.graph.tails[s][high] if more else 0

    def _packed_jobs(self, count: int, rng: np.random.Generator) -> list[int]:
        """Return neighbours, or a pair anywhere, of the micro-batches that run in the window from start to end."""
        problem = self.schedule.problem
        if count < 1 or problem.instance.layout == "padded":
            return []
        seen = [x.job for x in self.items]
        whole = sorted({k for k in seen if seen.count(k) == 2 * self.stages})
        if not whole:
            return []
        if count == 2 and len(whole) > 2:
            chosen = sorted(rng.choice(whole, 2, replace=False).tolist())
        else:
            first = int(rng.integers(max(1, len(whole) - count + 1)))
            chosen = whole[first : first + count]
        while chosen and sum(len(self.schedule.order[k].samples) for k in chosen) > _MOST_SAMPLES:
            chosen.pop()
        return chosen if sum(len(self.schedule.order[k].samples) for k in chosen) > 1 else []

    def _without_batch_times(self, packed: Sequence[int]) -> None:
        """Leave of the durations of packed micro-batches what their samples do not account for: optimizer steps."""
        problem, scale = self.schedule.problem, GRID / self.schedule.makespan_s
        for n, x in enumerate(self.items):
            if x.job in packed:
                batch = self.schedule.order[x.job]
                times = batch.forward_s if x.kind == "F" else batch.backward_s
                more = max(0, x.duration - round(times[problem.kinds[x.stage]] * scale))
                self.items[n] = WindowOperation(x.job, x.kind, x.stage, more, x.earliest, x.tail, x.start)

    def _new_job(self, behind: int) -> list[tuple[int, int]]:
        """Add a micro-batch without samples behind another; return its operations."""
        job, last = len(self.schedule.order), self.stages - 1
        added = []
        numbers: dict[tuple[Kind, int], int] = {}
        kinds: tuple[Kind, ...] = ("F", "B")
        for kind in kinds:
            for s in range(self.stages):
                numbers[kind, s] = len(self.items)
                start = self.graph.starts[s][self.at[s][behind if kind == "F" else ~behind]]
                self.items.append(WindowOperation(job, kind, s, 0, self._begin(s), self._tail(s), start))
                added.append((s, job if kind == "F" else ~job))
        for s in range(last):
            self.precedences.append((numbers["F", s], numbers["F", s + 1], 0))
            self.precedences.append((numbers["B", s + 1], numbers["B", s], 0))
        self.precedences.append((numbers["F", last], numbers["B", last], 0))
        return added

    def _packing(
        self,
        jobs: Sequence[int],
        samples: Sequence[tuple[int, int]],
        held: Sequence[HeldMemory],
        steps: Sequence[tuple[int, int, set[int], Step]],
    ) -> WindowPacking:
        problem, unit = self.schedule.problem, self.schedule.makespan_s / GRID
        place = {x: p for p, k in enumerate(jobs[:-1]) for x in self.schedule.order[k].samples}
        after: dict[Step, list[int]] = {}
        before: dict[Step, list[int]] = {}
        for i, j, _, (a, step) in steps:
            if self.items[i].job not in jobs:
                after.setdefault((a, step), []).append(i)
            if self.items[j].job not in jobs:
                before.setdefault((a, step - 1), []).append(j)
        most = problem.max_tokens
        for stage in held:  # what it holds is counted with the largest of its part of the window running
            tokens = [
                self.schedule.order[x.job].tokens for x in self.items if x.stage == stage.stage and x.job != jobs[-1]
            ]
            most = min(most, max(tokens))
        return WindowPacking(
            jobs=tuple(jobs),
            samples=tuple(sample_data(problem, a, n, unit) for a, n in samples),
            places=tuple(place[x] for x in samples),
            max_tokens=min(most, sum(problem.batch_tokens([x]) for x in samples)),
            curves=curves_data(problem, unit),
            lag=lag_data(problem, unit),
            after={key: tuple(sorted(set(found))) for key, found in after.items()},
            before={key: tuple(sorted(set(found))) for key, found in before.items()},
        )

    def _step_pairs(self) -> Iterator[tuple[int, int, set[int], Step]]:
        """Yield operations (i, j) on the first stage of which j comes after i, their jobs, and the step that it is for.

        F's of a step come after the B's of the step before; on the other stages that follows. An evaluation comes after
        the B's of its step, and before the F's of the next.
        """
        low, high = self.ranges[0]
        inside, order = self.schedule.operations[0][low:high], self.schedule.order
        for op in inside:
            if op < 0:
                continue
            what = order[op].evaluation
            steps = set(order[op].steps) if what is None else {(what.adapter, what.step + 1)}
            for other in inside:
                earlier = order[rank_of(other)]
                if earlier.evaluation is not None:
                    done = {earlier.evaluation[:2]} if what is None else set()
                else:
                    done = set(earlier.steps) if other < 0 else set()
                for a, j in sorted(steps):
                    if (a, j - 1) in done:
                        pair = self.index[0, self.at[0][other]], self.index[0, self.at[0][op]]
                        yield (*pair, {op, rank_of(other)}, (a, j))


_MOST_SAMPLES = 40
"""That are packed anew at once: of more, the model takes longer to build than it is worth."""
