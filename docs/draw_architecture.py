"""Draws the pictures of docs/architecture.md from the code: packages and imports, and the way of the data.

`python docs/draw_architecture.py` writes `docs/packages.svg` and `docs/way-of-the-data.svg`. Each records in its
description what it shows; tests/docs/test_architecture.py compares that with the code of the day. Whatever the pictures
name, a module, a command, a format, is looked up: where it is gone, the script ends with an error.
"""

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "tests")]

from drawing import LINE, arrow, box, canvas, layered, rounded, svg_text, wrapped  # noqa: E402
from helpers import imports  # noqa: E402 -- the tests read imports by the same code

FOLDERS, ROOT = imports.FOLDERS, imports.ROOT
modules, room_imports = cache(imports.modules), cache(imports.room_imports)
FORMATS, CHECKING, TOOLS, PLANS = "formats", "checking", "solvers: tools", "solvers: plans"
_FORMAT_MODULES = ("errors", "compiled", "files", "documents", "adapter", "sweep", "lengths", "backbone", "plan")
GROUPS = {
    **dict.fromkeys((*_FORMAT_MODULES, "certificate", "training_data", "instance", "timeline", "schemas"), FORMATS),
    **dict.fromkeys(("workload", "simulator", "checker"), CHECKING),
    **dict.fromkeys(("solvers.budget", "solvers.settings"), TOOLS),
    **dict.fromkeys(("solvers.layer_split", "solvers.assembly", "solvers.verification"), PLANS),
}
"""What modules at the root of a floor are drawn as; of `models` and `solvers`, all others are one box a folder."""
COLOURS = {
    "cappuccino": "#f3e3cf",
    "models": "#dfe8d8",
    "solvers": "#d9e4f0",
    "runtime": "#eadcf0",
    "instances": "#eeeeee",
}


def drawn_as(room: str) -> str:
    """Return the box that a package or a root module is part of."""
    if room in GROUPS:
        return GROUPS[room]
    folder = room.partition(".")[0]
    files = modules()
    is_package = any(files[m].name == "__init__.py" for m in files if m == f"cappuccino.{room}")
    return room if is_package or folder not in FOLDERS else folder


def package_graph() -> dict[str, set[str]]:
    """Return the boxes that every box imports from, less those that follow from others."""
    found: dict[str, set[str]] = {}
    for room, used in room_imports().items():
        if room in FOLDERS.values() or room in FOLDERS:
            continue
        mine = drawn_as(room)
        found.setdefault(mine, set()).update({drawn_as(u) for u in used if u not in FOLDERS} - {mine})
    behind: dict[str, set[str]] = {}

    def reach(box: str) -> set[str]:
        if box not in behind:
            behind[box] = set()
            behind[box] = set().union(*({u} | reach(u) for u in found.get(box, ())))
            if box in behind[box]:
                raise SystemExit(f"packages import each other in a circle: {box}")
        return behind[box]

    return {box: {u for u in used if not any(u in reach(o) for o in used - {u})} for box, used in found.items()}


def contents(box: str) -> str:
    """Return the modules behind a box that stands for several root modules."""
    own = [room for room in room_imports() if drawn_as(room) == box and room != box]
    names = [room.rsplit(".", 1)[-1] for room in own]
    return ", ".join(names) if len(names) > 1 and box != "instances" else ""


def floor(box: str) -> str:
    """Return the top folder of a box."""
    if box in (FORMATS, CHECKING):
        return "cappuccino"
    folder = re.split(r"[.:]", box)[0]
    return folder if folder in FOLDERS else "cappuccino"


