"""What is left of a plan, or of an instance to plan anew, when the first optimizer steps of its adapters are done."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.plan import InstanceReference, MicroBatch, Operation, Plan, Replica


def remaining_replica(replica: Replica, instance: Instance, done: Mapping[str, int]) -> Replica | None:
    """Return what a replica has still to run.

    Samples of finished steps leave their micro-batches, and micro-batches without samples, steps that are done and
    adapters without steps go, on all stages alike. What stays keeps its order and the numbers of its steps and samples:
    whatever an operation waits for it waited for before, so that no deadlock comes in.

    Parameters
    ----------
    replica
        Of a valid plan. Makespan and memory of the result are still those of the whole; its bound and savings are gone.
    instance
        That of the plan.
    done
        Optimizer steps done by adapter; those of other replicas do not matter, adapters not named have done none.

    Returns
    -------
    Replica or None
        None where nothing is left.

    Raises
    ------
    ValueError
        When more steps are done than an adapter has.
    """
    first = [done.get(name, 0) for name in replica.adapters]
    if not any(first):
        return replica
    indices = [instance.adapter_index(name) for name in replica.adapters]
    sizes = [instance.adapters[i].global_batch_size for i in indices]
    left = []
    for position, (name, i) in enumerate(zip(replica.adapters, indices, strict=True)):
        steps = instance.num_steps(i)
        if not 0 <= first[position] <= steps:
            raise ValueError(f'adapter "{name}" has {steps} steps, {first[position]} cannot be done')
        if first[position] < steps:
            left.append(position)
    if not left:
        return None
    moved = {old: new for new, old in enumerate(left)}
    batches: dict[int, MicroBatch] = {}
    numbers: dict[int, int] = {}
    for m, batch in enumerate(replica.micro_batches):
        samples = tuple((moved[a], n) for a, n in batch.samples if n // sizes[a] >= first[a])
        if samples:
            numbers[m] = len(batches)
            batches[m] = MicroBatch(samples=samples)

    # a checkpoint is of the moment before its step is evaluated
    evaluations = {
        e: x for e, x in enumerate(replica.evaluations) if x.adapter in moved and x.step >= first[x.adapter] - 1
    }
    evaluation_numbers = {e: new for new, e in enumerate(evaluations)}

    def kept(operation: Operation) -> Operation | None:
        if operation[0] == "S":
            _, a, j = operation
            return ("S", moved[a], j) if j >= first[a] else None
        if operation[0] == "E":
            return ("E", evaluation_numbers[operation[1]]) if operation[1] in evaluations else None
        if operation[1] not in numbers:
            return None
        m = numbers[operation[1]]
        return ("F", m) if operation[0] == "F" else ("B", m)

    programs = tuple(tuple(op for o in program if (op := kept(o)) is not None) for program in replica.programs)
    return replica.model_copy(
        update={
            "adapters": tuple(replica.adapters[a] for a in left),
            "lower_bound_s": None,
            "micro_batches": tuple(batches.values()),
            "evaluations": tuple(x.model_copy(update={"adapter": moved[x.adapter]}) for x in evaluations.values()),
            "programs": programs,
            "savings": None,
        }
    )


def remaining_instance(instance: Instance, done: Mapping[str, int]) -> Instance:
    """Return the instance that is left: adapters with steps to do, which begin where they have come to.

    Its steps and samples count from 0, so that it is planned, checked and simulated like any other; `planned_onwards`
    gives a plan of it the numbers of the whole.

    Parameters
    ----------
    done
        Optimizer steps done by adapter; those not named have done none.

    Raises
    ------
    InputError
        When nothing is left, or more is done than an adapter has.
    """
    unknown = sorted(done.keys() - {job.name for job in instance.adapters})
    if unknown:
        problem = f'steps of "{unknown[0]}" are done, which is not among them'
        raise InputError(instance.source, "adapters", problem, "take the instance that was run")
    lengths, left = dict(instance.dataset_lengths), []
    for i, job in enumerate(instance.adapters):
        first, steps = done.get(job.name, 0), instance.num_steps(i)
        if first > steps:
            problem = f'adapter "{job.name}" has {steps} steps, {first} are done'
            raise InputError(instance.source, f"adapters[{i}].num_steps", problem, "take the instance that was run")
        if first == steps:
            continue
        # a dataset of its own, which begins where the adapter has come to
        begin = first * job.global_batch_size % len(instance.dataset_lengths[job.dataset])
        dataset = f"{job.dataset}+{begin}" if begin else job.dataset
        lengths[dataset] = np.roll(instance.dataset_lengths[job.dataset], -begin)
        left.append(job.model_copy(update={"dataset": dataset, "num_steps": steps - first}))
    if not left:
        raise InputError(instance.source, "adapters", "all steps are done", "there is nothing to plan")
    begun = {job.name: instance.begun.get(job.name, 0) + done.get(job.name, 0) for job in left}
    return replace(instance, dataset_lengths=lengths, adapters=tuple(left), begun=begun)


def planned_onwards(plan: Plan, instance: Instance, done: Mapping[str, int]) -> Plan:
    """Return a plan of the `remaining_instance` with the numbers of the whole one, and what it takes as done."""
    return _moved(plan, instance, done, 1).model_copy(
        update={
            "instance": InstanceReference(name=instance.name, sha256=instance.digest),
            "done": {job.name: done[job.name] for job in instance.adapters if done.get(job.name)},
        }
    )


def planned_alone(plan: Plan, instance: Instance) -> tuple[Plan, Instance]:
    """Return a plan and its instance as if the steps that the plan takes as done had never been.

    Whoever knows only whole plans checks and simulates these. Plans without such steps are returned as they are.

    Raises
    ------
    InputError
        As of `remaining_instance`.
    """
    if not plan.done:
        return plan, instance
    left = remaining_instance(instance, plan.done)
    # a plan of another instance stays one
    digest = left.digest if plan.instance.sha256 == instance.digest else plan.instance.sha256
    reference = plan.instance.model_copy(update={"sha256": digest})
    return _moved(plan, instance, plan.done, -1).model_copy(update={"instance": reference, "done": {}}), left


def _moved(plan: Plan, instance: Instance, done: Mapping[str, int], sign: int) -> Plan:
    """Return a plan whose steps and samples count on from, or less, those that are done."""
    batch = {job.name: job.global_batch_size for job in instance.adapters}

    def replica_moved(replica: Replica) -> Replica:
        steps = [sign * done.get(name, 0) for name in replica.adapters]
        samples = [step * batch.get(name, 0) for name, step in zip(replica.adapters, steps, strict=True)]

        def shifted(number: int, shifts: list[int], adapter: int) -> int:
            moved = number + (shifts[adapter] if adapter < len(shifts) else 0)
            if moved < 0:
                name = replica.adapters[adapter]
                problem = f'is of adapter "{name}" before the {done[name]} steps that the plan takes as done'
                raise InputError("plan", f"replicas[{replica.id}]", f"sample or step {number} {problem}", "plan again")
            return moved

        batches = tuple(
            MicroBatch(samples=tuple((a, shifted(n, samples, a)) for a, n in b.samples)) for b in replica.micro_batches
        )
        programs = tuple(
            tuple(("S", op[1], shifted(op[2], steps, op[1])) if op[0] == "S" else op for op in program)
            for program in replica.programs
        )
        evaluations = tuple(
            x.model_copy(update={"step": shifted(x.step, steps, x.adapter)}) for x in replica.evaluations
        )
        return replica.model_copy(update={"micro_batches": batches, "evaluations": evaluations, "programs": programs})

    return plan.model_copy(update={"replicas": tuple(map(replica_moved, plan.replicas))})
