"""bench: re-runs the instance library and keeps its best-known values."""

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.help.completion import instance_names
from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag, QuietFlag
from cappuccino.errors import CappuccinoError, InputError
from cappuccino.files import require_folder, require_writable, write_atomically
from cappuccino.library.isolation import ProcessError, run_isolated

if TYPE_CHECKING:
    from cappuccino.library.bench import EntryRun
    from cappuccino.library.index import Library
    from cappuccino.library.records import Entry

QUICK_LIMIT_S = 5.0
"""Of the planner per entry with `--quick`, seconds."""

_PLANS_MISSING = (
    "name the folder of plans with --plans; plans are not shipped: `cappuccino bench NAMES --plans DIR` makes them"
)

Row = dict[str, Any]
Cell = Callable[[Any], str]


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _fixed(places: int, factor: float = 1.0, unit: str = "") -> Cell:
    return lambda value: "-" if value is None else f"{factor * value:z.{places}f}{unit}"


COLUMNS: Mapping[str, tuple[str, Cell]] = {
    "instance": ("instance", _plain),
    "adapters": ("adapters", _plain),
    "steps": ("steps", _plain),
    "objective": ("objective", _digits),
    "unit": ("unit", _plain),
    "bound": ("bound", _digits),
    "gap": ("gap", _fixed(2, 100, "%")),
    "best_known": ("best known", _digits),
    "ratio_to_best_known": ("/best", _fixed(4)),
    "reference": ("reference", _digits),
    "reference_ratio": ("reference/ours", _fixed(3)),
    "wall_time_s": ("wall s", _fixed(1)),
    "peak_memory_gib": ("GiB", _fixed(2)),
    "checked": ("checked", _plain),
}
"""Key of a row, heading and format of its cell."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAMES]...", autocompletion=instance_names, help="Entries of the library; by default all."
        ),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of search per entry; by default each entry's own limit.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"A limit of {QUICK_LIMIT_S:g} s per entry.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search; by default 0.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="TABLE", help="Write the table, .csv or .md.")
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of plans: keeps the better of the old and the new one.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Write better objectives and bounds to the index.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Plan nothing: check the best-known values against plans that `bench --plans` made."
        ),
    ] = False,
    library: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of instances with an index; by default the shipped one.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Re-run the instance library: objective, bound and gap beside the best known and the baseline `reference`.

    Every plan is checked independently. Exit 1 when an entry fails, when the checker does not confirm a value, or when
    a proven bound contradicts a checked objective; such values are never written to the index.
    """
    if quick and time_limit is not None:
        raise typer.BadParameter("give either --quick or --time-limit", param_hint="--quick")
    planning = {"--time-limit": time_limit, "--quick": quick, "--seed": seed, "--output": output, "--update": update}
    if verify:
        for option, value in planning.items():
            if value is not None and value is not False:
                raise typer.BadParameter("--verify plans nothing and takes no such option", param_hint=option)
        if plans is None:
            raise typer.BadParameter(_PLANS_MISSING, param_hint="--verify")
    from cappuccino.library.index import SHIPPED, Library  # noqa: PLC0415

    loaded = Library.load(library or SHIPPED)
    chosen = [loaded.entry(name).name for name in dict.fromkeys(names or ())] or [e.name for e in loaded.entries]
    if verify and plans is not None:
        _verify(loaded, chosen, plans, json)
        return
    _require_writable(output, plans)
    limit = QUICK_LIMIT_S if quick else time_limit
    rows, failures = _run_all(loaded, chosen, limit, seed or 0, plans, update)
    mean = _geometric_mean([r["reference_ratio"] for r in rows if _counts_for_the_mean(r)])
    note = "\n".join([*([] if update else _best_known_notes(rows)), _mean_note(mean, rows)])
    if output is not None:
        write_atomically(output, _csv(rows) if output.suffix == ".csv" else f"{_markdown(rows)}\n{note}\n")
    if json:
        console.print_json({"entries": rows, "geometric_mean": mean, "failures": failures})
    else:
        heading, *body = _cells(rows)
        console.print_table(heading, body)
        print(note)
    _end_with(failures)


def _require_writable(output: Path | None, plans: Path | None) -> None:
    """Raise InputError when what is asked for cannot be written: before the work, not after it."""
    if output is not None:
        if output.suffix not in (".csv", ".md"):
            raise InputError(output, "", f'ends with "{output.suffix}"', "name a .csv or .md file")
        require_writable(output)
    if plans is not None:
        require_folder(plans)
        plans.mkdir(parents=True, exist_ok=True)


def _run_all(
    library: "Library", names: Sequence[str], limit_s: float | None, seed: int, plans: Path | None, update: bool
) -> tuple[list[Row], list[Row]]:
    """Run entries one after the other, each in a process of its own; the index is written after every entry.

    Returns
    -------
    tuple
        A row per entry, and what went wrong, entry by entry.
    """
    from cappuccino.library.bench import run_entry  # noqa: PLC0415
    from cappuccino.library.merge_rules import updated_entry  # noqa: PLC0415

    rows: list[Row] = []
    failures: list[Row] = []
    for name in names:
        entry = library.entry(name)
        limit = entry.options.time_limit_s if limit_s is None else limit_s
        run, memory, problem = None, None, ""
        try:
            run, memory = run_isolated(run_entry, library.folder, name, limit, seed, plans)
            better = updated_entry(entry, run.result)
            if update:
                library = library.with_entry(better)
                library.save()
        except (CappuccinoError, ProcessError) as error:
            problem = str(error) if name in str(error) else f'entry "{name}": {error}'
            failures.append({"instance": name, "error": problem})
        rows.append(_row(entry, run, memory, confirmed=not problem))
        console.note(_said(rows[-1], problem))
    return rows, failures


