"""Allocator and scheduler in one loop: bounds choose replicas, scheduled makespans replace the bounds that mattered."""

import os

from cappuccino.errors import NoPlanFoundError
from cappuccino.solvers.allocation.candidates import find_candidates, why_no_partition
from cappuccino.solvers.allocation.column_scheduler import ColumnScheduler
from cappuccino.solvers.allocation.context import Context
from cappuccino.solvers.allocation.known_columns import ChosenColumn, KnownColumns
from cappuccino.solvers.allocation.milp import TimeUpError
from cappuccino.solvers.allocation.selection import OfferedColumn, Selection
from cappuccino.solvers.budget import Clock, InterruptedSearchError, interrupted


class Allocator:
    """Chooses replicas and schedules those that matter.

    The bound is proven before anything is scheduled. The plan comes from the set partitioning with scheduled makespans
    where there are some, and expected ones elsewhere, until it chooses scheduled columns only, the gap is reached or
    the time is up.

    Parameters
    ----------
    context
        Its clock is the time for the first run; its incumbent takes the bound and the plans.
    last_clock
        Time for finding a first plan where the other is not enough.

    Raises
    ------
    InfeasibleError
        When the pools, or the deadline, admit no partition.
    """

    def __init__(self, context: Context, last_clock: Clock) -> None:
        self.context, self.last_clock, settings = context, last_clock, context.settings.allocation
        candidates = find_candidates(context.part(settings.bound_share))
        context.incumbent.bound, context.incumbent.proof = candidates.bound, candidates.proof
        effort = 1.0
        if last_clock.left is not None:
            samples = sum(lengths.size for lengths in context.space.instance.step_lengths)
            effort = min(1.0, last_clock.left * (os.cpu_count() or 1) / (settings.effort_s * samples))
        self.known = KnownColumns(context.space, context.goal.objective, effort, settings)
        self.selection = Selection(context, candidates, self.known)
        self.scheduler = ColumnScheduler(context, self.known)
        self._compared = False

    def run(self) -> None:
        """Find the best allocation.

        Raises
        ------
        NoPlanFoundError
            When none was found that meets the deadline.
        InterruptedSearchError
            When the user has ended the search before there was one.
        TimeUpError
            When not even a first allocation was found in time.
        """
        self._choose_and_schedule(self.selection.first() or self._choose(None), self.context.clock)
        if not self.context.incumbent and interrupted():
            raise InterruptedSearchError()
        if not self.context.incumbent:
            raise NoPlanFoundError(
                f"{self.context.space.instance.source}: no schedule found that meets the deadline of "
                f"{self.context.goal.deadline_s:g} s (bounds do not exclude one); give a longer deadline or more "
                "--time-limit"
            )

    def resume(self, clock: Clock) -> None:
        """Choose again, knowing what the replicas that were improved have come to."""
        self.known.learn(self.context.incumbent.replicas)
        first = self._choose(clock.part(self.context.settings.allocation.selection_share))
        self._choose_and_schedule(first, clock)

    def offered(self) -> list[OfferedColumn]:
        """Return the columns that were chosen from last, with what is known of their makespans by now."""
        return self.selection.offered()

    def _choose_and_schedule(self, columns: list[ChosenColumn], clock: Clock) -> None:
        """Schedule what was chosen and choose again, until there is nothing to work on or the time is up."""
        incumbent, idle, begin = self.context.incumbent, 0, clock.elapsed
        while columns:
            worked = (
                self.scheduler.schedule_new(columns, clock)
                or self.scheduler.schedule_further(columns)
                or self.scheduler.schedule_new(self.selection.alone(), clock)
            )
            incumbent.offer(self.known.replicas(columns))
            self.selection.judge(met_deadline=bool(incumbent))
            self._compare_recomputations(clock, clock.elapsed - begin)
            if clock.over and not incumbent:
                clock = self.last_clock  # late is better than none
            # what one way of choosing has nothing left to work on, the other may have
            idle = 0 if worked else idle + 1
            if clock.over or incumbent.good_enough or idle > self.context.goal.binding:
                break
            if incumbent:
                self.selection.alternate()
            columns = self._choose(clock.part(self.context.settings.allocation.selection_share))

    def _compare_recomputations(self, clock: Clock, one_s: float) -> None:
        """Schedule the best partition of each recomputation, once: what is expected of one must not hide the other.

        Parameters
        ----------
        one_s
            What a partition takes, seconds: where there is not twice as much for each, nothing is compared.
        """
        kinds = {place.recompute for place in self.known.places}
        if self._compared or len(kinds) < 2 or (clock.left is not None and clock.left < 2 * len(kinds) * one_s):
            return
        self._compared = True
        for kind in sorted(kinds, key=str):
            if clock.over or self.context.incumbent.good_enough:
                return
            try:
                columns = self.selection.held_to(kind, clock.part(self.context.settings.allocation.selection_share))
            except TimeUpError:
                continue
            self.scheduler.schedule_new(columns, clock)
            self.context.incumbent.offer(self.known.replicas(columns))

    def _choose(self, clock: Clock | None) -> list[ChosenColumn]:
        """Return the next partition to schedule; empty when there is none or it was not found in time."""
        try:
            found = self.selection.next(clock or Clock(None))
        except TimeUpError:
            if clock is None:
                raise
            return []
        if found is None and not self.known and not self.context.incumbent:
            # what was found in the way of bounds would have been told before
            raise NoPlanFoundError(why_no_partition(self.context.space, self.context.goal.deadline_s, proven=False))
        return found or []
