"""What each method of the planner brings: plans of library entries with one method after the other switched off.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --entry tight4-qwen32b --without "CP-SAT" --time-limit 20 --seeds 3 -o table.md

Every plan is made in a process of its own with the same time limit and seeds, one after the other, so that figures of
one entry are of one machine at about one time. The checker has confirmed every plan.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean

from cappuccino.checker import check
from cappuccino.cli.terminal.console import print_table
from cappuccino.costs import fit_instance_costs
from cappuccino.errors import CappuccinoError
from cappuccino.library.index import SHIPPED, Library
from cappuccino.library.isolation import ProcessError, run_isolated
from cappuccino.solvers.planning import PlanOptions, make_plan
from cappuccino.solvers.settings import DEFAULT, Method, PlannerSettings, with_changes

ALL = "nothing"
"""Name of the planner with all its methods."""


@dataclass(frozen=True)
class Variant:
    """The planner without something."""

    without: str
    changes: tuple[str, ...] = ()
    """Settings, as `with_changes` reads them."""
    method: Method = Method.AUTO

    @property
    def settings(self) -> PlannerSettings:
        """Of the planner."""
        changed = with_changes(DEFAULT, self.changes)
        return replace(changed, scheduling=replace(changed.scheduling, method=self.method))


VARIANTS = (
    Variant(ALL),
    Variant("CP-SAT", method=Method.SEARCH),
    Variant("all but CP-SAT", method=Method.CP_SAT),
    Variant("annealing", ("scheduling.annealing_share=0.0",)),
    Variant("packing in windows", ("scheduling.packed_batches=(0,)",)),
    Variant("CP-SAT on windows", ("scheduling.windows_share=0.0",)),
    Variant("CP-SAT on whole replicas", ("scheduling.whole_samples=0",)),
    Variant("improvement", ("allocation_share=1.0", "allocation_share_by_makespan=1.0")),
    Variant("second allocation", ("second_allocation_share=0.0",)),
    Variant("separation", ("separation_share=0.0",)),
)
ENTRIES = (
    "tiny3-qwen32b",
    "seed4-qwen32b",
    "tight4-qwen32b",
    "tight6-llama70b",
    "uneven6-llama70b",
    "deep8-llama70b",
    "mixed12-qwen32b",
    "mixed12-qwen32b-within-80s",
    "mixed12-qwen32b-makespan",
)
"""By default: the hard ones, and some of each other kind that is planned within seconds."""


@dataclass(frozen=True)
class Outcome:
    """One plan."""

    objective: float
    gap: float | None
    found: dict[str, int]
    """By method, how many of the plan's incumbents it found."""
    brought: dict[str, float]
    """By method, the part of the first incumbent's objective that its incumbents took off."""


def plan_entry(name: str, time_limit_s: float, seed: int, settings: PlannerSettings) -> Outcome:
    """Plan an entry.

    Raises
    ------
    CappuccinoError
        When there is no plan, or the checker refuses it.
    """
    library = Library.load(SHIPPED)
    entry, instance = library.entry(name), library.instance(name)
    costs = fit_instance_costs(instance)
    wanted = entry.options
    options = PlanOptions(wanted.objective, time_limit_s, 0.0, wanted.deadline_s, wanted.num_stages, seed=seed)
    plan = make_plan(instance, replace(options, settings=settings), costs)
    check(plan, instance, costs).raise_if_invalid(name)
    found: dict[str, int] = defaultdict(int)
    brought: dict[str, float] = defaultdict(float)
    first = before = plan.incumbents[0].objective if plan.incumbents else plan.objective_value
    for incumbent in plan.incumbents:
        found[incumbent.method] += 1
        brought[incumbent.method] += (before - incumbent.objective) / first
        before = incumbent.objective
    return Outcome(plan.objective_value, plan.gap, dict(found), dict(brought))


def ratio_table(outcomes: dict[str, dict[str, list[Outcome]]]) -> list[list[str]]:
    """Return a row a variant: by entry the objective over that of the whole planner, and the mean over the entries.

    Parameters
    ----------
    outcomes
        By variant and entry, a plan a seed; those of `ALL` are among them.
    """
    means = {
        variant: {name: geometric_mean(o.objective for o in plans) for name, plans in entries.items()}
        for variant, entries in outcomes.items()
    }
    rows = []
    for variant, values in means.items():
        ratios = {name: value / means[ALL][name] for name, value in values.items() if name in means[ALL]}
        cells = [f"{100 * (ratios[name] - 1):+.2f}%" if name in ratios else "-" for name in means[ALL]]
        mean = f"{100 * (geometric_mean(ratios.values()) - 1):+.2f}%" if ratios else "-"
        rows.append([variant, *cells, mean])
    return rows


def method_table(plans: Sequence[Outcome]) -> list[list[str]]:
    """Return a row a method: incumbents it found in these plans, and what they took off the first one on average."""
    methods = sorted({method for plan in plans for method in plan.found})
    return [
        [
            method,
            str(sum(plan.found.get(method, 0) for plan in plans)),
            f"{100 * sum(plan.brought.get(method, 0.0) for plan in plans) / len(plans):.3f}%",
        ]
        for method in methods
    ]


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", action="append", metavar="NAME", help="of the library; may be repeated")
    names = [variant.without for variant in VARIANTS[1:]]
    parser.add_argument("--without", action="append", choices=names, help="may be repeated; by default each in turn")
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds for each plan")
    parser.add_argument("--seeds", type=int, default=2, help="plans of each entry and variant")
    parser.add_argument("-o", "--output", type=Path, help="also write the tables, as Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.time_limit <= 0 or options.seeds < 1:
        parser.error("--time-limit and --seeds: give positive numbers")
    unknown = set(options.entry or ()) - {entry.name for entry in Library.load(SHIPPED).entries}
    if unknown:
        parser.error(f'--entry: there is no "{min(unknown)}" in the library')
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; return 1 when a plan failed."""
    options = read_options(arguments)
    variants = [v for v in VARIANTS if v.without == ALL or v.without in (options.without or [v.without])]
    outcomes: dict[str, dict[str, list[Outcome]]] = {v.without: {} for v in variants}
    failed = False
    for name in options.entry or ENTRIES:
        for seed in range(options.seeds):
            for variant in variants:
                try:
                    outcome, _ = run_isolated(plan_entry, name, options.time_limit, seed, variant.settings)
                except (CappuccinoError, ProcessError) as error:
                    print(f"{name}, without {variant.without}: {error}", file=sys.stderr)
                    failed = True
                    continue
                outcomes[variant.without].setdefault(name, []).append(outcome)
                gap = "" if outcome.gap is None else f", gap {100 * outcome.gap:.2f}%"
                print(f"{name} {seed} without {variant.without}: {outcome.objective:.2f}{gap}", file=sys.stderr)
    if options.json:
        plans = {v: {n: [asdict(o) for o in found] for n, found in by.items()} for v, by in outcomes.items()}
        print(json.dumps({"time_limit_s": options.time_limit, "seeds": options.seeds, "without": plans}))
        return int(failed)
    everything = [plan for plans in outcomes[ALL].values() for plan in plans]
    tables = [(("without", *outcomes[ALL], "mean"), ratio_table(outcomes))]
    if everything:
        tables.append((("method", "incumbents", "objective taken off"), method_table(everything)))
    for columns, rows in tables:
        print_table(columns, rows)
        print()
    if options.output is not None:
        options.output.write_text("\n\n".join(_markdown(columns, rows) for columns, rows in tables) + "\n")
    return int(failed)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
