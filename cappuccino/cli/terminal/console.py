"""What commands print: results on stdout, as text or as one JSON object; progress and warnings on stderr."""

import json
import math
import sys
import textwrap
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from cappuccino.errors import InputError, InvalidPlanError, counted

if TYPE_CHECKING:
    from cappuccino.checker import CheckReport
    from cappuccino.plan import Plan

PAUSE_S = 10.0
"""Between two lines about progress where stderr is a file, seconds."""
WIDEST = 10_000
"""Columns of text that a table may take: a terminal wraps what is too long for it, a file holds it all."""
LEAST_FIGURE = 1e-9
"""Below it a number is what rounding leaves of 0."""
MOST_ADAPTERS_LISTED = 16
"""Adapters up to which each gets a line of its own."""
WIDTH = 80
"""Columns that lines of prose and plans keep to, on terminals of any width and in files."""
INDENT = 12
"""Columns of the headings before such lines."""
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one machine-readable object on stdout.")]

_state = {"quiet": False}


def be_quiet(quiet: bool) -> None:
    """Leave out progress, notes and warnings from now on, or no longer; errors and results stay."""
    _state["quiet"] = quiet


QuietFlag = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=be_quiet, help="Print errors and results only: no progress, no warnings."),
]


class Show(Protocol):
    """Moves a progress bar: fraction done, and what to say beside it."""

    def __call__(self, fraction: float, text: str) -> None:
        """Show this state."""


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; what JSON has no number for, such as the loss of a diverged run, is null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_quiet() -> bool:
    """Return whether progress, notes and warnings are left out."""
    return _state["quiet"]


def note(message: str) -> None:
    """Print what is going on, on stderr, unless the command is to be quiet."""
    if not is_quiet():
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Print a warning on stderr, unless the command is to be quiet."""
    note(f"warning: {message}")


def answer(message: str) -> None:
    """Print on stderr what an interruption does, to who interrupted, quiet or not."""
    print(message, file=sys.stderr, flush=True)


def print_entry(heading: str, text: str) -> None:
    """Print a text behind a heading on stdout, in lines of `WIDTH` columns; words wider than that stay whole."""
    print_wrapped(text, f"{heading:<{INDENT - 1}} ", " " * INDENT)


def print_wrapped(text: str, first: str, others: str) -> None:
    """Print a text on stdout in lines of `WIDTH` columns; words wider than that stay whole.

    Parameters
    ----------
    first, others
        What the first line begins with, and what all others do.
    """
    wrapper = textwrap.TextWrapper(WIDTH, first, others, break_long_words=False, break_on_hyphens=False)
    print(wrapper.fill(text))


def figure(value: float) -> str:
    """Return a number in three digits; what is left of rounding where there is nothing is 0."""
    return f"{value:.3g}" if abs(value) >= LEAST_FIGURE else "0"


def quiet_transformers() -> None:
    """Leave the progress bars to this program."""
    import warnings  # noqa: PLC0415

    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def end_invalid(path: Path, report: "CheckReport") -> None:
    """Say on stderr that the plan just reported is invalid, and exit 1; return when it is valid."""
    try:
        report.raise_if_invalid(path)
    except InvalidPlanError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def integers(option: str, text: str, count: int | None = None, least: int = 0) -> list[int]:
    """Return the integers of a comma-separated list.

    Raises
    ------
    InputError
        When the text is no such list, an integer is below `least`, or there are not `count` of them.
    """
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(option, "", f'"{text}" is no list of integers', "separate integers by commas") from None
    if count is not None and len(values) != count:
        raise InputError(option, "", f'"{text}" has {len(values)} integers, not {count}', "give one per adapter")
    if min(values) < least:
        raise InputError(option, "", f'"{text}" has {min(values)}', f"give integers of at least {least}")
    return values


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> None:
    """Print a table on stdout: cells on one line each whatever the width of the terminal, figures to the right.

    Parameters
    ----------
    words
        Columns of words, which stand to the left, as the first one does.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for k, name in enumerate(columns):
        right = k > 0 and name not in words
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, width=WIDEST, highlight=False)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