def _row(entry: "Entry", run: "EntryRun | None", memory_gib: float | None, confirmed: bool) -> Row:
    """Return the figures of an entry; those of the run are None where it failed."""
    from cappuccino.plan import objective_gap  # noqa: PLC0415

    row: Row = {
        "instance": entry.name,
        "kind": entry.kind,
        "adapters": entry.size.adapters,
        "steps": entry.size.steps,
        "samples": entry.size.samples,
        "unit": console.objective_unit(entry.options.objective.value),
        "checked": "valid" if confirmed else "FAILED",
    }
    known = entry.best_known
    row["best_known_reason"] = None if known is not None else "none was found yet"
    if run is None:
        ran = ("objective", "bound", "gap", "ratio_to_best_known", "reference", "reference_ratio", "reference_reason")
        measured = ("least_gpus", "wall_time_s", "first_plan_s", "peak_memory_gib")
        best = None if known is None else known.objective.value
        return {**row, "best_known": best, **dict.fromkeys((*ran, *measured))}
    result = run.result
    best = None if known is None else known.objective.value
    if best is not None and entry.stale(result.costs):
        best, row["best_known_reason"] = None, "it was found with other costs than the cost table gives now"
    reference = result.reference.value
    return {
        **row,
        "objective": result.value,
        "bound": result.bound,
        "gap": objective_gap(result.value, result.bound),
        "best_known": best,
        "ratio_to_best_known": _ratio(result.value, best),
        "reference": reference,
        "reference_ratio": _ratio(reference, result.value),
        "reference_reason": result.reference.reason,
        "least_gpus": run.least_gpus,
        "wall_time_s": result.wall_time_s,
        "first_plan_s": run.first_plan_s,
        "peak_memory_gib": memory_gib,
    }


def _ratio(value: float | None, other: float | None) -> float | None:
    """Return `value / other`, None where there is none."""
    if value is None or not other:
        return 1.0 if value == other == 0 else None
    return value / other


def _said(row: Row, problem: str) -> str:
    if problem:
        return f"{row['instance']}: FAILED: {problem}"
    best = f"{_digits(row['best_known'])}" if row["best_known_reason"] is None else f"- ({row['best_known_reason']})"
    found = f"{_digits(row['objective'])} {row['unit']}, gap {COLUMNS['gap'][1](row['gap'])}"
    return f"{row['instance']}: {found}, best known {best}, {row['wall_time_s']:.1f} s"


def _counts_for_the_mean(row: Row) -> bool:
    """Return whether a row is of the GPU time of a backbone that needs two or more GPUs, with a baseline beside it."""
    compared = bool(row["reference_ratio"]) and row["checked"] == "valid"
    return compared and row["unit"] == "GPU-s" and row["least_gpus"] >= 2


def _geometric_mean(ratios: Sequence[float]) -> float | None:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _mean_note(mean: float | None, rows: Sequence[Row]) -> str:
    count = sum(map(_counts_for_the_mean, rows))
    which = "plans for GPU time whose backbone needs two or more GPUs"
    return f"geometric mean of reference/ours over {count} {which}: {'-' if mean is None else f'{mean:.3f}'}"


def _best_known_notes(rows: Sequence[Row]) -> list[str]:
    """Return why entries have no best-known value, a line per reason."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row["best_known_reason"] is not None:
            by_reason.setdefault(row["best_known_reason"], []).append(row["instance"])
    return [
        f"no best-known value for {', '.join(names)}: {reason}; cappuccino bench --update finds one"
        for reason, names in by_reason.items()
    ]


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    body = [[cell(row[key]) for key, (_, cell) in COLUMNS.items()] for row in rows]
    return [[heading for heading, _ in COLUMNS.values()], *body]


def _markdown(rows: Sequence[Row]) -> str:
    heading, *body = _cells(rows)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *body))


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _verify(library: "Library", names: Sequence[str], plans: Path, json: bool) -> None:
    from cappuccino.library.bench import plan_path, verify_entry  # noqa: PLC0415

    if not any(plan_path(plans, name).exists() for name in names):
        problem = f"holds no plan of the entries, such as {plan_path(plans, names[0]).name}"
        raise InputError(
            plans, "", problem, f"plans are not shipped: cappuccino bench {names[0]} --plans {plans} makes it"
        )
    rows: list[Row] = []
    failures: list[Row] = []
    for name in names:
        try:
            found = verify_entry(library.folder, name, plans)
        except CappuccinoError as error:
            failures.append({"instance": name, "error": str(error)})
            rows.append({"instance": name, "best_known": None, "plan": None, "verdict": "REFUSED"})
            continue
        rows.append({"instance": name, "best_known": found.stated, "plan": found.found, "verdict": found.verdict})
    if json:
        console.print_json({"entries": rows, "failures": failures})
    else:
        cells = [(r["instance"], r["verdict"], _digits(r["best_known"]), _digits(r["plan"])) for r in rows]
        console.print_table(("instance", "verdict", "best known", "plan"), cells, words={"verdict"})
    _end_with(failures)


def _end_with(failures: Sequence[Row]) -> None:
    """Say on stderr what went wrong, one line each, and exit 1; return when nothing did."""
    for failure in failures:
        print(f"error: {failure['error']}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
