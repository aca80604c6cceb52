"""The cost of scale: how long planning takes and what gap it reaches, against adapters and against steps.

`python docs/scale.py` rewrites `scale.csv` and `scale.svg` beside this script; `--quick -o FOLDER` takes a minute.
Every point is planned in a process of its own, so that its peak memory is its own.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cappuccino import __version__, instances
from cappuccino.errors import CappuccinoError
from cappuccino.files import write_atomically
from cappuccino.instance import Instance, InstanceFile
from cappuccino.instances.building import DATASETS, instance, pool, short_adapter
from cappuccino.library.isolation import ProcessError, run_isolated
from cappuccino.plan import objective_gap
from cappuccino.reports.plot import Axis, Panel, Series, line_charts

BACKBONE, GPU = "Qwen2.5-32B-Instruct", "a100-40gb"
ADAPTERS, STEPS = (4, 12, 30, 100, 300, 1000), (10, 50, 200, 1000, 2000)
QUICK_ADAPTERS, QUICK_STEPS, QUICK_LIMIT_S = (4, 12), (10, 50), 5.0
STEPS_OF_ALL_ADAPTERS, ADAPTERS_OF_ALL_STEPS = 10, 12
"""What stays while the other changes."""
BATCHES, MICRO_BATCHES = (8, 16, 4, 8), (1, 2, 4, 1)
GPUS_PER_ADAPTER, FEWEST_GPUS, MOST_GPUS = 4, 16, 256


@dataclass(frozen=True)
class Point:
    """One instance planned; the columns of `scale.csv`."""

    adapters: int
    steps: int
    """Of every adapter."""
    gpus: int
    samples: int | None = None
    time_limit_s: float | None = None
    first_plan_s: float | None = None
    """Until a first plan was found."""
    target_gap: float | None = None
    time_to_gap_s: float | None = None
    """Until a plan within the target gap was found; None: never."""
    wall_time_s: float | None = None
    """Of planning and checking as a whole."""
    gpu_time_s: float | None = None
    lower_bound_s: float | None = None
    gap: float | None = None
    """At the time limit, or where planning stopped before it."""
    peak_memory_gib: float | None = None
    cpus: int | None = None
    version: str | None = None
    error: str | None = None


def gpus_for(adapters: int) -> int:
    """Return how many GPUs an instance has."""
    return min(MOST_GPUS, max(FEWEST_GPUS, GPUS_PER_ADAPTER * adapters))


def build_instance(adapters: int, steps: int) -> Instance:
    """Return an instance over the shipped lengths and costs: every dataset in turn, batches of several sizes."""
    names = islice(cycle(DATASETS), adapters)
    sizes = zip(names, cycle(BATCHES), cycle(MICRO_BATCHES), strict=False)
    jobs = [short_adapter(f"{name}-{i}", name, batch, micro, steps) for i, (name, batch, micro) in enumerate(sizes)]
    document = instance(f"{adapters}-adapters-{steps}-steps", BACKBONE, pool(GPU, gpus_for(adapters)), jobs)
    return Instance.from_file_model(InstanceFile.model_validate(document), Path(instances.__file__))


def measure(adapters: int, steps: int, time_limit_s: float, target_gap: float, seed: int) -> Point:
    """Plan one instance; peak memory is for the caller to add."""
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    loaded = build_instance(adapters, steps)
    first_plan_s: float | None = None
    time_to_gap_s: float | None = None

    def on_progress(state: Progress) -> None:
        nonlocal first_plan_s, time_to_gap_s
        gap = objective_gap(state.objective, state.bound)
        if first_plan_s is None:
            first_plan_s = state.elapsed_s
        if time_to_gap_s is None and gap is not None and gap <= target_gap:
            time_to_gap_s = state.elapsed_s

    begin = time.monotonic()
    plan = make_plan(loaded, PlanOptions(time_limit_s=time_limit_s, seed=seed), on_progress=on_progress)
    wall_time_s = time.monotonic() - begin
    if time_to_gap_s is None and plan.gap is not None and plan.gap <= target_gap:
        time_to_gap_s = wall_time_s
    return Point(
        adapters=adapters,
        steps=steps,
        gpus=gpus_for(adapters),
        samples=sum(lengths.size for lengths in loaded.step_lengths),
        time_limit_s=time_limit_s,
        first_plan_s=first_plan_s,
        target_gap=target_gap,
        time_to_gap_s=time_to_gap_s,
        wall_time_s=wall_time_s,
        gpu_time_s=plan.gpu_time_s,
        lower_bound_s=plan.lower_bound,
        gap=plan.gap,
        cpus=os.cpu_count(),
        version=__version__,
    )


def panels(points: Sequence[Mapping[str, Any]], target_gap: float) -> list[Panel]:
    """Return times, gaps and memory against adapters on the left, against steps on the right."""
    fixed = {"adapters": ("steps", STEPS_OF_ALL_ADAPTERS), "steps": ("adapters", ADAPTERS_OF_ALL_STEPS)}
    times = {"first_plan_s": "first plan", "time_to_gap_s": f"gap of {100 * target_gap:g}%", "wall_time_s": "end"}
    result = []
    for kind in ("time", "gap", "memory"):
        for varied, (name, value) in fixed.items():
            chosen = sorted((p for p in points if p[name] == value), key=lambda p: p[varied])
            x = [p[varied] for p in chosen]
            unit = "per adapter" if varied == "steps" else ""
            axis, where = Axis(f"{varied} {unit}".strip(), log=True), f"{value} {name}"
            if kind == "time":
                drawn = [Series(label, x, [p[column] for p in chosen]) for column, label in times.items()]
                result.append(Panel(f"Time to plan, {where}", axis, Axis("s", log=True), drawn))
            elif kind == "gap":
                gaps = [None if p["gap"] is None else 100 * p["gap"] for p in chosen]
                result.append(Panel(f"Gap, {where}", axis, Axis("%", zero=True), [Series("gap at the end", x, gaps)]))
            else:
                memory = [p["peak_memory_gib"] for p in chosen]
                result.append(Panel(f"Memory, {where}", axis, Axis("GiB", zero=True), [Series("peak", x, memory)]))
    return result


def write(folder: Path, points: Sequence[Point], target_gap: float) -> None:
    """Write the table and the plot."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
    writer.writeheader()
    rows = [asdict(p) for p in points]
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomically(folder / "scale.csv", text.getvalue())
    write_atomically(folder / "scale.svg", line_charts(panels(rows, target_gap), columns=2))


