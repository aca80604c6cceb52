"""The project's marks: plans of a measured A100 table beside the figures that they are to reach.

`python benchmarks/marks.py --data DIR`, where DIR holds `profile_a100_40gb.csv` and `dataset_lengths.json`; by default
the folder beside the checkout that the tests read as well. Every mark is planned in a process of its own and takes its
time limit at most; all of them take forty minutes. `--only` picks some, `--time-factor 0.1` is a quick look.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

from cappuccino.checker import check
from cappuccino.cli.terminal.console import print_table
from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import CappuccinoError, InfeasibleError
from cappuccino.instance import FORMAT, Instance, InstanceFile
from cappuccino.lengths import read_length_distribution
from cappuccino.library.isolation import ProcessError, run_isolated
from cappuccino.plan import Objective, objective_gap
from cappuccino.solvers.settings import DEFAULT, PlannerSettings, with_changes

REFERENCE_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LENGTHS, TABLE = "dataset_lengths.json", "profile_a100_40gb.csv"
GPU, MEMORY_GIB, PRICE_PER_HOUR = "a100-40gb", 40.0, 1.8
QWEN, LLAMA = "Qwen2.5-32B-Instruct", "Llama-2-7b-hf"
BATCHES, MICRO_BATCHES = (8, 16, 4, 8), (1, 2, 4, 1)
BASELINE = "reference"


@dataclass(frozen=True)
class Mark:
    """One instance, what it is planned for, and what is to be reached."""

    name: str
    build: str
    """Which instance, a key of `BUILDERS`."""
    time_limit_s: float
    objective: Objective = Objective.GPU_TIME
    num_stages: int | None = None
    deadline_factor: float | None = None
    """The deadline as a multiple of the makespan that the mark `<build>-makespan` finds."""
    most: float | None = None
    """Largest objective that meets the mark in the fit it was set with."""
    most_gap: float | None = None
    most_first_plan_s: float | None = None
    most_memory_gib: float | None = None
    token_bound: float | None = None
    """Of the fit that the mark was set with, GPU-seconds; given where `most` is."""

    @property
    def most_ratio(self) -> float | None:
        """Largest objective over token bound that meets the mark: fits differ, this ratio should not."""
        return None if self.most is None or self.token_bound is None else self.most / self.token_bound


MARKS = (
    Mark("seed4-qwen32b", "seed4-qwen32b", 60, most=261, most_gap=0.02, token_bound=256.5),
    Mark("seed4-llama7b", "seed4-llama7b", 60, most=79.0, most_gap=0.01, token_bound=78.4),
    Mark("mixed12-qwen32b", "mixed12-qwen32b", 120, most=788, most_gap=0.015, token_bound=781.5),
    Mark("mixed12-llama7b", "mixed12-llama7b", 120, most=243, most_gap=0.015, token_bound=239.2),
    Mark("deep4", "deep4", 120, num_stages=4, most=287, token_bound=256.5),
    Mark("deep6", "deep6", 120, num_stages=6, most=355, token_bound=256.5),
    Mark("full12", "full12", 120, most_gap=0.02, most_first_plan_s=20),
    Mark("mixed12-qwen32b-makespan", "mixed12-qwen32b", 120, objective=Objective.MAKESPAN),
    *(Mark(f"mixed12-within-{f:g}x", "mixed12-qwen32b", 120, deadline_factor=f, most_gap=0.05) for f in (1.2, 1.5, 3)),
    Mark("full12-makespan", "full12", 120, objective=Objective.MAKESPAN),
    *(Mark(f"full12-within-{f:g}x", "full12", 120, deadline_factor=f, most_gap=0.05) for f in (1.2, 1.5, 3)),
    Mark("scale1000", "scale1000", 600, most_gap=0.05, most_memory_gib=8),
    Mark("scale10000", "scale10000", 600, most_gap=0.01, most_memory_gib=8),
)


def dataset_names(data: Path) -> list[str]:
    """Return the datasets of the folder, in file order."""
    return [name for name, _, _ in read_length_distribution(data / LENGTHS).entries]


def seed4(data: Path, backbone: str, gpus: int) -> Instance:
    """Return the seed's example: the first four datasets, alike but for their lengths."""
    adapters = [_adapter(name, name, 8, 2, 10) for name in dataset_names(data)[:4]]
    return _instance(data, backbone, gpus, adapters)


