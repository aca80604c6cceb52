"""Timelines as a self-contained SVG: one row per stage, timelines one below the other on the same axis."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from cappuccino.timeline import Timeline

WIDTH, ROW, LEFT, TOP = 1200, 18, 130, 44
"""Of the drawing, of a stage's row, and margins, pixels."""
COLOURS = {"F": "#1b6ca8", "B": "#c8502a", "S": "#4a8c4a"}
LABELS = {"F": "forward", "B": "backward", "S": "optimizer step"}


def gantt(lines: Sequence[tuple[str, Timeline]]) -> str:
    """Return timelines, each with a label, as one SVG document; the axis ends with the longest."""
    end = max((line.makespan for _, line in lines), default=0.0) or 1.0
    scale = (WIDTH - LEFT - 12) / end
    parts, y = [], TOP
    for label, line in lines:
        parts.append(f'<text x="6" y="{y + 13}" font-weight="bold">{escape(label)}, {line.makespan:.4g} s</text>')
        y += ROW
        for stage, program in enumerate(line.programs):
            parts.append(f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end">stage {stage}</text>')
            for operation, start, stop in zip(program, line.starts[stage], line.ends[stage], strict=True):
                x, width = LEFT + float(start) * scale, max(0.3, float(stop - start) * scale)
                name = " ".join(map(str, operation))
                parts.append(
                    f'<rect x="{x:.2f}" y="{y + 1}" width="{width:.2f}" height="{ROW - 2}" '
                    f'fill="{COLOURS[operation[0]]}" stroke="#ffffff" stroke-width="0.3">'
                    f"<title>{name}: {float(start):.4g} to {float(stop):.4g} s</title></rect>"
                )
            y += ROW
        y += ROW // 2
    legend = "".join(
        f'<rect x="{LEFT + 130 * k}" y="14" width="12" height="12" fill="{COLOURS[kind]}"/>'
        f'<text x="{LEFT + 130 * k + 18}" y="25">{LABELS[kind]}</text>'
        for k, kind in enumerate(COLOURS)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" width="{WIDTH}" height="{y + 12}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222222">',
            f'<rect width="{WIDTH}" height="{y + 12}" fill="#ffffff"/>',
            legend,
            *parts,
            "</svg>",
            "",
        ]
    )