def draw_packages() -> str:
    """Return the picture of packages and imports."""
    graph = package_graph()
    layout, high, wide = layered(graph), 1.25, 17.0
    figure = Figure(figsize=(wide, high * len(layout.rows) + 0.6))
    axes = canvas(figure, wide, high * len(layout.rows) + 0.6)
    size = {n: _width(n) if n in graph else 0.35 for row in layout.rows for n in row}
    at: dict[str, tuple[float, float]] = {}
    for r, row in enumerate(layout.rows):
        gap = (wide - sum(size[n] for n in row)) / (len(row) + 1)
        x = gap
        for name in row:
            at[name] = (x + size[name] / 2, 0.6 + high * r)
            x += size[name] + gap
    for path in layout.paths.values():
        top, bottom = at[path[0]], at[path[-1]]
        points = [
            (top[0], top[1] - 0.28),
            *(at[n] for n in path[1:-1]),
            (bottom[0], bottom[1] + _height(path[-1]) / 2 + 0.04),
        ]
        arrow(axes, points)
    for name, (x, y) in at.items():
        if name in graph:
            small = contents(name)
            box(axes, x, y, size[name], _height(name), name, wrapped(small, 50), COLOURS[floor(name)])
    for i, (folder, colour) in enumerate(COLOURS.items()):
        box(axes, 1.0 + 1.7 * i, high * len(layout.rows) + 0.28, 1.5, 0.3, f"{folder}/", "", colour)
    return svg_text(figure, "Packages and imports", {name: sorted(used) for name, used in sorted(graph.items())})


def _height(name: str) -> float:
    return 0.56 + 0.16 * wrapped(contents(name)).count("\n")


def _width(name: str) -> float:
    return max(0.115 * len(name) + 0.3, 3.7 if contents(name) else 0.0)


@dataclass(frozen=True)
class Step:
    """A box of the way of the data."""

    name: str
    x: float
    y: float
    small: str
    kind: str
    """`file`, `command` or `step` of planning."""


def command_names() -> set[str]:
    """Return the commands of the command line."""
    from typer.main import get_command  # noqa: PLC0415

    from cappuccino.cli.app import app  # noqa: PLC0415

    return set(get_command(app).commands)  # type: ignore[attr-defined]


def command(name: str, x: float, y: float, module: str) -> Step:
    """Return the box of a command and the module that does its work."""
    if name not in command_names():
        raise SystemExit(f"there is no command {name}")
    return Step(name, x, y, _known(module), "command")


def file(name: str, x: float, y: float, small: str) -> Step:
    """Return the box of a file; `module:NAME/N` stands for the format that the module states."""
    if ":" in small:
        module, prefix = small.split(":")
        text = modules()[f"cappuccino.{_known(module)}"].read_text(encoding="utf-8")
        formats = re.findall(rf'"({re.escape(prefix)}/\d+)"', text)
        if not formats:
            raise SystemExit(f"{module} states no format {prefix}")
        small = formats[0]
    return Step(name, x, y, small, "file")


def step(module: str, x: float, y: float, defines: str) -> Step:
    """Return the box of a step of planning: a module, and what it defines that does the work."""
    tree = ast.parse(modules()[f"cappuccino.{_known(module)}"].read_text(encoding="utf-8"))
    if defines not in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}:
        raise SystemExit(f"{module} does not define {defines}")
    return Step(module, x, y, defines, "step")


def _known(module: str) -> str:
    if f"cappuccino.{module}" not in modules():
        raise SystemExit(f"there is no module cappuccino.{module}")
    return module


