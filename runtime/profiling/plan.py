"""The plan that a profile runs: one point after the other, 1F1B with a flush after every optimizer step.

The last optimizer step of all points runs without a flush, in random order: as plans run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.plan import InstanceReference, MicroBatch, Objective, Operation, Plan, Recompute, Replica, Status
from cappuccino.runtime.profiling.grid import Point, ProfileGrid


@dataclass(frozen=True)
class ProfilePlan:
    """Points as adapters of a replica, in their order."""

    instance: Instance
    plan: Plan
    steps: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    """By point and optimizer step but the last, where it begins and ends in the program of every stage."""
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """By point and optimizer step, its micro-batches."""
    mixed: tuple[int, ...]
    """By stage, where the mixed last steps begin."""
    owners: tuple[tuple[int, ...], ...]
    """By point, the positions of its adapters."""

    @property
    def replica(self) -> Replica:
        """The only replica."""
        return self.plan.replicas[0]

    @property
    def pauses(self) -> tuple[tuple[int, ...], ...]:
        """By stage, the operations before which steps begin, the mixed ones included, and the program's end."""
        begins = [[step[s][0] for steps in self.steps for step in steps] for s in range(len(self.mixed))]
        programs = self.replica.programs
        return tuple((*mine, m, len(p)) for mine, m, p in zip(begins, self.mixed, programs, strict=True))

    def point_of(self, stage: int, operation: int) -> int:
        """Return the point that an operation of a stage's program belongs to."""
        kind, number = self.replica.programs[stage][operation][:2]
        if kind == "S":
            return next(p for p, members in enumerate(self.owners) if number in members)
        return next(p for p, steps in enumerate(self.micro_batches) if any(number in step for step in steps))


def profile_plan(
    points: Sequence[Point], grid: ProfileGrid, layers: tuple[int, ...], *, name: str, gpu: str, vocab: int, data: Path
) -> ProfilePlan:
    """Make the plan, and random tokens to train on.

    Parameters
    ----------
    layers
        Decoder layers by stage.
    name, gpu
        Of backbone and GPU type.
    vocab
        Size of the vocabulary that tokens are drawn from.
    data
        Folder for the datasets.
    """
    stages = len(layers)
    adapters, owners = _adapters(points, grid)
    lengths = {}
    rng = np.random.default_rng(0)
    for point, members in zip(points, owners, strict=True):
        job = adapters[members[0]]
        rows = [{"input_ids": ids.tolist()} for ids in rng.integers(0, vocab, (job.global_batch_size, point.length))]
        lengths[job.dataset] = np.full(job.global_batch_size, point.length)
        (data / f"{job.dataset}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = GpuPool(gpu=gpu, count=stages, memory_gib=2**20)
    longest = max(point.length for point in points)
    instance = Instance("profile", name, Path("none"), (pool,), longest, lengths, tuple(adapters), source="profile")

    micro_batches: list[MicroBatch] = []
    programs: list[list[Operation]] = [[] for _ in layers]
    steps, batches_of = [], []
    for members in owners:
        spans, batches = [], []
        for j in range(grid.num_steps):
            first, begins = len(micro_batches), [len(program) for program in programs]
            for k in range(grid.grad_acc_steps):
                samples = []
                for a in members:
                    size = adapters[a].micro_batch_size
                    begin = j * adapters[a].global_batch_size + k * size
                    samples += [(a, begin + n) for n in range(size)]
                micro_batches.append(MicroBatch(samples=tuple(samples)))
            batches.append(tuple(range(first, len(micro_batches))))
            if j < grid.num_steps - 1:
                for s, program in enumerate(programs):
                    program.extend(one_forward_one_backward(batches[-1], stages - s))
                    program.extend(("S", a, j) for a in members)
                spans.append(tuple(zip(begins, map(len, programs), strict=True)))
        steps.append(tuple(spans))
        batches_of.append(tuple(batches))
    mixed = tuple(len(program) for program in programs)
    last = rng.permutation([m for batches in batches_of for m in batches[-1]]).tolist()
    for s, program in enumerate(programs):
        program.extend(one_forward_one_backward(last, stages - s))
        program.extend(("S", a, grid.num_steps - 1) for members in owners for a in members)
    plan = _plan(instance, layers, micro_batches, programs, grid.recompute)
    return ProfilePlan(instance, plan, tuple(steps), tuple(batches_of), mixed, owners)


def _adapters(points: Sequence[Point], grid: ProfileGrid) -> tuple[list[Adapter], tuple[tuple[int, ...], ...]]:
    adapters: list[Adapter] = []
    owners = []
    for p, point in enumerate(points):
        size = point.samples // point.num_adapters
        owners.append(tuple(range(len(adapters), len(adapters) + point.num_adapters)))
        adapters += [
            Adapter(
                name=f"point-{p}-{k}",
                dataset=f"random-{p}",
                global_batch_size=size * grid.grad_acc_steps,
                micro_batch_size=size,
                num_steps=grid.num_steps,
                rank=point.rank,
                target_modules=point.target_modules,
                dropout=point.dropout,
            )
            for k in range(point.num_adapters)
        ]
    return adapters, tuple(owners)


def _plan(
    instance: Instance,
    layers: tuple[int, ...],
    micro_batches: list[MicroBatch],
    programs: list[list[Operation]],
    recompute: Recompute,
) -> Plan:
    replica = Replica(
        id=0,
        gpu=instance.gpu_pools[0].gpu,
        num_stages=len(layers),
        layers_per_stage=layers,
        recompute=recompute,
        adapters=tuple(a.name for a in instance.adapters),
        makespan_s=0.0,
        lower_bound_s=None,
        peak_memory_gib=(0.0,) * len(layers),
        micro_batches=tuple(micro_batches),
        programs=tuple(tuple(program) for program in programs),
    )
    return Plan(
        instance=InstanceReference(name=instance.name, sha256=instance.digest),
        objective=Objective.GPU_TIME,
        status=Status.FEASIBLE,
        gpu_time_s=0.0,
        makespan_s=0.0,
        lower_bound=None,
        gap=None,
        solver={},
        replicas=(replica,),
    )


def one_forward_one_backward(micro_batches: Sequence[int], depth: int) -> list[Operation]:
    """Return a stage's 1F1B order of micro-batches.

    Parameters
    ----------
    depth
        Stages from this one to the last: micro-batches in flight at most.
    """
    ahead = min(depth, len(micro_batches))
    order: list[Operation] = [("F", m) for m in micro_batches[:ahead]]
    for k, m in enumerate(micro_batches):
        order.append(("B", m))
        if k + ahead < len(micro_batches):
            order.append(("F", micro_batches[k + ahead]))
    return order
