"""Random valid plans: packings and orders that no solver would choose, so that nothing depends on a solver's habits."""

import random
from collections import defaultdict
from collections.abc import Iterator

from cappuccino.instance import Instance
from cappuccino.plan import EvaluationBatch, InstanceReference, MicroBatch, Objective, Operation, Plan, Replica, Status

Step = tuple[int, int]


def random_plan(instance: Instance, num_stages: int, seed: int, samples_per_micro_batch: int = 3) -> Plan:
    """Return a valid plan with all adapters in one replica; times and memory are placeholders.

    Micro-batches hold up to `samples_per_micro_batch` samples of any adapters. The order of every stage is drawn
    operation by operation among those that are allowed, without a limit on the micro-batches in flight.
    """
    rng = random.Random(seed)
    micro_batches = list(_random_packing(instance, rng, samples_per_micro_batch))
    evaluations = list(_random_evaluations(instance, rng, samples_per_micro_batch))
    replica = Replica(
        id=0,
        gpu=instance.gpu_pools[0].gpu,
        num_stages=num_stages,
        adapters=tuple(a.name for a in instance.adapters),
        makespan_s=0.0,
        lower_bound_s=None,
        peak_memory_gib=(0.0,) * num_stages,
        micro_batches=tuple(MicroBatch(samples=tuple(samples)) for samples in micro_batches),
        evaluations=tuple(evaluations),
        programs=_random_programs(instance, micro_batches, evaluations, num_stages, rng),
    )
    return _plan(instance, [replica])


def joined(instance: Instance, plans: list[Plan]) -> Plan:
    """Return one plan for `instance` with the replicas of plans for parts of it."""
    replicas = [replica for plan in plans for replica in plan.replicas]
    return _plan(instance, [replica.model_copy(update={"id": i}) for i, replica in enumerate(replicas)])


def _plan(instance: Instance, replicas: list[Replica]) -> Plan:
    return Plan(
        instance=InstanceReference(name=instance.name, sha256=instance.digest),
        objective=Objective.GPU_TIME,
        status=Status.FEASIBLE,
        gpu_time_s=0.0,
        makespan_s=0.0,
        lower_bound=None,
        gap=None,
        solver={},
        replicas=tuple(replicas),
    )


def _random_packing(instance: Instance, rng: random.Random, most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield micro-batches; an adapter's next step starts only in a later micro-batch than its last step ended."""
    batch = [a.global_batch_size for a in instance.adapters]
    step = [0] * len(batch)
    left = [list(range(size)) for size in batch]
    while True:
        todo = [a for a, samples in enumerate(left) if samples]
        if not todo:
            return
        drawn = defaultdict(list)
        for _ in range(rng.randint(1, most)):
            adapter = rng.choice(todo)
            if left[adapter]:
                drawn[adapter].append(left[adapter].pop(rng.randrange(len(left[adapter]))))
        adapters = list(drawn)
        rng.shuffle(adapters)
        yield [(a, n) for a in adapters for n in drawn[a]]
        for a in drawn:
            if not left[a] and step[a] + 1 < instance.num_steps(a):
                step[a] += 1
                left[a] = list(range(step[a] * batch[a], (step[a] + 1) * batch[a]))


def _random_evaluations(instance: Instance, rng: random.Random, most: int) -> Iterator[EvaluationBatch]:
    for a in range(len(instance.adapters)):
        for step in instance.evaluated_steps(a):
            left = list(range(len(instance.evaluation_lengths(a))))
            rng.shuffle(left)
            while left:
                size = rng.randint(1, most)
                yield EvaluationBatch(adapter=a, step=step, samples=tuple(left[:size]))
                left = left[size:]


def _random_programs(
    instance: Instance,
    micro_batches: list[list[tuple[int, int]]],
    evaluations: list[EvaluationBatch],
    num_stages: int,
    rng: random.Random,
) -> tuple[tuple[Operation, ...], ...]:
    """Return one program per stage: a random walk through what the rules allow next."""
    steps_of = [{(a, n // instance.adapters[a].global_batch_size) for a, n in m} for m in micro_batches]
    open_batches: list[dict[Step, set[int]]] = []
    for _ in range(num_stages):
        members: dict[Step, set[int]] = defaultdict(set)
        for m, steps in enumerate(steps_of):
            for step in steps:
                members[step].add(m)
        open_batches.append(members)
    last = num_stages - 1
    programs: list[list[Operation]] = [[] for _ in range(num_stages)]
    forwards: list[list[Operation]] = [[] for _ in range(num_stages)]
    backwards: list[list[int]] = [[] for _ in range(num_stages)]
    stepped: list[set[Step]] = [set() for _ in range(num_stages)]

    def ready(stage: int, operation: Operation) -> bool:
        done = set(forwards[stage])
        if operation[0] == "E":
            batch = evaluations[operation[1]]
            return (batch.adapter, batch.step) in stepped[stage]
        for a, j in steps_of[operation[1]]:
            before = [("E", e) for e, batch in enumerate(evaluations) if (batch.adapter, batch.step) == (a, j - 1)]
            if j and ((a, j - 1) not in stepped[stage] or not done.issuperset(before)):
                return False
        return True

    def allowed(stage: int) -> Iterator[Operation]:
        ran, returned = len(forwards[stage]), len(backwards[stage])
        if stage == 0:
            every = [*(("F", m) for m in range(len(steps_of))), *(("E", e) for e in range(len(evaluations)))]
            yield from (op for op in every if op not in forwards[0] and ready(0, op))
        elif ran < len(forwards[stage - 1]) and ready(stage, forwards[stage - 1][ran]):
            yield forwards[stage - 1][ran]
        if stage == last:
            yield from (("B", m) for kind, m in forwards[last] if kind == "F" and m not in backwards[last])
        elif returned < len(backwards[stage + 1]):
            yield ("B", backwards[stage + 1][returned])
        for (a, j), members in open_batches[stage].items():
            if not members and (a, j) not in stepped[stage]:
                yield ("S", a, j)

    total = num_stages * (2 * len(steps_of) + len(evaluations) + len(open_batches[0]))
    while sum(map(len, programs)) < total:
        choices = [(stage, operation) for stage in range(num_stages) for operation in allowed(stage)]
        stage, operation = rng.choice(choices)
        programs[stage].append(operation)
        if operation[0] in ("F", "E"):
            forwards[stage].append(operation)
        elif operation[0] == "B":
            backwards[stage].append(operation[1])
            for members in open_batches[stage].values():
                members.discard(operation[1])
        else:
            stepped[stage].add((operation[1], operation[2]))
    return tuple(tuple(program) for program in programs)
