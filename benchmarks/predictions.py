"""Predicted against measured time: profile a backbone, plan workloads that the table has not seen, run them.

    python benchmarks/predictions.py --backbone DIR -o FOLDER

What is in FOLDER already is used again, so a table measured once serves several calls. Every run is compared with the
simulation of its plan; the difference is split by cause, as `cappuccino simulate --against` does, and the computing
is stated by stage.

    python benchmarks/predictions.py --heavy-head --workload head --layers auto --layers even --time-budget 5

makes a backbone whose head takes as long as many layers, and plans with layers by stage of the planner's choice, and
with as many on every stage.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cappuccino.backbone import read_backbone_shape
from cappuccino.checker import check
from cappuccino.costs import fit_instance_costs
from cappuccino.instance import Instance
from cappuccino.plan import Plan, Recompute
from cappuccino.reports.prediction_error import ReplicaComparison, compare_with_trace
from cappuccino.runtime.backbone.tiny import build_tiny_backbone
from cappuccino.runtime.launch.local import run_plan
from cappuccino.runtime.profiling.grid import ProfileGrid
from cappuccino.runtime.profiling.profiler import profile_backbone
from cappuccino.solvers.layer_split import LayerSplit
from cappuccino.solvers.planning import PlanOptions, make_plan
from cappuccino.timeline import read_trace

GPU, MAX_LENGTH = "cpu", 512
CAUSES = ("machine_s", "compute_s", "optimizer_s", "transfer_s", "waiting_s")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
WORKLOADS: dict[str, list[tuple[Any, ...]]] = {
    "small": [  # median length, deviation of its logarithm, global batch, steps, rank, targets, clipped, dropout
        (60, 0.5, 8, 12, 8, ["q_proj", "v_proj"], None, 0.0),
        (90, 0.4, 8, 12, 16, ATTENTION, None, 0.0),
        (140, 0.6, 4, 12, 32, "all-linear", None, 0.0),
        (45, 0.3, 16, 9, 16, "all-linear", 1.0, 0.0),
    ],
    "long": [
        (260, 0.4, 4, 12, 16, ATTENTION, None, 0.0),
        (180, 0.5, 4, 14, 64, ["q_proj", "v_proj"], 1.0, 0.0),
        (40, 0.7, 12, 14, 8, "all-linear", None, 0.0),
    ],
    "eight": [
        (60, 0.5, 4, 8, 4, ["q_proj", "v_proj"], None, 0.05),
        (90, 0.4, 4, 8, 8, ATTENTION, None, 0.05),
        (140, 0.6, 2, 8, 16, "all-linear", None, 0.05),
        (45, 0.3, 8, 6, 32, "all-linear", 1.0, 0.05),
        (260, 0.4, 2, 6, 64, ATTENTION, None, 0.05),
        (30, 0.5, 8, 10, 48, ["q_proj", "v_proj"], None, 0.05),
        (180, 0.5, 3, 6, 24, ["gate_proj", "up_proj", "down_proj"], 1.0, 0.05),
        (75, 0.6, 6, 5, 12, "all-linear", None, 0.05),
    ],
    "head": [
        (40, 0.5, 4, 4, 8, ["q_proj", "v_proj"], None, 0.0),
        (70, 0.4, 3, 4, 16, ATTENTION, None, 0.0),
        (55, 0.6, 4, 3, 32, "all-linear", None, 0.0),
        (90, 0.3, 2, 5, 4, ATTENTION, 1.0, 0.0),
    ],
}
HEAVY_HEAD = {"vocab_size": 128_000, "hidden": 1024, "layers": 8, "heads": 8, "kv_heads": 4}


def write_workload(name: str, folder: Path, backbone: Path, table: Path, stages: int, scale: float) -> Instance:
    """Write instance and data of a workload: lengths drawn once and for all, random tokens."""
    rng = np.random.default_rng(sum(map(ord, name)))
    vocab = read_backbone_shape(backbone).vocab
    datasets, adapters = {}, []
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for i, (middle, spread, batch, full, rank, targets, clip, dropout) in enumerate(WORKLOADS[name]):
        steps = max(1, round(full * scale))
        lengths = np.clip(np.exp(rng.normal(np.log(middle), spread, batch * steps)), 8, MAX_LENGTH).astype(int).tolist()
        rows = [json.dumps({"input_ids": rng.integers(0, vocab, n).tolist()}) for n in lengths]
        (folder / "data" / f"d{i}.jsonl").write_text("\n".join(rows) + "\n")
        datasets[f"d{i}"] = {"lengths": lengths}
        adapters.append(
            {
                "name": f"a{i}",
                "dataset": f"d{i}",
                "global_batch_size": batch,
                "num_steps": steps,
                "rank": rank,
                "target_modules": targets,
                "max_grad_norm": clip,
                "dropout": dropout,
            }
        )
    content = {
        "format": "cappuccino.instance/1",
        "name": name,
        "backbone": "profiled",
        "cost_table": str(table.resolve()),
        "gpu_pools": [{"gpu": GPU, "count": stages, "memory_gib": 8.0}],
        "max_sequence_length": MAX_LENGTH,
        "datasets": datasets,
        "adapters": adapters,
    }
    (folder / "instance.json").write_text(json.dumps(content))
    return Instance.load(folder / "instance.json")


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="folder of the backbone; by default a tiny one is made")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/predictions"))
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the optimizer steps")
    parser.add_argument("--tokens", default="64,128,256,512,1024", help="of the profile's micro-batches")
    parser.add_argument("--sequence-lengths", default="32,128,512", help="of the profile's samples")
    parser.add_argument("--time-limit", type=float, default=15.0, help="seconds for each plan")
    parser.add_argument("--recompute", choices=[mode.value for mode in Recompute], default="none")
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append", help="by default all")
    parser.add_argument("--layers", choices=[split.value for split in LayerSplit], action="append", help="by stage")
    parser.add_argument("--heavy-head", action="store_true", help="make a backbone of 8 layers and 128,000 tokens")
    parser.add_argument("--time-budget", type=float, help="minutes for the profile; by default the whole grid")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print one line a run and the medians."""
    options = read_options(arguments)
    out: Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    mode = Recompute(options.recompute)
    backbone, table = options.backbone or out / "backbone", out / f"table-{mode.value}.csv"
    if not backbone.exists():
        build_tiny_backbone(backbone, **(HEAVY_HEAD if options.heavy_head else {}))
    if not table.exists():
        tokens, lengths = (
            tuple(int(n) for n in text.split(",")) for text in (options.tokens, options.sequence_lengths)
        )
        grid = ProfileGrid(num_stages=(options.stages,), tokens=tokens, sequence_lengths=lengths)
        seconds = None if options.time_budget is None else 60 * options.time_budget
        named = {"name": "profiled", "gpu": GPU, "grid": grid, "recompute": (mode,), "time_budget_s": seconds}
        profile_backbone(backbone, table, again=True, **named)
    for name, split in product(options.workload or WORKLOADS, options.layers or [LayerSplit.AUTO.value]):
        folder = out / f"{name}-{mode.value}-{split}"
        instance = write_workload(name, folder, backbone, table, options.stages, options.scale)
        costs = fit_instance_costs(instance)
        if (folder / "plan.json").exists() and check(Plan.load(folder / "plan.json"), instance, costs).valid:
            plan = Plan.load(folder / "plan.json")
        else:
            limits = PlanOptions(
                time_limit_s=options.time_limit, num_stages=options.stages, gap=0.01, layers=LayerSplit(split)
            )
            plan = make_plan(instance, limits, costs)
            check(plan, instance, costs).raise_if_invalid("plan")
            plan.save(folder / "plan.json")
        ratios, causes, memory, by_stage, makespans = [], [], [], [], []
        for k in range(options.runs):
            result = run_plan(plan, instance, backbone, folder / "data", folder / "out")
            timelines, _, digest = read_trace(result.trace)
            compared = compare_with_trace(plan, instance, costs, timelines, digest, result.trace)
            longest = max(compared, key=lambda c: c.measured.makespan)
            ratios.append(longest.difference)
            peaks = [(max(result.peak_memory_gib(r.id)), max(r.peak_memory_gib)) for r in plan.replicas]
            memory.append(max(measured / expected - 1 for measured, expected in peaks))
            predicted = longest.predicted.makespan
            makespans.append(longest.measured.makespan)
            by_stage.append(stage_differences(longest))
            causes.append([getattr(longest.causes, cause) / predicted for cause in CAUSES])
            parts = ", ".join(f"{c[:-2]} {100 * x:+.1f}%" for c, x in zip(CAUSES, causes[-1], strict=True))
            both = f"predicted {predicted:.2f} s, measured {longest.measured.makespan:.2f} s"
            print(f"{name} {k}: {both}, {100 * ratios[-1]:+.1f}% ({parts})", flush=True)
        by_cause = zip(CAUSES, zip(*causes, strict=True), strict=True)
        middle = ", ".join(f"{c[:-2]} {100 * median(x):+.1f}%" for c, x in by_cause)
        of_runs = f"median {100 * median(ratios):+.1f}% of {options.runs} runs ({middle})"
        print(f"{name}, recompute {mode.value}: {of_runs}, peak memory {100 * median(memory):+.1f}%")
        for replica in plan.replicas:
            layers = "+".join(map(str, replica.layers_per_stage or ()))
            stages = ", ".join(f"{100 * median(x):+.1f}%" for x in zip(*by_stage, strict=True))
            print(f"  layers {layers}: predicted {replica.makespan_s:.2f} s, measured {median(makespans):.2f} s")
            print(f"  computing by stage, measured over predicted: {stages}")
    return 0


def stage_differences(compared: ReplicaComparison) -> list[float]:
    """Return by stage how much longer all forwards and backwards took than predicted, as a fraction."""
    totals = np.zeros((2, len(compared.replica.programs)))
    for errors in compared.operations:
        if errors.kind != "S":
            totals[:, errors.stage] += errors.predicted_s, errors.measured_s
    return (totals[1] / totals[0] - 1).tolist()


if __name__ == "__main__":
    sys.exit(main())