def main() -> int:
    """Measure all points; exit 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, help="seconds per point (default: 60)")
    parser.add_argument("--gap", type=float, default=0.02, help="gap whose time is measured (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few and small points, 5 s each")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of scale.csv and .svg")
    options = parser.parse_args()
    if not options.output.is_dir():
        parser.error(f"there is no folder {options.output}")
    adapters, steps = (QUICK_ADAPTERS, QUICK_STEPS) if options.quick else (ADAPTERS, STEPS)
    limit_s = options.time_limit if options.time_limit is not None else QUICK_LIMIT_S if options.quick else 60.0
    sizes = [(a, STEPS_OF_ALL_ADAPTERS) for a in adapters] + [(ADAPTERS_OF_ALL_STEPS, j) for j in steps]
    points: list[Point] = []
    for a, j in sorted(set(sizes), key=lambda size: (size[0] * size[1], size)):
        print(f"{a} adapters of {j} steps: ", end="", file=sys.stderr, flush=True)
        try:
            point, memory = run_isolated(measure, a, j, limit_s, options.gap, options.seed)
            point = Point(**{**asdict(point), "peak_memory_gib": memory})
            gap = "no bound" if point.gap is None else f"gap {100 * point.gap:.2f}%"
            print(f"{point.wall_time_s:.1f} s, {gap}, {memory:.2f} GiB", file=sys.stderr)
        except (CappuccinoError, ProcessError) as error:
            point = Point(a, j, gpus_for(a), time_limit_s=limit_s, target_gap=options.gap, error=str(error))
            print(f"failed: {error}", file=sys.stderr)
        points.append(point)
        write(options.output, points, options.gap)
    return int(any(p.error for p in points))


if __name__ == "__main__":
    sys.exit(main())