def way_of_the_data() -> tuple[list[Step], list[tuple[str, str]]]:
    """Return the boxes from data and backbone to adapters, and the arrows between them."""
    boxes = [
        file("samples", 1.3, 6.6, "rows, texts, chats"),
        file("backbone", 1.3, 5.0, "transformers folder"),
        command("init", 4.2, 8.0, "runtime.new_instance.making"),
        command("lengths", 4.2, 6.6, "runtime.data.lengths"),
        command("profile", 4.2, 5.0, "runtime.profiling.profiler"),
        command("estimate", 4.2, 3.4, "analytic.roofline"),
        file("length distribution", 7.4, 6.6, "JSON"),
        file("cost table", 7.4, 5.0, "CSV"),
        file("instance", 7.4, 8.0, "instance:cappuccino.instance"),
        command("plan", 10.8, 6.6, "solvers.planning"),
        file("plan.json", 14.2, 6.6, "plan:cappuccino.plan"),
        command("check", 14.2, 8.0, "checker"),
        command("run", 14.2, 5.0, "runtime.launch.local"),
        file("adapters", 16.9, 5.0, "PEFT folders"),
        file("trace", 14.2, 3.4, "timeline:cappuccino.trace"),
        command("simulate", 16.9, 3.4, "simulator"),
        command("calibrate", 10.5, 3.4, "reports.table_calibration"),
        step("costs.fit", 1.75, 1.9, "fit_instance_costs"),
        step("bounds.replica_bounds", 5.1, 1.9, "ReplicaBounds"),
        step("solvers.allocation.candidates", 8.9, 1.9, "find_candidates"),
        step("solvers.allocation.selection", 12.9, 1.9, "Selection"),
        step("solvers.scheduling.scheduler", 16.3, 0.5, "schedule_replica"),
        step("solvers.improvement", 12.9, 0.5, "improve"),
        step("solvers.savings", 9.5, 0.5, "SharingEvaluator"),
        step("solvers.assembly", 6.1, 0.5, "assemble_plan"),
        step("solvers.verification", 2.4, 0.5, "verified"),
    ]
    arrows = [
        ("samples", "init"), ("init", "instance"),
        ("samples", "lengths"), ("lengths", "length distribution"), ("backbone", "profile"), ("profile", "cost table"),
        ("estimate", "cost table"), ("length distribution", "plan"), ("cost table", "plan"), ("instance", "plan"),
        ("plan", "plan.json"), ("plan.json", "check"), ("plan.json", "run"), ("run", "adapters"), ("run", "trace"),
        ("trace", "simulate"), ("trace", "calibrate"), ("calibrate", "cost table"),
        ("costs.fit", "bounds.replica_bounds"), ("bounds.replica_bounds", "solvers.allocation.candidates"),
        ("solvers.allocation.candidates", "solvers.allocation.selection"),
        ("solvers.allocation.selection", "solvers.scheduling.scheduler"),
        ("solvers.scheduling.scheduler", "solvers.allocation.selection"),
        ("solvers.scheduling.scheduler", "solvers.improvement"), ("solvers.improvement", "solvers.savings"),
        ("solvers.savings", "solvers.assembly"), ("solvers.assembly", "solvers.verification"),
    ]  # fmt: skip
    return boxes, arrows


def draw_way() -> str:
    """Return the picture of the way of the data."""
    boxes, arrows = way_of_the_data()
    figure = Figure(figsize=(18.4, 8.8))
    axes = canvas(figure, 18.4, 8.8)
    axes.add_patch(rounded(9.2, 1.25, 18.0, 2.35, "#f6f8fb", "#c9d4e2"))
    axes.text(0.4, 2.62, "inside plan", fontsize=13, color=LINE, style="italic")
    by_name = {b.name: b for b in boxes}
    size = {b.name: max(0.115 * max(len(b.name), 0.82 * len(b.small)) + 0.35, 1.7) for b in boxes}
    for source, goal in arrows:
        arrow(axes, _between(by_name[source], by_name[goal], size))
    colours = {"file": "#fbf6ef", "command": "#f3e3cf", "step": COLOURS["solvers"]}
    for b in boxes:
        box(axes, b.x, b.y, size[b.name], 0.74, b.name, b.small, colours[b.kind], bold=b.kind == "command")
    shown = {"boxes": [[b.name, b.small, b.kind] for b in boxes], "arrows": [list(a) for a in arrows]}
    return svg_text(figure, "The way of the data", shown)


def _between(source: Step, goal: Step, size: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return where an arrow leaves one box and meets the other."""
    across, up = goal.x - source.x, goal.y - source.y
    if abs(up) < 0.1:
        side = 1 if across > 0 else -1
        ends = source.x + side * size[source.name] / 2, goal.x - side * (size[goal.name] / 2 + 0.05)
        return [(ends[0], source.y), (ends[1], goal.y)]
    side = 1 if up > 0 else -1
    shift = 1.0 if (source.name, goal.name) == ("solvers.scheduling.scheduler", "solvers.allocation.selection") else 0.0
    return [(source.x + shift / 2, source.y + side * 0.37), (goal.x + shift, goal.y - side * 0.42)]


PICTURES = {"packages.svg": draw_packages, "way-of-the-data.svg": draw_way}


def main(names: Iterable[str] = tuple(PICTURES)) -> None:
    """Write the pictures."""
    for name in names:
        (DOCS / name).write_text(PICTURES[name](), encoding="utf-8")
        print(f"written {DOCS.relative_to(ROOT) / name}")


if __name__ == "__main__":
    main()
