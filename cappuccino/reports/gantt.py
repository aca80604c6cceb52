"""Timelines drawn by matplotlib: one row per stage, timelines one below the other, a colour an adapter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cappuccino.plan import Replica
from cappuccino.reports.plot import png, svg
from cappuccino.timeline import Timeline, operation_adapters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, ROW = 12.0, 0.3
"""Of the drawing and of a stage's row, inches."""
PALETTE = ("#1b6ca8", "#d9822b", "#4a8c4a", "#b8433f", "#7a6fb0", "#8c6d4f", "#c96a9f", "#5f6b73", "#a8a032", "#2a9d9d")
"""By adapter."""
OTHERS = "#b0b0b0"
"""Of the adapters that are left when every colour is taken."""
STEP = "#111111"
FORMATS = (".svg", ".png")
"""Suffixes of the files that `drawing` makes."""
_LIGHTER = {"F": 0.45, "B": 1.0, "E": 0.45}
"""By kind of operation, how dense its colour is."""
_HIGH = 0.84
_LEAST_LINE = 1.0
"""Width of an optimizer step that is too short to be seen, points."""
_LABELS = {"F": "forward (pale)", "B": "backward (full)", "E": "evaluation (hatched)", "S": "optimizer step"}


@dataclass(frozen=True)
class Row:
    """A timeline to be drawn."""

    label: str
    line: Timeline
    replica: Replica
    """Whose it is: it says which adapters an operation works for."""


def drawing(rows: Sequence[Row], suffix: str, window: tuple[float, float | None] = (0.0, None)) -> bytes:
    """Return timelines as the contents of a file; the time axis is in seconds.

    In an SVG the operations of one kind and adapter on one stage are a group with the id
    `<label>, stage <number>, <kind>, <adapter>`.

    Parameters
    ----------
    suffix
        One of `FORMATS`.
    window
        First and last second that are drawn; None: the end of the longest timeline.
    """
    figure = _figure(rows, window)
    return png(figure) if suffix == ".png" else svg(figure).encode()


def _figure(rows: Sequence[Row], window: tuple[float, float | None]) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415

    first, last = window[0], window[1]
    if last is None:
        last = max((row.line.makespan for row in rows), default=0.0)
    last = last if last > first else first + 1.0
    colours = _colours(rows)
    high = sum(1 + len(row.line.programs) for row in rows)
    figure = Figure(figsize=(WIDTH, 1.5 + ROW * high), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(first, last)
    ticks, at = [], 0
    for row in rows:
        title = f"{row.label}, {row.line.makespan:.4g} s"
        label = axes.text(0, at, title, transform=axes.get_yaxis_transform(), va="center", fontweight="bold")
        label.set(fontsize="small", parse_math=False)
        for stage in range(len(row.line.programs)):
            _draw_stage(axes, row, stage, at + 1 + stage, colours, (first, last))
            ticks.append((at + 1 + stage, f"stage {stage}"))
        at += 1 + len(row.line.programs)
    axes.set_yticks([t for t, _ in ticks], [label for _, label in ticks])
    axes.set_ylim(at - 0.4, -0.8)
    axes.set_xlabel("time, s")
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, rows, colours)
    return figure


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """Return the colour of every adapter, in the order of the replicas."""
    names = dict.fromkeys(name for row in rows for name in row.replica.adapters)
    return {name: PALETTE[k] if k < len(PALETTE) else OTHERS for k, name in enumerate(names)}


def _draw_stage(
    axes: "Axes", row: Row, stage: int, at: int, colours: Mapping[str, str], window: tuple[float, float]
) -> None:
    """Draw the operations of a stage that fall into a window; adapters that share a micro-batch share its height."""
    boxes: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for kind, name, begin, end, low, part in _parts(row, stage):
        if end >= window[0] and begin <= window[1]:
            boxes.setdefault((kind, name), []).append((begin, end - begin, low, part))
    for (kind, name), spans in boxes.items():
        gid = f"{row.label}, stage {stage}, {kind}, {name}"
        if kind == "S":
            xs = [begin + length / 2 for begin, length, *_ in spans]
            lengths = [(begin, length) for begin, length, *_ in spans]
            axes.broken_barh(
                lengths, (at - _HIGH / 2, _HIGH), facecolor=STEP, edgecolor=STEP, linewidth=_LEAST_LINE, gid=gid
            )
            axes.plot(xs, [at - _HIGH / 2] * len(xs), linestyle="none", marker="v", markersize=4, color=colours[name])
            continue
        for low, part in sorted({(low, part) for _, _, low, part in spans}):
            axes.broken_barh(
                [(b, length) for b, length, other, p in spans if (other, p) == (low, part)],
                (at - _HIGH / 2 + _HIGH * low, _HIGH * part),
                facecolor=(colours[name], _LIGHTER[kind]),
                edgecolor="white",
                linewidth=0.2,
                hatch="////" if kind == "E" else None,
                gid=gid,
            )


def _parts(row: Row, stage: int) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Yield kind, adapter, begin, end, lower edge and height in the row, of every adapter's part of an operation."""
    line = row.line
    for operation, begin, end in zip(line.programs[stage], line.starts[stage], line.ends[stage], strict=True):
        names = operation_adapters(operation, row.replica)
        for k, name in enumerate(names):
            yield operation[0], name, float(begin), float(end), k / len(names), 1 / len(names)


def _add_legend(figure: "Figure", rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    """Name the adapters, and the kinds of operations that there are."""
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    named = [(name, colour) for name, colour in colours.items() if colour != OTHERS]
    entries: list[Patch | Line2D] = [Patch(color=colour, label=name) for name, colour in named]
    if len(named) < len(colours):
        entries.append(Patch(color=OTHERS, label=f"{len(colours) - len(named)} more"))
    kinds = {operation[0] for row in rows for program in row.line.programs for operation in program}
    grey = "#777777"
    for kind, label in _LABELS.items():
        if kind == "S" and kind in kinds:
            entries.append(Line2D([], [], color=STEP, marker="v", markersize=5, label=label))
        elif kind in kinds:
            hatch = "////" if kind == "E" else None
            entries.append(Patch(facecolor=(grey, _LIGHTER[kind]), edgecolor="white", hatch=hatch, label=label))
    legend = figure.legend(handles=entries, loc="outside upper left", ncols=8, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are the user's: a $ in them is no formula
