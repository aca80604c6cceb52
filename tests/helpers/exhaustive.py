"""The least makespan of a replica over all packings and all orders, by trying them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from cappuccino.checker import check
from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import EvaluationBatch
from cappuccino.workload import EvaluationWork, Workload
from helpers.builders import changed, make_plan, make_replica, timed

Packing = list[list[tuple[int, int]]]


def packings(instance: Instance, most_tokens: int) -> Iterator[Packing]:
    """Yield every partition of all samples into micro-batches that hold one step per adapter and fit."""
    samples = [
        (a, n) for a, job in enumerate(instance.adapters) for n in range(instance.num_steps(a) * job.global_batch_size)
    ]

    def fits(batch: list[tuple[int, int]]) -> bool:
        lengths = [instance.sample_length(a, n) for a, n in batch]
        tokens = max(lengths) * len(lengths) if instance.layout == "padded" else sum(lengths)
        return tokens <= most_tokens

    def extend(i: int, batches: Packing) -> Iterator[Packing]:
        if i == len(samples):
            yield [sorted(b) for b in batches]
            return
        a, n = samples[i]
        size = instance.adapters[a].global_batch_size
        for batch in batches:
            if all(b != a or k // size == n // size for b, k in batch) and fits([*batch, (a, n)]):
                batch.append((a, n))
                yield from extend(i + 1, batches)
                batch.pop()
        if fits([(a, n)]):
            batches.append([(a, n)])
            yield from extend(i + 1, batches)
            batches.pop()

    yield from extend(0, [])


def evaluation_packings(instance: Instance) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
    """Yield every way to pack every evaluation: (adapter, step, samples) by micro-batch."""
    choices = []
    for a in range(len(instance.adapters)):
        for j in instance.evaluated_steps(a):
            samples = range(len(instance.evaluation_lengths(a)))
            choices.append([[(a, j, tuple(part)) for part in parts] for parts in parts_of(list(samples))])
    for choice in product(*choices):
        yield [batch for batches in choice for batch in batches]


def parts_of(items: list[int]) -> Iterator[list[list[int]]]:
    """Yield every partition."""
    if not items:
        yield []
        return
    for rest in parts_of(items[1:]):
        yield [[items[0]], *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], [items[0], *part], *rest[i + 1 :]]


def best_programs(work: Workload, costs: CostModel, stages: int, limit: float, best: float):
    """Return the least makespan below `best` and its programs: all schedules, operation by operation in time.

    A branch is cut where a stage's remaining operations alone reach the best makespan.
    """
    count, last = len(work.tokens), stages - 1
    forward, backward, transfer = work.forward_s.tolist(), work.backward_s.tolist(), work.transfer_s.tolist()
    memory = work.memory
    keys = sorted({step for steps in work.steps for step in steps})
    f_end: list[dict[int, float]] = [{} for _ in range(stages)]
    b_end: list[dict[int, float]] = [{} for _ in range(stages)]
    stepped: list[set[tuple[int, int]]] = [set() for _ in range(stages)]
    programs: list[list[tuple]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    evaluations = work.evaluations
    evaluated, evaluation_steps = evaluations.forward_s.tolist(), evaluations.steps
    number = len(evaluation_steps)
    rest = [sum(forward[s]) + sum(backward[s]) + work.optimizer_s * len(keys) for s in range(stages)]
    if number:
        rest = [rest[s] + sum(evaluated[s]) for s in range(stages)]
    found: list[tuple[float, list[list[tuple]]]] = []

    def choices(s: int) -> Iterator[tuple[tuple, float, float]]:
        # what is evaluated stands among the F's, under the complement of its number
        flying = [m for m in f_end[s] if m >= 0 and m not in b_end[s]]
        held = sum(int(work.tokens[m]) for m in flying)
        for e, (a, j) in enumerate(evaluation_steps):
            if ~e in f_end[s] or (a, j) not in stepped[s]:
                continue
            if s and (len(f_end[s - 1]) <= len(f_end[s]) or list(f_end[s - 1])[len(f_end[s])] != ~e):
                continue
            tokens = int(evaluations.tokens[e])
            if memory.static_gib + memory.working_gib * tokens + memory.held_gib * held > limit + 1e-9:
                continue
            arrival = f_end[s - 1][~e] + float(evaluations.transfer_s[e]) if s else 0.0
            yield ("E", e), arrival, evaluated[s][e]
        for m in range(count):
            if m not in f_end[s]:
                if s and (len(f_end[s - 1]) <= len(f_end[s]) or list(f_end[s - 1])[len(f_end[s])] != m):
                    continue
                if any(j and (a, j - 1) not in stepped[s] for a, j in work.steps[m]):
                    continue
                before = {(a, j - 1) for a, j in work.steps[m]}
                if any(step in before and ~e not in f_end[s] for e, step in enumerate(evaluation_steps)):
                    continue
                tokens = int(work.tokens[m])
                if memory.static_gib + memory.working_gib * tokens + memory.held_gib * (held + tokens) > limit + 1e-9:
                    continue
                arrival = f_end[s - 1][m] + transfer[m] if s else 0.0
                yield ("F", m), arrival, forward[s][m]
            elif m not in b_end[s]:
                if s < last and (len(b_end[s + 1]) <= len(b_end[s]) or list(b_end[s + 1])[len(b_end[s])] != m):
                    continue
                if memory.static_gib + memory.working_gib * int(work.tokens[m]) + memory.held_gib * held > limit + 1e-9:
                    continue
                yield ("B", m), (b_end[s + 1][m] + transfer[m] if s < last else f_end[s][m]), backward[s][m]
        for a, j in keys:
            stages_waited_for = range(stages) if a in work.clipped else (s,)
            batches = [(r, m) for m in range(count) if (a, j) in work.steps[m] for r in stages_waited_for]
            if (a, j) not in stepped[s] and all(m in b_end[r] for r, m in batches):
                yield ("S", a, j), max(b_end[r][m] for r, m in batches), work.optimizer_s

    def search(reached: tuple[float, int]) -> None:
        nonlocal best
        if all(len(p) == 2 * count + len(keys) + number for p in programs):
            best = max(free)
            found[:] = [(best, [list(p) for p in programs])]
            return
        for s in range(stages):
            for operation, arrival, length in list(choices(s)):
                start = max(free[s], arrival)
                if (start, s) < reached or start + rest[s] >= best * (1 - 1e-12):
                    continue  # every schedule has one order by start and stage: the others are repetitions
                before = free[s]
                free[s], rest[s] = start + length, rest[s] - length
                programs[s].append(operation)
                place = {"F": f_end[s], "B": b_end[s], "E": f_end[s]}.get(operation[0])
                key = ~operation[1] if operation[0] == "E" else operation[1]
                if place is None:
                    stepped[s].add(operation[1:])
                else:
                    place[key] = free[s]
                search((start, s))
                if place is None:
                    stepped[s].remove(operation[1:])
                else:
                    del place[key]
                programs[s].pop()
                free[s], rest[s] = before, rest[s] + length

    search((0.0, 0))
    return found[0] if found else None


def least_makespan(instance: Instance, costs: CostModel, stages: int) -> float:
    """Return the least makespan of all adapters in one replica of the first pool; infinite where nothing fits.

    The checker has confirmed the plan that reaches it.
    """
    adapters = list(range(len(instance.adapters)))
    limit = costs.memory_limit(instance.gpu_pools[0].memory_gib)
    names = [a.name for a in instance.adapters]
    best, winner = float("inf"), None
    memory = costs.adapter_costs(stages, instance.adapters).beside(costs.memory_model(stages))
    every = product(packings(instance, memory.max_tokens(limit)), list(evaluation_packings(instance)))
    for packing, evaluations in every:
        work = Workload.of_samples(packing, adapters, stages, instance, costs)
        work = replace(work, evaluations=EvaluationWork.of(evaluations, adapters, stages, instance, costs))
        if found := best_programs(work, costs, stages, limit, best):
            best, winner = found[0], make_replica(packing, found[1], names, gpu=costs.gpu)
            batches = [EvaluationBatch(adapter=a, step=j, samples=samples) for a, j, samples in evaluations]
            winner = changed(winner, evaluations=tuple(batches))
    if winner is not None:
        winner = changed(winner, layers_per_stage=costs.layers_per_stage(stages))
        plan = timed(make_plan(instance, winner), instance, {costs.gpu: costs})
        assert check(plan, instance, {costs.gpu: costs}).violations == ()
        assert plan.makespan_s == pytest.approx(best)
    return best