@contextmanager
def progress_bar(title: str) -> Iterator[Show]:
    """Show a progress bar on stderr while the context lasts; where that is no terminal, a line now and then."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
    last, said = "", time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=is_quiet() or not console.is_terminal) as progress:
        task = progress.add_task(title, total=1.0, text="")

        def show(fraction: float, text: str) -> None:
            nonlocal last, said
            last = text
            progress.update(task, completed=min(1.0, fraction), text=text)
            if not console.is_terminal and time.monotonic() - said >= PAUSE_S:
                said = time.monotonic()
                note(f"{title}: {100 * min(1.0, fraction):.0f}%, {text}")

        yield show
    if last:
        note(f"{title}: {last}")


def objective_unit(objective: str) -> str:
    """Return the unit of an objective."""
    return {"gpu_time": "GPU-s", "makespan": "s", "cost": "money"}[objective]


def plan_summary(plan: "Plan", report: "CheckReport") -> dict[str, Any]:
    """Return what is to be said of every plan: objective, bound, gap, status and the checker's word."""
    return {
        "objective": plan.objective.value,
        "value": plan.objective_value,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "status": plan.status.value,
        "checked": report.valid,
        "certified": report.bound.certified,
        "certificate": {"reason": report.bound.reason, "proven": report.bound.proven},
        "gpu_time_s": plan.gpu_time_s,
        "makespan_s": plan.makespan_s,
        "cost": plan.cost,
        "replicas": [
            {
                "id": r.id,
                "gpu": r.gpu,
                "num_stages": r.num_stages,
                "adapters": list(r.adapters),
                "layers_per_stage": None if r.layers_per_stage is None else list(r.layers_per_stage),
                "micro_batches": len(r.micro_batches),
                "evaluations": len(r.evaluations),
                "makespan_s": r.makespan_s,
                "lower_bound_s": r.lower_bound_s,
                "peak_memory_gib": list(r.peak_memory_gib),
                "savings": None if r.savings is None else [s.model_dump() for s in r.savings],
            }
            for r in plan.replicas
        ],
        "sharing": _sharing(plan),
        "incumbents": [found.model_dump() for found in plan.incumbents],
    }


def _sharing(plan: "Plan") -> dict[str, Any] | None:
    from cappuccino.reports.sharing import sharing_summary  # noqa: PLC0415

    found = sharing_summary(plan)
    return None if found is None else {**asdict(found), "ratio": found.ratio}


def print_plan(plan: "Plan", report: "CheckReport") -> None:
    """Print the summary of a plan as text."""
    unit = objective_unit(plan.objective.value)
    gap = "none" if plan.gap is None else f"{100 * plan.gap:z.2f}%"
    checked = "checked: valid" if report.valid else f"checked: INVALID ({report.violations[0]})"
    print(f"objective   {plan.objective.value} {plan.objective_value:.4g} {unit}")
    print(f"bound       {_bound(plan, report)}")
    print(f"gap         {gap}, {plan.status.value}, {checked}")
    for r in plan.replicas:
        adapters = ", ".join(r.adapters)
        memory = "/".join(f"{m:.1f}" for m in r.peak_memory_gib)
        stages = f"{r.num_stages} x {r.gpu}"
        mode = "" if r.recompute is None else f", recompute {r.recompute.value}"
        layers = r.layers_per_stage or ()
        split = f", layers {'+'.join(map(str, layers))}" if layers and max(layers) - min(layers) > 1 else ""
        batches = counted(len(r.micro_batches), "micro-batch", "micro-batches")
        batches += f" and {len(r.evaluations)} of evaluations" if r.evaluations else ""
        size = f"{r.makespan_s:.4g} s, {batches}, {memory} GiB{mode}{split}"
        print_entry(f"replica {r.id}", f"{stages}, {size}: {adapters}")
    _print_sharing(plan)


def _bound(plan: "Plan", report: "CheckReport") -> str:
    if plan.lower_bound is None:
        return "none"
    word = f" (proven {report.bound.reason})" if report.bound.certified else f", {report.bound}"
    return f"{plan.lower_bound:.4g} {objective_unit(plan.objective.value)}{word}"


def _print_sharing(plan: "Plan") -> None:
    from cappuccino.reports.sharing import SEPARATE_AND_SEQUENTIAL, sharing_summary  # noqa: PLC0415

    found = sharing_summary(plan)
    if found is None:
        return
    if found.separate is not None and found.shared is not None:
        of = "all adapters" if found.compared == found.adapters else counted(found.compared, "adapter")
        saved = f"{100 * (1 - found.shared / found.separate):z.1f}%" if found.separate > 0 else "nothing"
        separate, shared = f"{found.separate:.4g} {found.unit}", f"{found.shared:.4g}"
        print_entry("sharing", f"separate runs of {of} {separate}, here {shared}: saves {saved}")
        print_wrapped(f"({SEPARATE_AND_SEQUENTIAL})", " " * INDENT, " " * INDENT)
    if found.evaluated < found.adapters:
        print_entry("sharing", f"{found.evaluated} of {found.adapters} adapters evaluated one by one in time")
    if not 0 < found.evaluated <= found.adapters <= MOST_ADAPTERS_LISTED:
        return
    money = found.unit == "money"
    for replica in plan.replicas:
        for name, s in zip(replica.adapters, replica.savings or (), strict=False):
            alone, added = (s.alone_cost, s.added_cost) if money else (s.alone_gpu_time_s, s.added_gpu_time_s)
            if alone is None or added is None:
                print(f"  {name}: not evaluated")
                continue
            run = f"alone {alone:.4g} {found.unit} on {s.alone_num_stages} x {s.alone_gpu}"
            less = 0.0 if math.isclose(alone, added, rel_tol=1e-9) else alone - added
            print_wrapped(f"{name}: {run}, here it adds {added:.4g}, saves {less:.4g}", "  ", "    ")
