"""What every search for a plan is given, and the best plan that it has come to."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cappuccino.plan import FoundPlan, Objective
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.pricing import BoundProof
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.schedule import PlacedReplica, ReplicaSchedule
from cappuccino.solvers.settings import DEFAULT, PlannerSettings

ALLOCATION = "allocation"
"""Method of plans that are another choice of replicas."""
_MOMENT_S = 0.25


@dataclass(frozen=True)
class Goal:
    """What is asked of a plan."""

    objective: Objective = Objective.GPU_TIME
    deadline_s: float | None = None
    """Every replica is to end within this, seconds."""
    gap: float = 1e-3
    """Relative distance between objective and bound that is good enough."""
    target: float = 0.0
    """Objective that is good enough."""

    @property
    def binding(self) -> bool:
        """Whether makespans count, under a deadline or as the objective."""
        return self.deadline_s is not None or self.objective is Objective.MAKESPAN


class Incumbent:
    """The best set of scheduled replicas so far; it alone decides what is better.

    Several threads may offer at once.

    Parameters
    ----------
    bound
        Proven bound on the objective.
    on_better
        Called with the incumbent whenever it has become better.
    """

    def __init__(
        self,
        space: ReplicaSpace,
        goal: Goal,
        bound: float = 0.0,
        on_better: Callable[["Incumbent"], None] | None = None,
    ) -> None:
        self.goal, self.bound = goal, bound
        self.proof: BoundProof | None = None
        self.replicas: tuple[PlacedReplica, ...] = ()
        self.objective = float("inf")
        self._prices = {gpu: space.price_per_second(gpu) for gpu in space.pools}
        self.on_better = on_better
        self.found: list[FoundPlan] = []
        """What the best was, one after the other."""
        self._began = time.monotonic()
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        """Whether there is a plan."""
        return bool(self.replicas)

    @property
    def good_enough(self) -> bool:
        """Whether the target or the gap is reached."""
        return self.objective <= self.goal.target or self.objective * (1 - self.goal.gap) <= self.bound

    def value(self, replicas: Sequence[PlacedReplica]) -> float:
        """Return the objective of scheduled replicas; infinite for none, or past the deadline."""
        if not replicas:
            return float("inf")
        longest = max(r.schedule.makespan_s for r in replicas)
        if self.goal.deadline_s is not None and longest > self.goal.deadline_s:
            return float("inf")
        if self.goal.objective is Objective.MAKESPAN:
            return longest
        if self.goal.objective is Objective.GPU_TIME:
            return sum(r.schedule.gpu_time_s for r in replicas)
        return sum(r.schedule.gpu_time_s * self._prices[r.gpu] for r in replicas)

    def offer(self, replicas: Sequence[PlacedReplica], method: str = ALLOCATION) -> bool:
        """Keep scheduled replicas that cover everything if they beat the best so far, by GPU time where it ties.

        Parameters
        ----------
        method
            What has found them.
        """
        with self._lock:
            value = self.value(replicas)
            saved = sum(r.schedule.gpu_time_s for r in self.replicas) - sum(r.schedule.gpu_time_s for r in replicas)
            if value > self.objective or (value == self.objective and saved <= 0):
                return False
            self.replicas, self.objective = tuple(replicas), value
            self._note(method)
            self.report()
            return True

    def offer_schedule(self, number: int, schedule: ReplicaSchedule) -> bool:
        """Put a schedule in the place of a replica's if it is shorter and the whole is better for it."""
        with self._lock:
            old = self.replicas[number]
            if schedule.makespan_s >= old.schedule.makespan_s:
                return False
            placed = PlacedReplica(schedule, old.gpu)
            return self.offer([*self.replicas[:number], placed, *self.replicas[number + 1 :]], schedule.found_by)

    def _note(self, method: str) -> None:
        """Write down what was found; of what one method finds within a moment, the last."""
        now = time.monotonic() - self._began
        found = FoundPlan(time_s=round(now, 3), method=method, objective=self.objective, bound=self.bound)
        if self.found and self.found[-1].method == method and now - self.found[-1].time_s < _MOMENT_S:
            self.found.pop()
        self.found.append(found)

    def report(self) -> None:
        """Tell where the search stands."""
        if self.on_better:
            self.on_better(self)


@dataclass(frozen=True)
class Context:
    """A search for a plan: among what, for what, how long, and how."""

    space: ReplicaSpace
    incumbent: Incumbent
    clock: Clock
    seed: int = 0
    iterations: int | None = None
    """CP-SAT windows per replica where no time limits the search; None where one does."""
    settings: PlannerSettings = DEFAULT

    @property
    def goal(self) -> Goal:
        """What is asked of the plan."""
        return self.incumbent.goal

    def until(self, clock: Clock) -> "Context":
        """Return the same search with another limit of time."""
        return replace(self, clock=clock)

    def part(self, fraction: float) -> "Context":
        """Return the same search with this fraction of the time left."""
        return self.until(self.clock.part(fraction))
