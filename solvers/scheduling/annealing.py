"""Anneals packing and order: short schedules as a whole, long ones window by window."""

from collections.abc import Callable

import numpy as np

from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.kernels.arrays import MoveRule
from cappuccino.solvers.scheduling.kernels.moves import anneal as anneal_moves
from cappuccino.solvers.scheduling.order import ScheduledOrder, Stretch
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.settings import DEFAULT, SchedulingSettings


def anneal(
    problem: ReplicaProblem,
    start: ReplicaSchedule,
    patience_s: float,
    clock: Clock,
    max_moves: int,
    target_s: float,
    rng: np.random.Generator,
    on_better: Callable[[ScheduledOrder], None] | None = None,
    settings: SchedulingSettings = DEFAULT.scheduling,
) -> ScheduledOrder | None:
    """Return the best order met on the way; None where list scheduling makes nothing shorter than `start`.

    Parameters
    ----------
    patience_s
        How long a stage waits for a B, as in `ScheduledOrder.of`.
    target_s
        Makespan that ends the search, without the optimizer steps that end the adapters.
    on_better
        Called with every better order.
    """
    current = ScheduledOrder.of(problem, start.order, patience_s)
    assert current is not None  # it has been scheduled before
    best, best_s = None, start.makespan_s - problem.costs.optimizer_s
    if current.makespan_s < best_s:
        best, best_s = current, current.makespan_s
    moves_left, window = max_moves, settings.window
    queue: list[int] = []
    while moves_left > 0 and not clock.over and best_s > target_s:
        if len(current.order) <= settings.whole:
            stretch, part, moves = current.whole(settings.spare), clock, moves_left
        else:
            queue = queue or _windows(current, window, rng)
            low = min(queue.pop(0), len(current.order) - window)
            stretch = current.window(low, window, settings.lookahead, settings.spare)
            part, moves = _share(clock, moves_left, len(current.order), settings)
        before = stretch.value(current.machine)
        ends = target_s if stretch.length == len(current.order) else 0.0
        made, reached = _search(problem, current, stretch, part, moves, before, ends, rng, settings)
        moves_left -= max(1, made)
        found = current.with_best_of(stretch) if reached < before else None
        if found is not None and found.makespan_s <= current.makespan_s:
            current = found
            if current.makespan_s < best_s:
                best, best_s = current, current.makespan_s
                if on_better:
                    on_better(best)
    return best


def _share(clock: Clock, moves_left: int, count: int, settings: SchedulingSettings) -> tuple[Clock, int]:
    """Return time and moves for one window: enough is kept for two rounds over all windows."""
    if clock.left is None:
        return clock, min(moves_left, settings.moves_per_batch * settings.window)
    seconds = max(settings.least_window_s, clock.left * settings.window / (4 * count))
    return Clock(min(seconds, clock.left)), moves_left


def _windows(current: ScheduledOrder, window: int, rng: np.random.Generator) -> list[int]:
    """Return first ranks of windows that overlap by half and cover everything, most idle time first."""
    idle, count = current.idle_time(), len(current.order)
    lows = [0, *range(int(rng.integers(1, window // 2)), count - window // 2, window // 2)]
    return sorted(lows, key=lambda k: idle[k] - idle[min(k + window, count - 1)])


def move_rule(problem: ReplicaProblem, settings: SchedulingSettings = DEFAULT.scheduling) -> MoveRule:
    """Return what guides the moves in a replica."""
    shares, urgencies = np.cumsum(settings.move_shares), np.array(settings.urgencies)
    return MoveRule(shares, urgencies, settings.max_shift, problem.launch_bound_work)


def _search(
    problem: ReplicaProblem,
    current: ScheduledOrder,
    stretch: Stretch,
    clock: Clock,
    max_moves: int,
    value_s: float,
    target_s: float,
    rng: np.random.Generator,
    settings: SchedulingSettings,
) -> tuple[int, float]:
    """Anneal a stretch, cooling down over the time or the moves there are; return moves made and best value."""
    rule, done = move_rule(problem, settings), 0
    values = np.array([value_s, value_s])
    while done < max_moves and not clock.over and values[1] > target_s:
        progress = done / max_moves
        if clock.left is not None:
            progress = max(progress, clock.elapsed / (clock.elapsed + clock.left + 1e-9))
        temperature = problem.launch_bound_work * settings.hot * (settings.cold / settings.hot) ** progress
        moves = min(settings.moves_between_clocks, max_moves - done)
        anneal_moves(
            rng,
            current.machine,
            problem.stage_costs,
            stretch.arrays.window,
            stretch.arrays.packed,
            stretch.scratch,
            stretch.begin,
            stretch.low,
            stretch.tail,
            moves,
            temperature,
            rule,
            values,
            target_s,
        )
        done += moves
    return done, float(values[1])
