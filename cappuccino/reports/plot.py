"""Line charts as self-contained SVG, so that a report needs no plotting library.

Coordinates inside a panel are pixels from its upper left corner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 460, 320
"""Of a panel, pixels."""
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 54, 48
"""Margins around the axes, pixels."""
COLOURS = ("#1b6ca8", "#c8502a", "#4a8c4a", "#8a5a9e", "#b58900", "#555555")
"""By series; readable in print and with the common kinds of colour blindness."""
TICKS = 6
"""About how many labels an axis gets."""


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
    """Return panels, row by row, as one SVG document.

    Raises
    ------
    ValueError
        When a value is not finite, or not positive on a logarithmic axis.
    """
    width, height = WIDTH * min(columns, len(panels)), HEIGHT * math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        parts += [f'<g transform="translate({column * WIDTH} {row * HEIGHT})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Scale:
    """Maps the values of an axis to pixels."""

    axis: Axis
    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.axis.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        if self.axis.log:
            decades = math.log10(self.high / self.low)
            digits = (1,) if decades > TICKS / 2 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [d * 10.0**e for e in exponents for d in digits]
        else:
            raw = (self.high - self.low) / TICKS
            unit = 10.0 ** math.floor(math.log10(raw))
            step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
            values = [k * step for k in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        return [v for v in values if self.low - slack <= v <= self.high + slack]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    for value in values:
        if not math.isfinite(value) or (axis.log and value <= 0):
            raise ValueError(f'axis "{axis.label}": {value} cannot be drawn')
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if axis.log:
        room = (high / low) ** 0.05 if high > low else 1.2
        return _Scale(axis, low / room, high * room, start, end)
    low = min(low, 0.0) if axis.zero else low
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return _Scale(axis, max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)


def _panel(panel: Panel) -> list[str]:
    drawn = [(s, [(a, b) for a, b in zip(s.x, s.y, strict=True) if b is not None]) for s in panel.series]
    x = _scale(panel.x, [a for s in panel.series for a in s.x], LEFT, WIDTH - RIGHT)
    y = _scale(panel.y, [b for _, points in drawn for _, b in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(panel.title)}</text>']
    for v in x.ticks:
        parts.append(f'<path d="M{x(v):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(v)}</text>')
    for v in y.ticks:
        parts.append(f'<path d="M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{_label(v)}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#222222"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(panel.x.label)}</text>')
    turned = f'transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(panel.y.label)}</text>")
    place = float(LEFT)
    for k, (series, points) in enumerate(drawn):
        colour = COLOURS[k % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if series.dashed else ""
        stroke = f'fill="none" stroke="{colour}" stroke-width="1.8"{dash}'
        parts.append(f"<g class={quoteattr(series.label)}>")
        circle = f'r="3.2" fill="{colour}"/>'
        if series.shape == "none":
            parts.append(f'<circle cx="{place + 9:.0f}" cy="36" {circle}')
        else:
            parts.append(f'<path d="{_path(series, x, y)}" {stroke}/>')
            parts.append(f'<path d="M{place:.0f} 36h18" {stroke}/>')
        if series.markers:
            parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" {circle}' for a, b in points]
        parts += [f'<text x="{place + 23:.0f}" y="40">{escape(series.label)}</text>', "</g>"]
        place += 38 + 6.4 * len(series.label)
    return parts


def _path(series: Series, x: _Scale, y: _Scale) -> str:
    commands: list[str] = []
    joined = False
    for a, b in zip(series.x, series.y, strict=True):
        if b is None:
            joined = False
            continue
        to_x, to_y = f"{x(a):.1f}", f"{y(b):.1f}"
        if not joined:
            commands.append(f"M{to_x} {to_y}")
        elif series.shape == "straight":
            commands.append(f"L{to_x} {to_y}")
        else:
            commands.append(f"H{to_x}V{to_y}" if series.shape == "step-after" else f"V{to_y}H{to_x}")
        joined = True
    return "".join(commands) or "M0 0"


def _label(value: float) -> str:
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"
