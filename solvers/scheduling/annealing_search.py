"""Anneals packing and order: short schedules as a whole, long ones window by window."""

from collections.abc import Callable

import numpy as np

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.annealing import anneal as anneal_moves
from cappuccino.solvers.scheduling.list_scheduling import ListSchedule, costs_of
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.stretch import ScheduledOrder, Stretch

HOT, COLD = 0.1, 0.003
"""First and last temperature, in multiples of the launch-bound work."""
CHUNK = 500
"""Moves between two looks at the clock."""
WHOLE = 240
"""Micro-batches up to which a schedule is annealed as a whole."""
WINDOW = 40
"""Micro-batches that may change in a window of a longer one."""
LEAST_WINDOW_S = 0.1
"""Least time for a window, seconds."""
MOVES_PER_BATCH = 100
"""Moves in a window for each of its micro-batches where moves limit the search."""


def anneal(
    problem: ReplicaProblem,
    start: ListSchedule,
    patience_s: float,
    clock: Clock,
    max_moves: int,
    target_s: float,
    rng: np.random.Generator,
    on_better: Callable[[ListSchedule], None] | None = None,
) -> ListSchedule:
    """Return the best schedule met on the way, at worst `start`.

    Parameters
    ----------
    patience_s
        How long a stage waits for a B, as in `schedule_order`.
    target_s
        Makespan that ends the search.
    on_better
        Called with every better schedule.
    """
    current = ScheduledOrder.of(problem, start.order, patience_s)
    assert current is not None  # it has been scheduled before
    best = start
    if current.makespan_s < best.makespan_s:
        best = current.schedule()
    moves_left = max_moves
    queue: list[int] = []
    while moves_left > 0 and not clock.over and best.makespan_s > target_s:
        if len(current.order) <= WHOLE:
            stretch, part, moves = current.whole(), clock, moves_left
        else:
            queue = queue or _windows(current, rng)
            stretch = current.window(min(queue.pop(0), len(current.order) - WINDOW), WINDOW)
            part, moves = _share(clock, moves_left, len(current.order))
        before = stretch.value(current.machine)
        ends = target_s if stretch.length == len(current.order) else 0.0
        made, reached = _search(problem, current, stretch, part, moves, before, ends, rng)
        moves_left -= max(1, made)
        found = current.with_best_of(stretch) if reached < before else None
        if found is not None and found.makespan_s <= current.makespan_s:
            current = found
            if current.makespan_s < best.makespan_s:
                best = current.schedule()
                if on_better:
                    on_better(best)
    return best


def _share(clock: Clock, moves_left: int, count: int) -> tuple[Clock, int]:
    """Return time and moves for one window: enough is kept for two rounds over all windows."""
    if clock.left is None:
        return clock, min(moves_left, MOVES_PER_BATCH * WINDOW)
    seconds = max(LEAST_WINDOW_S, clock.left * WINDOW / (4 * count))
    return Clock(min(seconds, clock.left)), moves_left


def _windows(current: ScheduledOrder, rng: np.random.Generator) -> list[int]:
    """Return first ranks of windows that overlap by half and cover everything, most idle time first."""
    idle, count = current.idle_time(), len(current.order)
    lows = [0, *range(int(rng.integers(1, WINDOW // 2)), count - WINDOW // 2, WINDOW // 2)]
    return sorted(lows, key=lambda k: idle[k] - idle[min(k + WINDOW, count - 1)])


def _search(
    problem: ReplicaProblem,
    current: ScheduledOrder,
    stretch: Stretch,
    clock: Clock,
    max_moves: int,
    value_s: float,
    target_s: float,
    rng: np.random.Generator,
) -> tuple[int, float]:
    """Anneal a stretch, cooling down over the time or the moves there are; return moves made and best value."""
    costs, launch_bound, done = costs_of(problem), problem.launch_bound_work, 0
    values = np.array([value_s, value_s])
    while done < max_moves and not clock.over and values[1] > target_s:
        progress = done / max_moves
        if clock.left is not None:
            progress = max(progress, clock.elapsed / (clock.elapsed + clock.left + 1e-9))
        temperature = launch_bound * HOT * (COLD / HOT) ** progress
        moves = min(CHUNK, max_moves - done)
        anneal_moves(
            rng,
            current.machine,
            costs,
            stretch.arrays.window,
            stretch.arrays.packed,
            stretch.scratch,
            stretch.begin,
            stretch.low,
            stretch.tail,
            moves,
            temperature,
            launch_bound,
            values,
            target_s,
        )
        done += moves
    return done, float(values[1])
