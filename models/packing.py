"""Which samples share a micro-batch: bin packing with convex times in CP-SAT.

Work and times are integers of a grid chosen by the caller.
"""

from dataclasses import dataclass

from ortools.sat.python import cp_model

from cappuccino.models.cp_sat import limited_solver


@dataclass(frozen=True)
class PackingData:
    """Samples to be packed into consecutive micro-batches."""

    work: tuple[int, ...]
    """By sample."""
    tokens: tuple[int, ...]
    """By sample."""
    current: tuple[int, ...]
    """By sample, the micro-batch it is in now: the hint."""
    num_batches: int
    max_tokens: int
    """Of a micro-batch."""
    time_tangents: tuple[tuple[int, int, int], ...]
    """(a, b, d): `d x time >= a x work + b` supports the convex time of a micro-batch from below."""
    preference: tuple[tuple[int, ...], ...]
    """By sample and micro-batch, a cost in the unit of time for being there."""


class PackingModel:
    """CP-SAT model of one packing; empty micro-batches are dropped by the caller."""

    def __init__(self, data: PackingData) -> None:
        self.data = data
        self.model = cp_model.CpModel()
        samples, batches = range(len(data.work)), range(data.num_batches)
        self._in = {(i, b): self.model.new_bool_var(f"in[{i},{b}]") for i in samples for b in batches}
        self._used = [self.model.new_bool_var(f"used[{b}]") for b in batches]
        horizon = self._longest_time()
        self._time = [self.model.new_int_var(0, horizon, f"time[{b}]") for b in batches]
        for i in samples:
            for b in batches:
                self.model.add_hint(self._in[i, b], int(data.current[i] == b))
        self._every_sample_once()
        self._memory_fits()
        self._times_follow_work()
        self._minimise()

    def _longest_time(self) -> int:
        total = sum(self.data.work)
        return max(-(-(a * total + b) // d) for a, b, d in self.data.time_tangents)

    def _every_sample_once(self) -> None:
        """`sum over b of in[i,b] = 1`, and a micro-batch with a sample is used."""
        for i in range(len(self.data.work)):
            self.model.add_exactly_one(self._in[i, b] for b in range(self.data.num_batches))
        for (_, b), inside in self._in.items():
            self.model.add_implication(inside, self._used[b])

    def _memory_fits(self) -> None:
        """`sum over i of tokens_i in[i,b] <= max_tokens`."""
        for b in range(self.data.num_batches):
            tokens = sum(n * self._in[i, b] for i, n in enumerate(self.data.tokens))
            self.model.add(tokens <= self.data.max_tokens)

    def _times_follow_work(self) -> None:
        """`d x time[b] >= a x work of b + b0` for every tangent of the convex time, in used micro-batches."""
        for b in range(self.data.num_batches):
            work = sum(w * self._in[i, b] for i, w in enumerate(self.data.work))
            for slope, offset, scale in self.data.time_tangents:
                self.model.add(scale * self._time[b] >= slope * work + offset).only_enforce_if(self._used[b])

    def _minimise(self) -> None:
        """Total time of the micro-batches, plus the preferences."""
        cost = sum(self._time)
        cost += sum(c * self._in[i, b] for i, row in enumerate(self.data.preference) for b, c in enumerate(row) if c)
        self.model.minimize(cost)

    def solve(self, *, time_limit_s: float | None, deterministic_limit: float, seed: int) -> list[int] | None:
        """Return the micro-batch of every sample, None when none is found in time.

        Parameters
        ----------
        time_limit_s
            Wall-clock limit; None leaves only the deterministic one.
        deterministic_limit
            Limit in CP-SAT's deterministic seconds.
        """
        solver = limited_solver(time_limit_s=time_limit_s, deterministic_limit=deterministic_limit, seed=seed)
        if solver.solve(self.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        batches = range(self.data.num_batches)
        return [next(b for b in batches if solver.value(self._in[i, b])) for i in range(len(self.data.work))]
