"""The list scheduler a second time: as literally as its rules are stated, in plain Python, sharing no code with it.

Rules. All stages run the F's in the order given, and so the B's. Whichever stage can start an operation first does so,
the foremost of those that tie. A stage that could start a B and an F takes the B unless that would start later than
the F by more than the patience, the urgency of the B counting for it and that of the F against it. An F of the first
stage waits for all B's there of the steps before its own. Each step's first F on a stage waits for one optimizer step.
An F is let in when the memory would hold the largest micro-batch running while all of them are in flight, and always
where nothing is. What is evaluated has an F only, which waits for the B's of its step and its optimizer step; it is
never in flight.
"""

from collections.abc import Sequence

from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem

Moment = tuple[float, int]
"""Start, operation (k or ~k)."""


class NaivePipeline:
    """The stages of a replica, working through an order of micro-batches."""

    def __init__(self, problem: ReplicaProblem, order: Sequence[Batch], patience_s: float) -> None:
        self.problem, self.order, self.patience_s = problem, order, patience_s
        self.stages = range(problem.num_stages)
        self.operations: list[list[int]] = [[] for _ in self.stages]
        self.ends: list[dict[int, float]] = [{} for _ in self.stages]
        """By stage and operation."""

    def run(self) -> tuple[tuple[tuple[int, ...], ...], float] | None:
        """Return operations by stage and makespan, None when no stage can go on."""
        self.backwards = [k for k, b in enumerate(self.order) if b.evaluation is None]
        """Ranks that have a B."""
        while any(len(done) < len(self.order) + len(self.backwards) for done in self.operations):
            candidates = [(moment[0], s, moment[1]) for s in self.stages if (moment := self.next_of(s)) is not None]
            if not candidates:
                return None
            start, s, operation = min(candidates)
            batch = self.order[operation if operation >= 0 else ~operation]
            self.operations[s].append(operation)
            durations = batch.forward_s if operation >= 0 else batch.backward_s
            self.ends[s][operation] = start + durations[self.problem.kinds[s]]
        makespan = max(max(ends.values(), default=0.0) for ends in self.ends)
        return tuple(map(tuple, self.operations)), makespan

    def free(self, s: int) -> float:
        return self.ends[s][self.operations[s][-1]] if self.operations[s] else 0.0

    def next_of(self, s: int) -> Moment | None:
        """Return what stage s would do next and when."""
        forward, backward = self.forward_of(s), self.backward_of(s)
        if forward is None or backward is None:
            return backward or forward
        patience = self.patience_s + self.order[~backward[1]].urgency_s
        late = backward[0] - patience > forward[0] - self.order[forward[1]].urgency_s
        return forward if late else backward

    def forward_of(self, s: int) -> Moment | None:
        k = sum(op >= 0 for op in self.operations[s])
        if k == len(self.order) or not self.fits(s, k):
            return None
        batch = self.order[k]
        if s == 0:
            before = {(a, j - 1) for a, j in batch.steps} if batch.evaluation is None else {batch.evaluation[:2]}
            needed = [m for m, b in enumerate(self.order) if before & set(b.steps)]
            if any(~m not in self.ends[0] for m in needed):
                return None
        elif k not in self.ends[s - 1]:
            return None
        begun = {step for b in self.order[:k] for step in b.steps}
        stepped = {b.evaluation[:2] for b in self.order[:k] if b.evaluation is not None}
        waits = [
            step for step in batch.steps if step[1] and step not in begun and (step[0], step[1] - 1) not in stepped
        ]
        if batch.evaluation is not None and batch.evaluation[:2] not in stepped:
            waits.append(batch.evaluation[:2])
        start = self.free(s) + self.problem.costs.optimizer_s * len(waits)
        return (max(start, self.ends[s - 1][k] + batch.transfer_s) if s else start), k

    def backward_of(self, s: int) -> Moment | None:
        done = sum(op < 0 for op in self.operations[s])
        if done == len(self.backwards) or self.backwards[done] not in self.ends[s]:
            return None
        k = self.backwards[done]
        if s == self.stages[-1]:
            return self.free(s), ~k
        if ~k not in self.ends[s + 1]:
            return None
        return max(self.free(s), self.ends[s + 1][~k] + self.order[k].transfer_s), ~k

    def fits(self, s: int, k: int) -> bool:
        flying = [m for m in self.backwards if m < k and m in self.ends[s] and ~m not in self.ends[s]]
        if not flying:
            return True
        held = sum(self.order[m].tokens for m in flying)
        if self.order[k].evaluation is not None:
            need = self.problem.memory.peak(self.order[k].tokens, held)
        else:
            tokens = [self.order[m].tokens for m in (*flying, k)]
            need = self.problem.memory.peak(max(tokens), sum(tokens))
        return bool(need <= self.problem.costs.memory_limit(self.problem.memory_gib) + 1e-6)
