"""How the pictures of the documentation are drawn: boxes in rows, arrows that bend around them, and the file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

INK, LINE = "#33261c", "#8a7360"


def levels(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return how far each box is above the lowest ones."""
    found: dict[str, int] = {}

    def level(box: str) -> int:
        if box not in found:
            found[box] = 1 + max((level(u) for u in graph[box]), default=-1)
        return found[box]

    for box in graph:
        level(box)
    return found


@dataclass
class Layout:
    """Rows of boxes and of the bends of arrows that pass them, lowest row first."""

    rows: list[list[str]]
    links: list[tuple[str, str]]
    """From a row to the one below."""
    paths: dict[tuple[str, str], list[str]]
    """What each arrow passes, from the box that imports down to the one that it imports."""


def layered(graph: Mapping[str, set[str]]) -> Layout:
    """Order rows so that few arrows cross: by the mean place of what a box is linked with, back and forth."""
    level = levels(graph)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for box in sorted(graph):
        rows[level[box]].append(box)
    links: list[tuple[str, str]] = []
    paths: dict[tuple[str, str], list[str]] = {}
    for box in sorted(graph):
        for used in sorted(graph[box]):
            path = [box]
            for row in range(level[box] - 1, level[used], -1):
                bend = f"{box}>{used}@{row}"
                rows[row].append(bend)
                path.append(bend)
            path.append(used)
            paths[box, used] = path
            links += pairwise(path)
    for sweep in range(24):
        down = sweep % 2 == 0
        for row in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            other = rows[row - 1] if down else rows[row + 1]
            place = {name: (i + 0.5) / len(other) for i, name in enumerate(other)}
            beside: dict[str, list[float]] = {}
            for upper, lower in links:
                mine, its = (upper, lower) if down else (lower, upper)
                if its in place:
                    beside.setdefault(mine, []).append(place[its])
            now = {name: (i + 0.5) / len(rows[row]) for i, name in enumerate(rows[row])}
            rows[row].sort(key=lambda n: sum(beside.get(n, [now[n]])) / len(beside.get(n, [1])))
    return Layout(rows, links, paths)


def canvas(figure: Figure, wide: float, high: float):  # type: ignore[no-untyped-def]
    """Return the axes of a whole figure, in inches."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, wide)
    axes.set_ylim(0, high)
    axes.axis("off")
    return axes


def rounded(x: float, y: float, wide: float, high: float, fill: str, line: str) -> FancyBboxPatch:
    """Return a box with rounded corners around a centre."""
    style = "round,pad=0,rounding_size=0.1"
    return FancyBboxPatch(
        (x - wide / 2, y - high / 2), wide, high, style, facecolor=fill, edgecolor=line, linewidth=1.1
    )


def box(  # type: ignore[no-untyped-def]
    axes, x: float, y: float, wide: float, high: float, name: str, small: str, fill: str, bold: bool = False
) -> None:
    """Draw a box with its name and what stands below it in small letters."""
    axes.add_patch(rounded(x, y, wide, high, fill, LINE))
    lines = small.count("\n") + 1 if small else 0
    weight = "bold" if bold else "normal"
    top = y + (0.0, 0.1, 0.2, 0.27)[lines]
    axes.text(x, top, name, ha="center", va="center", fontsize=12, color=INK, weight=weight)
    if small:
        axes.text(
            x,
            y - (0.0, 0.16, 0.12, 0.1)[lines],
            small,
            ha="center",
            va="center",
            fontsize=9,
            color="#6b5848",
            linespacing=1.05,
        )


def arrow(axes, points: Sequence[tuple[float, float]]) -> None:  # type: ignore[no-untyped-def]
    """Draw an arrow along points, in curves where it bends."""
    if len(points) == 2:
        curve = Curve(list(points), [Curve.MOVETO, Curve.LINETO])
    else:
        (x, y), vertices, codes = points[0], [points[0]], [Curve.MOVETO]
        for end in points[1:]:
            middle = (y + end[1]) / 2
            vertices += [(x, middle), (end[0], middle), end]
            codes += [Curve.CURVE4] * 3
            x, y = end
        curve = Curve(vertices, codes)
    axes.add_patch(
        FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=11, color=LINE, linewidth=1.1, fill=False)
    )


def wrapped(text: str, most: int = 44) -> str:
    """Return text broken into lines of at most so many characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def svg_text(figure: Figure, title: str, recorded: object) -> str:
    """Return the drawing with what it shows in its description; equal drawings are equal text."""
    with mpl.rc_context({"svg.hashsalt": "cappuccino", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    text = stream.getvalue()
    begin = text.index("<svg")
    end = text.index(">", begin) + 1
    said = f"<title>{escape(title)}</title>\n <desc>{escape(json.dumps(recorded))}</desc>"
    return "\n".join(line.rstrip() for line in f"{text[:end]}\n {said}{text[end:]}".splitlines()) + "\n"


def recorded(svg: str) -> object:
    """Return what a picture records of itself."""
    found = ElementTree.fromstring(svg).find("{http://www.w3.org/2000/svg}desc")
    return None if found is None else json.loads(found.text or "null")
