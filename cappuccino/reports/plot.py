"""Line charts as SVG, drawn by matplotlib; and what other drawings need to become files."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.2
"""Of a panel, inches."""
DOTS_PER_INCH = 150
"""Of drawings in pixels."""
COLOURS = ("#1b6ca8", "#c8502a", "#4a8c4a", "#8a5a9e", "#b58900", "#555555")
"""By series; readable in print and with the common kinds of colour blindness."""
_STEPS = {"step-after": "steps-post", "step-before": "steps-pre"}


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    label: str
    """With the unit."""
    log: bool = False
    """Logarithmic; every value is to be positive."""
    zero: bool = False
    """Whether a linear axis of positive values begins at zero."""


@dataclass(frozen=True)
class Series:
    """One line of a panel, a marker at each of its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None where there is no value: no marker, and the line has a break."""
    shape: Literal["straight", "step-after", "step-before", "none"] = "straight"
    """How neighbours are joined: a `step-after` keeps the left point's value, a `step-before` the right one's."""
    dashed: bool = False
    markers: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its lines."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]


def line_charts(panels: Sequence[Panel], columns: int = 1) -> str:
    """Return panels, row by row, as one SVG document; the lines of a series are a group with its label as id.

    Raises
    ------
    ValueError
        When a value is not finite, or not positive on a logarithmic axis.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    for k, panel in enumerate(panels):
        _draw(figure.add_subplot(rows, columns, k + 1), panel)
    return svg(figure)


def svg(figure: "Figure") -> str:
    """Return a figure as SVG: equal figures give equal text, and its words can be searched."""
    import matplotlib as mpl  # noqa: PLC0415

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cappuccino"}), warnings.catch_warnings():
        # only the measured width of a text is concerned: the viewer has fonts of its own
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    document = text.getvalue()
    return document[document.index("<svg") :]  # so that it can stand in a page


def png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(data, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return data.getvalue()


def _draw(axes: "Axes", panel: Panel) -> None:
    _scale(axes, panel)
    for k, series in enumerate(panel.series):
        axes.plot(
            series.x,
            [math.nan if y is None else y for y in series.y],
            color=COLOURS[k % len(COLOURS)],
            label=series.label,
            gid=series.label,
            linestyle="none" if series.shape == "none" else "--" if series.dashed else "-",
            drawstyle=_STEPS.get(series.shape, "default"),
            marker="o" if series.markers else None,
            markersize=4,
        )
    # names are the user's: a $ in them is no formula
    axes.set_title(panel.title, fontsize="medium", fontweight="bold", loc="left", parse_math=False)
    axes.set_xlabel(panel.x.label)
    axes.set_ylabel(panel.y.label)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small", frameon=False)


def _scale(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    values = {
        "x": [x for s in panel.series for x in s.x],
        "y": [y for s in panel.series for y in s.y if y is not None],
    }
    for name, axis in (("x", panel.x), ("y", panel.y)):
        for value in values[name]:
            if not math.isfinite(value) or (axis.log and value <= 0):
                raise ValueError(f'axis "{axis.label}": {value} cannot be drawn')
        if axis.log:
            axes.set(**{f"{name}scale": "log"})
            drawn = axes.xaxis if name == "x" else axes.yaxis
            decades = math.log10(max(values[name]) / min(values[name])) if values[name] else 1.0
            digits = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
            drawn.set_major_locator(LogLocator(subs=digits))
            drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            drawn.set_minor_formatter(NullFormatter())
        if axis.zero and values[name] and min(values[name]) >= 0:
            axes.set(**{f"{name}lim": (0, 1.06 * max(values[name]) or 1)})
