"""The best order of operations by trying them all, sharing no code with the solvers but the micro-batches themselves.

A schedule is an order of the F's and one of the B's, common to all stages, and on every stage an interleaving of the
two. Every stage works through its list, each operation as soon as its input is there.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations, product

from cappuccino.solvers.scheduling.replica_problem import Batch, ReplicaProblem

Program = tuple[int, ...]
"""Operations of a stage: k for the F of micro-batch k, ~k for its B."""


def best_schedule(
    problem: ReplicaProblem, batches: Sequence[Batch], *, cautious: bool = False
) -> tuple[float, list[Program]]:
    """Return the least makespan, without the optimizer steps at the end, and the programs that reach it.

    `cautious` counts the largest micro-batch as running at every moment, whatever runs.
    """
    best, programs, kinds = float("inf"), list[Program](), problem.kinds.tolist()
    numbers = range(len(batches))
    for forwards in permutations(numbers):
        for backwards in permutations(numbers):
            allowed = [
                program
                for program in interleavings(forwards, backwards)
                if keeps_steps(batches, program) and fits(problem, batches, program, cautious)
            ]
            for candidate in product(allowed, repeat=problem.num_stages):
                time = makespan(batches, candidate, kinds)
                if time < best:
                    best, programs = time, list(candidate)
    return best, programs


def interleavings(forwards: Sequence[int], backwards: Sequence[int]) -> Iterator[Program]:
    """Yield every merger of the two orders in which each B stands after its F."""
    if not backwards:
        yield ()
        return
    if forwards:
        for rest in interleavings(forwards[1:], backwards):
            yield (forwards[0], *rest)
    if backwards[0] not in forwards:
        for rest in interleavings(forwards, backwards[1:]):
            yield (~backwards[0], *rest)


def keeps_steps(batches: Sequence[Batch], program: Program) -> bool:
    """Return whether every F stands after all B's of the steps before its own."""
    for i, operation in enumerate(program):
        if operation >= 0:
            before = {(a, j - 1) for a, j in batches[operation].steps}
            if any(before & set(batches[~later].steps) for later in program[i:] if later < 0):
                return False
    return True


def fits(problem: ReplicaProblem, batches: Sequence[Batch], program: Program, cautious: bool) -> bool:
    """Return whether the memory holds what is in flight at every moment."""
    flying: set[int] = set()
    limit = problem.costs.memory_limit(problem.memory_gib) + 1e-6
    largest = max(b.tokens for b in batches)
    alone = max(float(problem.memory.peak(b.tokens, b.tokens)) for b in batches)
    for operation in program:
        k = operation if operation >= 0 else ~operation
        flying.add(k)
        held = sum(batches[m].tokens for m in flying)
        running = largest if cautious else batches[k].tokens
        if float(problem.memory.peak(running, held)) > limit and not (cautious and len(flying) == 1 and alone <= limit):
            return False
        if operation < 0:
            flying.remove(k)
    return True


def makespan(batches: Sequence[Batch], programs: Sequence[Program], kinds: Sequence[int]) -> float:
    """Return when the last operation ends; infinite where the programs wait for each other.

    `kinds` are those of the stages.
    """
    ends: list[dict[int, float]] = [{} for _ in programs]
    free = [0.0] * len(programs)
    going = True
    while going:
        going = False
        for s, program in enumerate(programs):
            while len(ends[s]) < len(program):
                operation = program[len(ends[s])]
                batch = batches[operation if operation >= 0 else ~operation]
                source = s - 1 if operation >= 0 else s + 1
                if source in (-1, len(programs)):
                    arrival = 0.0
                elif operation in ends[source]:
                    arrival = ends[source][operation] + batch.transfer_s
                else:
                    break
                durations = batch.forward_s if operation >= 0 else batch.backward_s
                free[s] = ends[s][operation] = max(free[s], arrival) + durations[kinds[s]]
                going = True
    done = all(len(e) == len(p) for e, p in zip(ends, programs, strict=True))
    return max(free) if done else float("inf")
