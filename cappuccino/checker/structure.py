"""Rules 2 to 5, of one replica: which samples and operations there are, and in which order they stand."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import pairwise

from cappuccino.checker.violation import Violation
from cappuccino.instance import Instance
from cappuccino.plan import Operation, Replica

_SUBJECTS = {"F": "micro-batch", "B": "micro-batch", "E": "evaluation"}


def samples(replica: Replica, instance: Instance) -> Iterator[Violation]:
    """Rule 2: every sample is in exactly one micro-batch, which holds samples of at most one step per adapter."""
    jobs = [instance.adapters[instance.adapter_index(name)] for name in replica.adapters]
    totals = [
        instance.num_steps(instance.adapter_index(n)) * j.global_batch_size
        for n, j in zip(replica.adapters, jobs, strict=True)
    ]
    seen: Counter[tuple[int, int]] = Counter()
    for m, batch in enumerate(replica.micro_batches):
        at = f"replica {replica.id}, micro-batch {m}"
        step_of: dict[int, int] = {}
        order = [a for a, _ in batch.samples]
        for a, n in batch.samples:
            if a >= len(jobs) or n >= totals[a]:
                yield Violation(2, f"{at}: there is no sample [{a}, {n}]")
                continue
            seen[a, n] += 1
            step = n // jobs[a].global_batch_size
            if step_of.setdefault(a, step) != step:
                yield Violation(2, f'{at}: samples of steps {step_of[a]} and {step} of adapter "{jobs[a].name}"')
        if sum(x != y for x, y in pairwise(order)) + 1 != len(set(order)):
            yield Violation(2, f"{at}: samples are not listed adapter by adapter")
    for (a, n), count in seen.items():
        if count > 1:
            yield Violation(2, f'replica {replica.id}: sample {n} of adapter "{jobs[a].name}" is in {count} places')
    for a, total in enumerate(totals):
        missing = [n for n in range(total) if (a, n) not in seen]
        if missing:
            what = f"sample {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            yield Violation(2, f'replica {replica.id}: {what} of adapter "{jobs[a].name}" in no micro-batch')


def evaluations(replica: Replica, instance: Instance) -> Iterator[Violation]:
    """Rule 2, of evaluations: every sample is evaluated once behind every step that is evaluated."""
    indices = [instance.adapter_index(name) for name in replica.adapters]
    wanted = {
        (a, j): len(instance.evaluation_lengths(i)) for a, i in enumerate(indices) for j in instance.evaluated_steps(i)
    }
    seen: Counter[tuple[int, int, int]] = Counter()
    for e, batch in enumerate(replica.evaluations):
        key = batch.adapter, batch.step
        for n in batch.samples:
            if n >= wanted.get(key, 0):
                at = f"replica {replica.id}, evaluation {e}"
                yield Violation(2, f"{at}: there is no sample {n} to evaluate behind step {key[1]} of adapter {key[0]}")
            seen[(*key, n)] += 1
    for (a, j, n), times in seen.items():
        if times > 1:
            message = f"sample {n} is evaluated {times} times behind step {j} of adapter {a}"
            yield Violation(2, f"replica {replica.id}: {message}")
    for (a, j), number in wanted.items():
        missing = [n for n in range(number) if (a, j, n) not in seen]
        if missing:
            message = f"{len(missing)} samples are not evaluated behind step {j} of adapter {a}"
            yield Violation(2, f"replica {replica.id}: {message}")


def operations(replica: Replica) -> Iterator[Violation]:
    """Rule 3: on every stage every micro-batch has one F and, later, one B, and every evaluation one E."""
    batches, evaluations = len(replica.micro_batches), len(replica.evaluations)
    counts = {"F": batches, "B": batches, "E": evaluations}
    for s, program in enumerate(replica.programs):
        at = f"replica {replica.id}, stage {s}"
        place: dict[str, dict[int, int]] = {kind: {} for kind in counts}
        for i, operation in enumerate(program):
            kind, m = operation[0], operation[1]
            if kind == "S":
                continue
            if m >= counts[kind]:
                yield Violation(3, f"{at}: there is no {_SUBJECTS[kind]} {m}")
            elif m in place[kind]:
                yield Violation(3, f"{at}: {kind} of {_SUBJECTS[kind]} {m} stands twice")
            place[kind].setdefault(m, i)
        for missed, count in counts.items():
            for m in (m for m in range(count) if m not in place[missed]):
                yield Violation(3, f"{at}: {missed} of {_SUBJECTS[missed]} {m} is missing")
        for m in range(batches):
            if m in place["F"] and m in place["B"] and place["B"][m] < place["F"][m]:
                yield Violation(3, f"{at}: B of micro-batch {m} stands before its F")


def steps(replica: Replica, instance: Instance) -> Iterator[Violation]:
    """Rule 4: S of (a, j) stands after every B with samples of (a, j) and before every F with samples of (a, j + 1)."""
    sizes = [instance.adapters[instance.adapter_index(name)].global_batch_size for name in replica.adapters]
    wanted = {
        (a, j)
        for a, name in enumerate(replica.adapters)
        for j in range(instance.num_steps(instance.adapter_index(name)))
    }
    steps = [{(a, n // sizes[a]) for a, n in batch.samples} for batch in replica.micro_batches]
    for s, program in enumerate(replica.programs):
        at = f"replica {replica.id}, stage {s}"
        place: dict[tuple[int, int], int] = {}
        for i, operation in enumerate(program):
            if operation[0] == "S":
                key = (operation[1], operation[2])
                if key not in wanted:
                    yield Violation(4, f"{at}: there is no step {key[1]} of adapter {key[0]}")
                elif key in place:
                    yield Violation(4, f"{at}: S of step {key[1]} of adapter {key[0]} stands twice")
                place.setdefault(key, i)
        for a, j in sorted(wanted - set(place)):
            yield Violation(4, f"{at}: S of step {j} of adapter {a} is missing")
        yield from _evaluation_places(replica, program, place, steps, at)
        for i, operation in enumerate(program):
            if operation[0] in ("S", "E"):
                continue
            for a, j in steps[operation[1]]:
                if operation[0] == "B" and place.get((a, j), i) < i:
                    yield Violation(
                        4, f"{at}: S of step {j} of adapter {a} stands before B of micro-batch {operation[1]}"
                    )
                if operation[0] == "F" and j > 0 and place.get((a, j - 1), i) > i:
                    message = f"F of micro-batch {operation[1]} stands before S of step {j - 1} of adapter {a}"
                    yield Violation(4, f"{at}: {message}")


def _evaluation_places(
    replica: Replica,
    program: Sequence[Operation],
    place: Mapping[tuple[int, int], int],
    steps: Sequence[Set[tuple[int, int]]],
    at: str,
) -> Iterator[Violation]:
    """Rule 4, of the E's of a program: each stands behind S of its step and before every F of the next.

    Parameters
    ----------
    place
        Of S in the program, by step.
    steps
        By micro-batch, the steps that it has samples of.
    at
        Where the program stands.
    """
    next_forward: dict[tuple[int, int], int] = {}
    for i, operation in enumerate(program):
        if operation[0] == "F":
            for a, j in steps[operation[1]]:
                next_forward.setdefault((a, j - 1), i)
    for i, operation in enumerate(program):
        if operation[0] != "E":
            continue
        a, j = replica.evaluations[operation[1]].adapter, replica.evaluations[operation[1]].step
        if place.get((a, j), i) > i:
            yield Violation(4, f"{at}: E of evaluation {operation[1]} stands before S of step {j} of adapter {a}")
        if next_forward.get((a, j), i) < i:
            yield Violation(
                4, f"{at}: E of evaluation {operation[1]} stands behind an F of step {j + 1} of adapter {a}"
            )


def fifo_order(replica: Replica) -> Iterator[Violation]:
    """Rule 5, first half: the F's and E's stand in one order on all stages, and so do the B's."""
    for kinds in (("F", "E"), ("B",)):
        first = [op[:2] for op in replica.programs[0] if op[0] in kinds]
        for s, program in enumerate(replica.programs[1:], start=1):
            order = [op[:2] for op in program if op[0] in kinds]
            if order != first:
                i = next(i for i, (x, y) in enumerate(zip(order, first, strict=True)) if x != y)
                here, there = (f"{kind} of {_SUBJECTS[kind]} {m}" for kind, m in (order[i], first[i]))
                message = f"number {i} among the {' and '.join(kinds)} is {here}, on stage 0 {there}"
                yield Violation(5, f"replica {replica.id}, stage {s}: {message}")