def mixed12(data: Path, backbone: str, steps: int | None) -> Instance:
    """Return all datasets with batches and micro-batches of several sizes; without `steps`, one pass each."""
    sizes = zip(dataset_names(data), cycle(BATCHES), cycle(MICRO_BATCHES), strict=False)
    return _instance(data, backbone, 64, [_adapter(name, name, b, m, steps) for name, b, m in sizes])


def scale(data: Path, backbone: str, gpus: int, count: int, steps: int) -> Instance:
    """Return many adapters that go round the datasets and, a little out of step, the batch sizes."""
    names = dataset_names(data)
    adapters = [
        _adapter(
            f"a{i}",
            names[i % len(names)],
            BATCHES[i % 4 if i % 3 else (i // len(names)) % 4],
            MICRO_BATCHES[i % 4],
            steps,
        )
        for i in range(count)
    ]
    return _instance(data, backbone, gpus, adapters)


BUILDERS: Mapping[str, Callable[[Path], Instance]] = {
    "seed4-qwen32b": lambda data: seed4(data, QWEN, 16),
    "seed4-llama7b": lambda data: seed4(data, LLAMA, 16),
    "mixed12-qwen32b": lambda data: mixed12(data, QWEN, 10),
    "mixed12-llama7b": lambda data: mixed12(data, LLAMA, 10),
    "deep4": lambda data: seed4(data, QWEN, 4),  # as many GPUs as stages: one replica
    "deep6": lambda data: seed4(data, QWEN, 6),
    "full12": lambda data: mixed12(data, QWEN, None),
    "scale1000": lambda data: scale(data, QWEN, 256, 1000, 20),
    "scale10000": lambda data: scale(data, QWEN, 1024, 10_000, 20),
}


def token_bound(instance: Instance, costs: Mapping[str, CostModel]) -> float:
    """Return the sum over all samples of their asymptotic cost on the cheapest pool, GPU-seconds.

    A micro-batch never takes less than the asymptote of its time, which is additive over samples: no plan is below it.
    """
    cheapest = []
    for pool in instance.gpu_pools:
        model = costs[pool.gpu]
        for stages in model.profiled:
            pipeline, total = model.pipeline(stages), 0.0
            for curves in pipeline.curves:
                for curve, share in zip(curves, pipeline.shares.sum(axis=0), strict=True):
                    total += share * sum(
                        float(curve.work(n, n.astype(float) ** 2).sum()) for n in instance.step_lengths
                    )
            cheapest.append(total)
    return min(cheapest)


@dataclass(frozen=True)
class Outcome:
    """What planning a mark gave; the checker has confirmed the plan."""

    adapters: int
    steps: int
    objective: float
    unit: str
    bound: float | None
    gap: float | None
    deadline_s: float | None
    makespan_s: float
    token_bound: float
    """In our fit, GPU-seconds."""
    reference: float | None
    """Of the baseline, in the unit of the objective."""
    reference_note: str
    first_plan_s: float | None
    wall_time_s: float


def run_mark(
    mark: Mark,
    data: Path,
    time_limit_s: float,
    seed: int,
    deadline_s: float | None,
    settings: PlannerSettings = DEFAULT,
) -> Outcome:
    """Plan a mark and the baseline beside it.

    Raises
    ------
    CappuccinoError
        When there is no plan, or the checker refuses it.
    """
    from cappuccino.solvers.planning import PlanOptions, Progress, make_plan  # noqa: PLC0415

    instance = BUILDERS[mark.build](data)
    costs = fit_instance_costs(instance)
    first: list[float] = []
    start = time.perf_counter()

    def on_progress(_: Progress) -> None:
        if not first:
            first.append(time.perf_counter() - start)

    options = PlanOptions(
        objective=mark.objective,
        time_limit_s=time_limit_s,
        deadline_s=deadline_s,
        num_stages=mark.num_stages,
        seed=seed,
        settings=settings,
    )
    plan = make_plan(instance, options, costs, on_progress)
    wall_time_s = time.perf_counter() - start
    check(plan, instance, costs).raise_if_invalid(mark.name)
    reference, note = _reference(mark, instance, costs, deadline_s)
    return Outcome(
        adapters=len(instance.adapters),
        steps=sum(map(len, instance.step_lengths)),
        objective=plan.objective_value,
        unit="s" if mark.objective is Objective.MAKESPAN else "GPU-s",
        bound=plan.lower_bound,
        gap=objective_gap(plan.objective_value, plan.lower_bound),
        deadline_s=deadline_s,
        makespan_s=plan.makespan_s,
        token_bound=token_bound(instance, costs),
        reference=reference,
        reference_note=note,
        first_plan_s=first[0] if first else None,
        wall_time_s=wall_time_s,
    )


def _reference(
    mark: Mark, instance: Instance, costs: Mapping[str, CostModel], deadline_s: float | None
) -> tuple[float | None, str]:
    from cappuccino.solvers.baselines import baseline_plan  # noqa: PLC0415

    if mark.num_stages is not None:
        instance = replace(instance, gpu_pools=(instance.gpu_pools[0].model_copy(update={"count": 16}),))
    try:
        plan = baseline_plan(BASELINE, instance, costs)
    except InfeasibleError as error:
        return None, str(error)
    check(plan, instance, costs).raise_if_invalid(f"{mark.name}, baseline {BASELINE}")
    if deadline_s is not None and plan.makespan_s > deadline_s:
        return None, f"its makespan of {plan.makespan_s:.4g} s misses the deadline"
    value = plan.makespan_s if mark.objective is Objective.MAKESPAN else plan.gpu_time_s
    return value, "at the depths of its own choice" if mark.num_stages is not None else ""


def misses(mark: Mark, outcome: Outcome, memory_gib: float) -> list[str]:
    """Return what the outcome misses of the mark, each with the figure that was to be reached."""
    figures = (
        ("objective over token bound", outcome.objective / outcome.token_bound, mark.most_ratio),
        ("gap", outcome.gap, mark.most_gap),
        ("first plan", outcome.first_plan_s, mark.most_first_plan_s),
        ("memory", memory_gib, mark.most_memory_gib),
    )
    return [
        f"{what} {'none' if found is None else f'{found:.5g}'} > {most:.5g}"
        for what, found, most in figures
        if most is not None and (found is None or found > most)
    ]


def run_marks(
    marks: list[Mark], data: Path, time_factor: float, seed: int, settings: PlannerSettings = DEFAULT
) -> Iterator[tuple[Mark, Outcome | None, float | None, str]]:
    """Yield every mark with its outcome, its peak memory in GiB and what it misses or why it failed."""
    makespans: dict[str, float] = {}
    for mark in marks:
        deadline = None
        if mark.deadline_factor is not None:
            if mark.build not in makespans:
                yield mark, None, None, f"needs the mark {mark.build}-makespan"
                continue
            deadline = mark.deadline_factor * makespans[mark.build]
        try:
            limit = time_factor * mark.time_limit_s
            outcome, memory = run_isolated(run_mark, mark, data, limit, seed, deadline, settings)
        except (CappuccinoError, ProcessError) as error:
            yield mark, None, None, str(error)
            continue
        if mark.objective is Objective.MAKESPAN:
            makespans[mark.build] = outcome.objective
        yield mark, outcome, memory, "; ".join(misses(mark, outcome, memory))


def chosen_marks(only: list[str]) -> list[Mark]:
    """Return the marks of these names in their order, with the makespans that their deadlines are multiples of.

    Raises
    ------
    ValueError
        When there is no mark of a name.
    """
    known = [mark.name for mark in MARKS]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f'there is no mark "{unknown[0]}"; name some of: {", ".join(known)}')
    wanted = set(only or known)
    wanted |= {f"{m.build}-makespan" for m in MARKS if m.name in wanted and m.deadline_factor is not None}
    return [mark for mark in MARKS if mark.name in wanted]


COLUMNS = (
    "mark",
    "to reach",
    "objective",
    "bound",
    "gap",
    "/tokens",
    "ratio to reach",
    "reference",
    "reference/ours",
    "deadline",
    "first plan",
    "wall s",
    "GiB",
    "met",
)
"""`/tokens` is the objective over the token bound of our fit, `ratio to reach` the same of the fit of the mark."""


def table_line(mark: Mark, outcome: Outcome | None, memory_gib: float | None, problem: str) -> list[str]:
    """Return the cells of a mark, by `COLUMNS`."""
    reach = "-" if mark.most is None else f"{mark.most:g}"
    if outcome is None:
        return [mark.name, reach, *["-"] * (len(COLUMNS) - 3), f"FAILED: {problem}"]
    tokens = outcome.unit == "GPU-s"
    reference = None if outcome.reference is None else outcome.reference / outcome.objective
    targets = (mark.most, mark.most_gap, mark.most_first_plan_s, mark.most_memory_gib)
    met = "-" if all(t is None for t in targets) else "yes"
    return [
        mark.name,
        reach,
        f"{_cell(outcome.objective, '.5g')} {outcome.unit}",
        _cell(outcome.bound, ".5g"),
        _cell(outcome.gap, ".2%"),
        _cell(outcome.objective / outcome.token_bound if tokens else None, ".4f"),
        _cell(mark.most_ratio, ".4f"),
        _cell(outcome.reference, ".5g"),
        _cell(reference, ".3f"),
        _cell(outcome.deadline_s, ".5g"),
        _cell(outcome.first_plan_s, ".1f"),
        _cell(outcome.wall_time_s, ".1f"),
        _cell(memory_gib, ".2f"),
        f"no: {problem}" if problem else met,
    ]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _adapter(name: str, dataset: str, batch: int, micro: int, steps: int | None) -> dict[str, object]:
    return {
        "name": name,
        "dataset": dataset,
        "global_batch_size": batch,
        "micro_batch_size": micro,
        "num_steps": steps,
    }


def _instance(data: Path, backbone: str, gpus: int, adapters: list[dict[str, object]]) -> Instance:
    """Return the instance whose files are those of the data folder."""
    document = {
        "format": FORMAT,
        "name": "mark",
        "backbone": backbone,
        "cost_table": TABLE,
        "gpu_pools": [{"gpu": GPU, "count": gpus, "memory_gib": MEMORY_GIB, "price_per_hour": PRICE_PER_HOUR}],
        "max_sequence_length": 4096,
        "datasets": {a["dataset"]: {"file": LENGTHS, "key": a["dataset"]} for a in adapters},
        "adapters": adapters,
    }
    return Instance.from_file_model(InstanceFile.model_validate(document), data / "mark.json")


def main() -> int:
    """Run the marks and print their table; return 1 when one failed, 0 otherwise, met or not."""
    parser = argparse.ArgumentParser(description="Plan the project's marks and print what they reach.")
    parser.add_argument("--data", type=Path, help=f"folder with {TABLE} and {LENGTHS}")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a mark; may be repeated")
    parser.add_argument("--time-factor", type=float, default=1.0, help="factor on the time limits")
    parser.add_argument("--seed", type=int, default=0)
    setting = "a setting of the planner, as scheduling.max_shift=4; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help=setting)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    data = arguments.data or REFERENCE_DATA
    if not (data / TABLE).is_file() or not (data / LENGTHS).is_file():
        message = f"there is no {TABLE} with {LENGTHS} in {data}; name their folder with --data"
        if arguments.data is not None:
            parser.error(message)
        print(f"skipped: {message}", file=sys.stderr)
        return 0
    if arguments.time_factor <= 0:
        parser.error(f"--time-factor {arguments.time_factor}: give a positive number")
    try:
        marks = chosen_marks(arguments.only)
        settings = with_changes(DEFAULT, arguments.changes)
    except (ValueError, CappuccinoError) as error:
        parser.error(str(error))
    results, lines = [], list[list[str]]()
    for mark, outcome, memory, problem in run_marks(marks, data, arguments.time_factor, arguments.seed, settings):
        lines.append(table_line(mark, outcome, memory, problem))
        print("  ".join(lines[-1]), file=sys.stderr)
        figures = {} if outcome is None else asdict(outcome)
        results.append({"mark": asdict(mark), **figures, "peak_memory_gib": memory, "problem": problem})
    if arguments.json:
        print(
            json.dumps({"time_factor": arguments.time_factor, "changes": arguments.changes, "marks": results}, indent=2)
        )
    else:
        print_table(COLUMNS, lines, words={"met"})
    return 1 if any("objective" not in r for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
