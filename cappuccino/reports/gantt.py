"""Timelines as SVG, drawn by matplotlib: one row per stage, timelines one below the other on the same axis."""

from collections.abc import Sequence

from cappuccino.reports.plot import svg
from cappuccino.timeline import Timeline

WIDTH, ROW = 12.0, 0.22
"""Of the drawing and of a stage's row, inches."""
COLOURS = {"F": "#1b6ca8", "B": "#c8502a", "S": "#4a8c4a", "E": "#7a6fb0"}
LABELS = {"F": "forward", "B": "backward", "S": "optimizer step", "E": "evaluation"}


def gantt(lines: Sequence[tuple[str, Timeline]]) -> str:
    """Return timelines, each with a label, as one SVG document; the time axis, seconds, ends with the longest.

    The operations of one kind on one stage are a group with the id `<label>, stage <number>, <kind>`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    rows = sum(1 + len(line.programs) for _, line in lines)
    figure = Figure(figsize=(WIDTH, 1.1 + ROW * rows), layout="constrained")
    axes = figure.add_subplot()
    ticks, labels, row = [], [], 0
    for label, line in lines:
        axes.text(0, row, f"{label}, {line.makespan:.4g} s", va="center", fontweight="bold", fontsize="small")
        row += 1
        for stage, program in enumerate(line.programs):
            for kind, colour in COLOURS.items():
                chosen = [i for i, operation in enumerate(program) if operation[0] == kind]
                starts, ends = line.starts[stage], line.ends[stage]
                spans = [(float(starts[i]), float(ends[i] - starts[i])) for i in chosen]
                gid = f"{label}, stage {stage}, {kind}"
                axes.broken_barh(spans, (row - 0.42, 0.84), color=colour, edgecolor="white", linewidth=0.2, gid=gid)
            ticks.append(row)
            labels.append(f"stage {stage}")
            row += 1
    axes.set_yticks(ticks, labels)
    axes.set_ylim(row - 0.4, -0.8)
    axes.set_xlim(0, max((line.makespan for _, line in lines), default=0.0) or 1.0)
    axes.set_xlabel("time, s")
    axes.spines[["top", "right"]].set_visible(False)
    legend = [Patch(color=colour, label=LABELS[kind]) for kind, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="outside upper left", ncols=len(legend), frameon=False, fontsize="small")
    return svg(figure)
