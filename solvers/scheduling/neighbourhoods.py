"""Where the large-neighbourhood search looks: windows of time around what may be worth changing."""

from collections.abc import Callable
from enum import StrEnum

import numpy as np

from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.scheduling.schedule_graph import ScheduleGraph


class Neighbourhood(StrEnum):
    """What a window is chosen by."""

    ANYWHERE = "anywhere"
    IDLE = "idle"
    """A stage is idle in it: the longer, the likelier."""
    MEMORY = "memory"
    """A stage holds the most there."""
    STEPS = "steps"
    """An adapter ends an optimizer step in it."""


def window_around(
    schedule: ReplicaSchedule,
    graph: ScheduleGraph,
    neighbourhood: Neighbourhood,
    num_operations: int,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return by stage the half-open range of operations that start in an interval of time.

    Parameters
    ----------
    num_operations
        Operations in the window, over all stages.
    """
    starts = np.sort(np.concatenate([np.array(s) for s in graph.starts]))
    moment = _MOMENTS[neighbourhood](schedule, graph, rng)
    if moment is None:
        first = int(rng.integers(max(1, len(starts) - num_operations // 2)))
    else:
        middle = int(np.searchsorted(starts, moment))
        first = max(0, min(middle - int(rng.integers(1, max(2, num_operations))), len(starts) - num_operations))
    begin, end = starts[first], starts[min(first + num_operations, len(starts) - 1)]
    if first + num_operations >= len(starts):
        end += 1
    return [(int(np.searchsorted(s, begin)), int(np.searchsorted(s, end))) for s in graph.starts]


def _anywhere(_schedule: ReplicaSchedule, _graph: ScheduleGraph, _rng: np.random.Generator) -> int | None:
    return None


def _idle(_schedule: ReplicaSchedule, graph: ScheduleGraph, rng: np.random.Generator) -> int | None:
    gaps, moments = [], []
    for starts, durations in zip(graph.starts, graph.durations, strict=True):
        ends = np.add(starts, durations)
        gaps.append(np.subtract(starts[1:], ends[:-1]))
        moments.append(ends[:-1])
    gap, moment = np.concatenate(gaps), np.concatenate(moments)
    total = gap.sum()
    return int(rng.choice(moment, p=gap / total)) if total > 0 else None


def _memory(schedule: ReplicaSchedule, graph: ScheduleGraph, rng: np.random.Generator) -> int | None:
    s = int(rng.integers(len(schedule.operations)))
    trained = [0 if b.evaluation is not None else b.tokens for b in schedule.order]
    held = np.cumsum([trained[op] if op >= 0 else -trained[~op] for op in schedule.operations[s]])
    fullest = np.flatnonzero(held >= 0.95 * held.max())
    return graph.starts[s][int(rng.choice(fullest))]


def _steps(schedule: ReplicaSchedule, graph: ScheduleGraph, rng: np.random.Generator) -> int | None:
    """Return when a random step ends on the first stage."""
    adapter = int(rng.integers(len(schedule.problem.adapters)))
    ends: dict[int, int] = {}
    for op, start in zip(schedule.operations[0], graph.starts[0], strict=True):
        if op < 0:
            ends.update({j: start for a, j in schedule.order[~op].steps if a == adapter})
    return int(rng.choice(list(ends.values()))) if ends else None


_MOMENTS: dict[Neighbourhood, Callable[[ReplicaSchedule, ScheduleGraph, np.random.Generator], int | None]] = {
    Neighbourhood.ANYWHERE: _anywhere,
    Neighbourhood.IDLE: _idle,
    Neighbourhood.MEMORY: _memory,
    Neighbourhood.STEPS: _steps,
}


_GROWTH, _SHRINKAGE = 1.02, 0.85
"""Of windows that bring nothing, and of those that bring something: one in nine does where the size settles."""


class AdaptiveChoice:
    """Chooses among kinds of windows by what they brought: Thompson sampling of how often each finds something.

    A kind is a neighbourhood, and how many micro-batches are packed anew. Windows grow while they bring nothing: what
    small ones can find is found sooner.

    Parameters
    ----------
    num_packed
        Micro-batches that are packed anew.
    num_operations
        Fewest and most operations of a window.
    """

    def __init__(self, num_packed: tuple[int, ...], num_operations: tuple[int, int], rng: np.random.Generator) -> None:
        self._limits, self._size = num_operations, float(num_operations[0])
        self._kinds = [(where, count) for where in Neighbourhood for count in num_packed]
        self._found = np.ones((len(self._kinds), 2))  # windows that brought something, and others; one of each ahead
        self._rng = rng

    def choose(self) -> tuple[Neighbourhood, int, int]:
        """Return what a window is chosen by, how many micro-batches are packed anew, and how many operations it has."""
        self._last = int(np.argmax(self._rng.beta(self._found[:, 0], self._found[:, 1])))
        return *self._kinds[self._last], round(self._size)

    def learn(self, *, better: bool) -> None:
        """Note what the window of the last choice brought."""
        self._found[self._last, 0 if better else 1] += 1
        self._size = float(np.clip(self._size * (_SHRINKAGE if better else _GROWTH), *self._limits))
