"""Colours that are told apart on a light and on a dark page."""

import colorsys

ADAPTERS = (
    "#3b82c4",
    "#e07b39",
    "#3f9e58",
    "#b058b8",
    "#c9a227",
    "#d64f5f",
    "#2aa5a5",
    "#8a6d4b",
    "#7f7fd5",
    "#7d9b2a",
    "#d977a8",
    "#6b7f92",
)
"""Of the first adapters."""
NEUTRAL = "#888888"


def adapter_colours(count: int) -> list[str]:
    """Return a colour an adapter; beyond the hand-picked ones hues are spread evenly."""
    if count <= len(ADAPTERS):
        return list(ADAPTERS[:count])
    spread = [colorsys.hls_to_rgb(i / count, (0.45, 0.6)[i % 2], 0.55) for i in range(count)]
    return ["#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in spread]


def stage_colours(count: int) -> list[str]:
    """Return a colour a stage, from blue over green to orange."""
    hues = [0.6 - 0.52 * s / max(1, count - 1) for s in range(count)]
    return ["#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(h, 0.5, 0.6)) for h in hues]
