"""Measures a backbone on this machine: every grid point is an adapter of a plan that the runtime runs.

So what is measured is what a plan will later do, communication between stages included.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cappuccino.errors import InputError
from cappuccino.files import write_atomically
from cappuccino.instance import Adapter, GpuPool, Instance
from cappuccino.plan import (
    InstanceReference,
    MicroBatch,
    Objective,
    Operation,
    Plan,
    Replica,
    Status,
    even_layers,
)
from cappuccino.runtime.backbone_config import read_backbone_shape
from cappuccino.runtime.launch import RunResult, run_plan

Progress = Callable[[float, str], None]
RANK = 16
DATASET = "random"


@dataclass(frozen=True)
class ProfileGrid:
    """Which points are measured: every number of tokens that is a multiple of a sequence length, at every depth."""

    num_stages: tuple[int, ...] = (1, 2)
    tokens: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Tokens of a micro-batch."""
    sequence_lengths: tuple[int, ...] = (32, 128, 512)
    grad_acc_steps: int = 4
    """Micro-batches of an optimizer step."""
    repeats: int = 3
    """Optimizer steps measured per point, after one to warm up."""

    def __post_init__(self) -> None:
        for option, values in (
            ("--num-stages", self.num_stages),
            ("--tokens", self.tokens),
            ("--sequence-lengths", self.sequence_lengths),
            ("grad_acc_steps", (self.grad_acc_steps,)),
            ("repeats", (self.repeats,)),
        ):
            if not values or min(values) < 1:
                raise InputError(option, "", f"{list(values)} is not allowed", "give positive integers")
            if len(set(values)) < len(values):
                raise InputError(option, "", f"{list(values)} names a value twice", "name each once")

    def points(self) -> list[tuple[int, int]]:
        """Return (samples of a micro-batch, sequence length) by ascending tokens: memory only ever grows on the way.

        Raises
        ------
        InputError
            When a number of tokens or a length would be left out.
        """
        pairs = [(t // n, n) for t in sorted(self.tokens) for n in sorted(self.sequence_lengths) if t % n == 0]
        for option, values, used in (
            ("--tokens", self.tokens, {k * n for k, n in pairs}),
            ("--sequence-lengths", self.sequence_lengths, {n for _, n in pairs}),
        ):
            unused = sorted(set(values) - used)
            if unused:
                problem = f"{unused[0]} is in no point: a micro-batch holds whole samples"
                raise InputError(option, "", problem, "give tokens that are multiples of a sequence length")
        return pairs


def profile_backbone(
    backbone: Path,
    output: Path,
    *,
    name: str,
    gpu: str,
    grid: ProfileGrid,
    device: str = "cpu",
    dtype: str = "float32",
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure a backbone and write its cost table, whole or not at all.

    Parameters
    ----------
    name
        Of the backbone in the table; instances refer to it.
    gpu
        Of this machine's devices in the table.
    on_progress
        Called with the fraction done and what is being done.

    Returns
    -------
    pandas.DataFrame
        The table: the seed's columns and, per micro-batch on the slowest stage, `forward_time_s` and
        `backward_time_s`; per adapter and step `optimizer_time_s`; per micro-batch and link `transfer_time_s`.

    Raises
    ------
    InputError
        When the backbone cannot be run, or has fewer layers than the grid has stages; nothing was measured.
    RunError
        When a measurement failed.
    """
    shape = read_backbone_shape(backbone)
    points = grid.points()
    if max(grid.num_stages) > shape.num_layers:
        problem = f"{max(grid.num_stages)} stages for {shape.num_layers} layers"
        raise InputError("--num-stages", "", problem, "profile fewer stages")
    rows: list[dict[str, object]] = []
    for done, stages in enumerate(grid.num_stages):

        def show(operations: int, total: int, done: int = done, stages: int = stages) -> None:
            if on_progress:
                fraction = (done + operations / total) / len(grid.num_stages)
                on_progress(fraction, f"{stages} stages, {operations} of {total} operations")

        with tempfile.TemporaryDirectory(prefix="cappuccino-profile-") as folder:
            instance = _instance(points, grid, name, gpu, Path(folder), shape.vocab_size)
            plan = _plan(instance, grid, stages, even_layers(shape.num_layers, stages))
            data, out = Path(folder), Path(folder) / "out"
            result = run_plan(plan, instance, backbone, data, out, device=device, dtype=dtype, on_progress=show)
        common = {"param_name": name, "model_path": name, "pp_size": stages, "world_size": stages}
        extra = {"gpu": gpu, "source": "measured", "num_layers": shape.num_layers, "device": device, "dtype": dtype}
        for i, (samples, length) in enumerate(points):
            measured = _measure(plan.replicas[0], result, i, grid)
            rows.append({**common, "tasknum": len(rows) + 1, **_row(samples, length, stages, grid, measured), **extra})
    table = pd.DataFrame(rows)
    write_atomically(output, table.to_csv(index=False, float_format="%.6g"))
    return table


def _instance(
    points: list[tuple[int, int]], grid: ProfileGrid, name: str, gpu: str, folder: Path, vocabulary: int
) -> Instance:
    """Make one adapter per grid point, and random tokens to train on."""
    rng = np.random.default_rng(0)
    adapters, lengths = [], {}
    for i, (samples, length) in enumerate(points):
        dataset = f"{DATASET}-{i}"
        batch = samples * grid.grad_acc_steps
        adapters.append(
            Adapter(
                name=f"point-{i}",
                dataset=dataset,
                global_batch_size=batch,
                micro_batch_size=samples,
                num_steps=grid.repeats + 1,
                rank=RANK,
            )
        )
        lengths[dataset] = np.full(batch, length)
        rows = [{"input_ids": ids.tolist()} for ids in rng.integers(0, vocabulary, (batch, length))]
        (folder / f"{dataset}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = GpuPool(gpu=gpu, count=max(grid.num_stages), memory_gib=2**20)
    longest = max(length for _, length in points)
    return Instance("profile", name, Path("none"), (pool,), longest, lengths, tuple(adapters), source="profile")


def _plan(instance: Instance, grid: ProfileGrid, stages: int, layers: tuple[int, ...]) -> Plan:
    """Return a plan that runs one grid point after the other: 1F1B, all stages empty after every optimizer step."""
    micro_batches: list[MicroBatch] = []
    programs: list[list[Operation]] = [[] for _ in range(stages)]
    for a, adapter in enumerate(instance.adapters):
        for j in range(grid.repeats + 1):
            first = len(micro_batches)
            for k in range(grid.grad_acc_steps):
                begin = j * adapter.global_batch_size + k * adapter.micro_batch_size
                samples = tuple((a, begin + n) for n in range(adapter.micro_batch_size))
                micro_batches.append(MicroBatch(samples=samples))
            for s, program in enumerate(programs):
                order = one_forward_one_backward(first, grid.grad_acc_steps, stages - s)
                program.extend([*order, ("S", a, j)])
    replica = Replica(
        id=0,
        gpu=instance.gpu_pools[0].gpu,
        num_stages=stages,
        layers_per_stage=layers,
        adapters=tuple(a.name for a in instance.adapters),
        makespan_s=0.0,
        lower_bound_s=None,
        peak_memory_gib=(0.0,) * stages,
        micro_batches=tuple(micro_batches),
        programs=tuple(tuple(p) for p in programs),
    )
    return Plan(
        instance=InstanceReference(name=instance.name, sha256=instance.digest),
        objective=Objective.GPU_TIME,
        status=Status.FEASIBLE,
        gpu_time_s=0.0,
        makespan_s=0.0,
        lower_bound_s=None,
        gap=None,
        solver={},
        replicas=(replica,),
    )


def one_forward_one_backward(first: int, count: int, depth: int) -> list[Operation]:
    """Return a stage's 1F1B order of `count` micro-batches from `first` on.

    Parameters
    ----------
    depth
        Stages from this one to the last: micro-batches in flight at most.
    """
    ahead = min(depth, count)
    order: list[Operation] = [("F", first + m) for m in range(ahead)]
    for m in range(count):
        order.append(("B", first + m))
        if m + ahead < count:
            order.append(("F", first + m + ahead))
    return order


@dataclass(frozen=True)
class _Measured:
    """Medians over the repeats of one point, seconds and GiB."""

    step_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    transfer_s: float
    peak_gib: float


def _measure(replica: Replica, result: RunResult, point: int, grid: ProfileGrid) -> _Measured:
    line = result.timelines[0]
    stages = replica.num_stages
    operations_per_step = 2 * grid.grad_acc_steps + 1
    begin = point * (grid.repeats + 1) * operations_per_step
    steps: list[float] = []
    transfers: list[float] = []
    durations: dict[str, list[list[float]]] = {kind: [[] for _ in range(stages)] for kind in "FBS"}
    at = [{op: i for i, op in enumerate(program)} for program in replica.programs]
    for j in range(1, grid.repeats + 1):
        span = slice(begin + j * operations_per_step, begin + (j + 1) * operations_per_step)
        steps.append(max(float(e[span][-1]) for e in line.ends) - min(float(s[span][0]) for s in line.starts))
        for s, program in enumerate(replica.programs):
            for operation, start, end in zip(program[span], line.starts[s][span], line.ends[s][span], strict=True):
                durations[operation[0]][s].append(float(end - start))
        own = [op[1] for op in replica.programs[0][span] if op[0] == "F"]
        for s in range(stages - 1):
            # the next stage is idle before a step's first F, and this one before its last B: only the link delays them
            forward, backward = at[s]["F", own[0]], at[s + 1]["F", own[0]]
            transfers.append(float(line.starts[s + 1][backward] - line.ends[s][forward]))
            forward, backward = at[s + 1]["B", own[-1]], at[s]["B", own[-1]]
            transfers.append(float(line.starts[s][backward] - line.ends[s + 1][forward]))
    slowest = {kind: max(float(np.median(d)) for d in by_stage) for kind, by_stage in durations.items()}
    last = begin + (grid.repeats + 1) * operations_per_step - 1
    return _Measured(
        step_s=float(np.median(steps)),
        forward_s=slowest["F"],
        backward_s=slowest["B"],
        optimizer_s=slowest["S"],
        transfer_s=max(0.0, float(np.median(transfers))) if transfers else 0.0,
        peak_gib=max(float(memory[last]) for memory in result.memory_gib[replica.id]),
    )


def _row(samples: int, length: int, stages: int, grid: ProfileGrid, measured: _Measured) -> dict[str, object]:
    tokens = samples * length * grid.grad_acc_steps
    rate = tokens / measured.step_s
    return {
        "global_bsz": samples * grid.grad_acc_steps,
        "micro_bsz": samples,
        "grad_acc_steps": grid.grad_acc_steps,
        "seqlen": length,
        "rank": RANK,
        "max_steps": grid.repeats + 1,
        "num_samples": samples * grid.grad_acc_steps * (grid.repeats + 1),
        "peak_memory_mb": measured.peak_gib * 1024,
        "throughput_per_gpu_tok_s": rate / stages,
        "total_throughput_tok_s": rate,
        "tokens_per_step": tokens,
        "time_per_step_s": measured.step_s,
        "status": "OK",
        "held_micro_batches": min(stages, grid.grad_acc_steps),
        "forward_time_s": measured.forward_s,
        "backward_time_s": measured.backward_s,
        "optimizer_time_s": measured.optimizer_s,
        "transfer_time_s": measured.transfer_s,
    }
