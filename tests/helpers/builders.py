"""Tiny instances and cost models with round numbers: a stage takes 1 s per token forward and 2 s per token backward."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from cappuccino.backbone import LayerShape
from cappuccino.costs import CostModel, MemoryModel, SmoothMaximum
from cappuccino.costs.stages import StageParts
from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.plan import InstanceReference, MicroBatch, Objective, Operation, Plan, Replica, Status
from cappuccino.simulator import simulate
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem

R = TypeVar("R", Plan, Replica)
Job = tuple[Sequence[int], int] | tuple[Sequence[int], int, int]
"""Sample lengths, global batch size, optionally the number of steps."""

FORWARD = SmoothMaximum(floor_s=0.0, per_token_s=1.0, per_square_s=0.0, power=2.0)
BACKWARD = SmoothMaximum(floor_s=0.0, per_token_s=2.0, per_square_s=0.0, power=2.0)
MEMORY = MemoryModel(static_gib=10.0, working_gib=1.0, held_gib=1.0)


def make_costs(
    *,
    usable: float | None = None,
    optimizer_s: float = 0.0,
    transfer: tuple[float, float] = (0.0, 0.0),
    forward: SmoothMaximum = FORWARD,
    backward: SmoothMaximum = BACKWARD,
    memory: MemoryModel = MEMORY,
    stages: Sequence[int] = (1, 2, 3, 4),
    gpu: str = "x",
    num_layers: int | None = None,
) -> CostModel:
    """Return a cost model in which every stage of every depth has the given curves.

    `usable` limits the memory to so many GiB; pools of `make_instance` are so large that nothing else limits it.
    """
    return CostModel(
        backbone="b",
        gpu=gpu,
        forward=forward,
        backward=backward,
        memory=dict.fromkeys(stages, memory),
        stage_forward=dict.fromkeys(stages, forward),
        stage_backward=dict.fromkeys(stages, backward),
        optimizer_s=optimizer_s,
        transfer=transfer,
        num_layers=num_layers,
        usable_memory_gib=usable,
    )


def make_instance(
    *jobs: Job,
    gpus: int | Mapping[str, int] = 4,
    prices: Mapping[str, float] | None = None,
    clipped: Sequence[int] = (),
    layout: str = "packed",
) -> Instance:
    """Return an instance of adapters a0, a1, ... on pools of a type "x" (or of the types given)."""
    counts = {"x": gpus} if isinstance(gpus, int) else gpus
    adapters = tuple(
        Adapter(
            name=f"a{i}",
            dataset=f"d{i}",
            global_batch_size=job[1],
            num_steps=job[2] if len(job) == 3 else None,
            max_grad_norm=1.0 if i in clipped else None,
        )
        for i, job in enumerate(jobs)
    )
    pools = tuple(
        GpuPool(gpu=gpu, count=count, memory_gib=1e6, price_per_hour=(prices or {}).get(gpu))
        for gpu, count in counts.items()
    )
    return Instance(
        name="tiny",
        backbone="b",
        cost_table=Path("none.csv"),
        gpu_pools=pools,
        max_sequence_length=10**6,
        dataset_lengths={f"d{i}": np.array(job[0], dtype=np.int64) for i, job in enumerate(jobs)},
        adapters=adapters,
        layout=layout,
    )


def with_adapters(instance: Instance, costs: CostModel, seed: int) -> tuple[Instance, CostModel]:
    """Return them with adapters of random ranks, modules and dropout, and costs that charge for all, also in memory."""
    rng = np.random.default_rng([seed, 1])
    targets = (("q_proj",), ("q_proj", "v_proj"), "all-linear", ("down_proj", "k_proj"))
    adapters = tuple(
        a.model_copy(
            update={
                "rank": int(rng.choice([1, 4, 16])),
                "target_modules": targets[rng.integers(4)],
                "dropout": float(rng.choice([0.0, 0.1])),
            }
        )
        for a in instance.adapters
    )
    rates = {
        "per_module_s": float(rng.choice([0.0, 0.3, 2.0])),
        "per_width_s": float(rng.choice([0.0, 0.01])),
        "per_parameter_s": float(rng.choice([0.0, 0.005])),
        "per_dropped_s": float(rng.choice([0.0, 0.01])),
    }
    forward = {g: replace(c, **rates) for g, c in costs.stage_forward.items()}
    double = {name: 2 * rate for name, rate in rates.items()}
    backward = {g: replace(c, **double) for g, c in costs.stage_backward.items()}
    shape = LayerShape(hidden=4, intermediate=8, query=4, key_value=2)
    # so many layers that the largest adapter takes as much memory as a token
    charged = replace(costs, stage_forward=forward, stage_backward=backward, layer_shape=shape, num_layers=2**16)
    return replace(instance, adapters=adapters), charged


def with_evaluations(instance: Instance, seed: int, most: int = 3) -> Instance:
    """Return the instance with evaluations of most adapters, on up to `most` samples, as long as those trained."""
    rng = np.random.default_rng([seed, 2])
    longest = max(int(x.max()) for x in instance.step_lengths)
    lengths = {f"e{k}": rng.integers(1, longest + 1, int(rng.integers(1, most + 1))) for k in range(2)}
    adapters = tuple(
        a.model_copy(
            update={"eval_dataset": f"e{rng.integers(2)}", "eval_every": [None, 1, 2][rng.integers(3)]}
            if rng.random() < 0.7
            else {}
        )
        for a in instance.adapters
    )
    return replace(instance, adapters=adapters, dataset_lengths={**instance.dataset_lengths, **lengths})


def with_unlike_stages(costs: CostModel, seed: int) -> CostModel:
    """Return the costs with stages of drawn layers, the last with a head besides, each with an input.

    A stage of an even number of layers takes as long as before.
    """
    rng = np.random.default_rng(seed)
    head, entry = float(rng.choice([0.1, 0.5, 2.0])), float(rng.choice([0.0, 0.2]))
    layers = costs.num_layers or 12
    plain = dict.fromkeys(("per_module_s", "per_width_s", "per_parameter_s", "per_dropped_s"), 0.0)
    parts, splits = {}, {}
    for g in costs.memory:
        cuts = np.sort(rng.choice(np.arange(1, layers), g - 1, replace=False))
        splits[g] = tuple(np.diff([0, *cuts, layers]).tolist())
        stage = costs.stage_forward[g], costs.stage_backward[g]
        alone = replace(stage[0], **plain), replace(stage[1], **plain)
        parts[g] = StageParts(
            layer=(stage[0].scaled(g / layers), stage[1].scaled(g / layers)),
            last=(alone[0].scaled(head), alone[1].scaled(head)),
            input_forward=alone[0].scaled(entry),
        )
    return replace(costs, parts=parts, splits=splits, num_layers=layers)


def make_problem(instance: Instance, costs: CostModel, num_stages: int) -> ReplicaProblem:
    """Return the problem of all adapters of an instance in one replica of the first pool."""
    pool = instance.gpu_pools[0]
    return ReplicaProblem(instance, costs, tuple(range(len(instance.adapters))), num_stages, pool.memory_gib)


def make_replica(
    micro_batches: Sequence[Sequence[tuple[int, int]]],
    programs: Sequence[Sequence[Operation]],
    adapters: Sequence[str],
    number: int = 0,
    gpu: str = "x",
) -> Replica:
    """Return a replica with placeholders for times and memory."""
    return Replica(
        id=number,
        gpu=gpu,
        num_stages=len(programs),
        adapters=tuple(adapters),
        makespan_s=0.0,
        lower_bound_s=None,
        peak_memory_gib=(0.0,) * len(programs),
        micro_batches=tuple(MicroBatch(samples=tuple(m)) for m in micro_batches),
        programs=tuple(map(tuple, programs)),
    )


def make_plan(instance: Instance, *replicas: Replica, objective: Objective = Objective.GPU_TIME) -> Plan:
    """Return a plan with placeholders for times, memory and money."""
    return Plan(
        instance=InstanceReference(name=instance.name, sha256=instance.digest),
        objective=objective,
        status=Status.FEASIBLE,
        gpu_time_s=0.0,
        makespan_s=0.0,
        lower_bound=None,
        gap=None,
        solver={},
        replicas=replicas,
    )


def timed(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Plan:
    """Return the plan with the simulator's times, memory and money."""
    found = simulate(plan, instance, costs)
    replicas = tuple(
        changed(r, makespan_s=run.timeline.makespan, peak_memory_gib=run.peak_memory_gib)
        for r, run in zip(plan.replicas, found.replicas, strict=True)
    )
    return changed(plan, replicas=replicas, gpu_time_s=found.gpu_time_s, makespan_s=found.makespan_s, cost=found.cost)


def changed(record: R, **values: object) -> R:
    """Return the plan or replica with other values, validated."""
    return type(record).model_validate({**dict(record), **values})


def parse_programs(*texts: str) -> list[list[Operation]]:
    """Return programs written as `F0 F1 B0 S0.1`."""
    programs: list[list[Operation]] = []
    for text in texts:
        program: list[Operation] = []
        for word in text.split():
            if word[0] == "S":
                a, j = word[1:].split(".")
                program.append(("S", int(a), int(j)))
            else:
                program.append(("F" if word[0] == "F" else "B", int(word[1:])))
        programs.append(program)
    return programs


def with_memory(costs: CostModel, usable: float | None) -> CostModel:
    """Return the costs with another limit of memory, GiB."""
    return replace(costs, usable_memory_gib=usable)
