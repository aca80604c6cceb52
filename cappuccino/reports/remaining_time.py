"""How much longer a run takes, by its plan and by what of the plan it took how long for."""

from collections.abc import Sequence

from cappuccino.plan import Plan
from cappuccino.timeline import Timeline


class RemainingTime:
    """Compares the optimizer steps of a run with when they were predicted.

    Parameters
    ----------
    plan
        What is run.
    timelines
        By replica of the plan, as predicted; their steps count from those that the plan takes as done.
    num_gpus
        Over which replicas run side by side; None where they run in turn.
    """

    def __init__(self, plan: Plan, timelines: Sequence[Timeline], num_gpus: int | None) -> None:
        self._replicas, self._timelines, self._num_gpus = plan.replicas, timelines, num_gpus
        self._predicted: dict[tuple[str, int], tuple[int, float]] = {}
        for position, (replica, line) in enumerate(zip(plan.replicas, timelines, strict=True)):
            for operation, end in zip(line.programs[-1], line.ends[-1], strict=True):
                if operation[0] == "S":
                    name = replica.adapters[operation[1]]
                    self._predicted[name, operation[2] + plan.done.get(name, 0)] = position, float(end)
        self._begun = [0.0] * len(timelines)
        self._reached = [0.0] * len(timelines)
        self._time_s = 0.0

    @property
    def total_s(self) -> float:
        """What the run is predicted to take, seconds."""
        return self._together([line.makespan for line in self._timelines])

    def note_earlier(self, adapter: str, step: int) -> None:
        """Note that an optimizer step was made by the run that this one goes on from."""
        if (adapter, step) in self._predicted:
            position, predicted = self._predicted[adapter, step]
            self._begun[position] = self._reached[position] = max(self._reached[position], predicted)

    def note(self, adapter: str, step: int, time_s: float) -> None:
        """Note that an optimizer step was made, so many seconds after the run's first operation."""
        position, predicted = self._predicted[adapter, step]
        self._reached[position] = max(self._reached[position], predicted)
        self._time_s = max(self._time_s, time_s)

    def note_stop(self, adapter: str, step: int) -> None:
        """Note that an adapter is stopped instead of making a step: what was predicted of it is not waited for."""
        ends = [(j, s) for (name, j), s in self._predicted.items() if name == adapter and j >= step]
        if ends:
            position, predicted = min(ends)[1]
            self._reached[position] = max(self._reached[position], predicted)

    def seconds(self) -> float:
        """Return what is left of the prediction, times measured over predicted so far."""
        reached = self._together([r - b for r, b in zip(self._reached, self._begun, strict=True)])
        left = self._together([line.makespan - s for line, s in zip(self._timelines, self._reached, strict=True)])
        return left * self._time_s / reached if reached > 0 else left

    def _together(self, times_s: Sequence[float]) -> float:
        """Return how long replicas take that have so much to do each: at least, where they share GPUs."""
        if self._num_gpus is None:
            return sum(times_s)
        work = sum(replica.num_stages * s for replica, s in zip(self._replicas, times_s, strict=True))
        return max(*times_s, work / max(1, self._num_gpus))
