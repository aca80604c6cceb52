import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from cappuccino.plan import MicroBatch, Replica
from cappuccino.reports.gantt import PALETTE, STEP, Row, drawing
from cappuccino.timeline import Timeline

SVG = "{http://www.w3.org/2000/svg}"
LINE = Timeline(
    0,
    ((("F", 0), ("B", 0), ("S", 0, 0)), (("F", 0), ("B", 0))),
    (np.array([0.0, 6.0, 8.0]), np.array([1.0, 3.0])),
    (np.array([1.0, 8.0, 8.0]), np.array([3.0, 6.0])),
)
"""The optimizer step takes no time."""


def row(label, adapters=("docs", "co$de$")):
    """A replica whose one micro-batch holds samples of all its adapters."""
    batch = MicroBatch(samples=tuple((i, 0) for i in range(len(adapters))))
    return Row(label, LINE, Replica.model_construct(id=0, adapters=adapters, micro_batches=(batch,), evaluations=()))


def drawn(rows, **options):
    return ElementTree.fromstring(drawing(rows, ".svg", **options))


def spans(root, gid):
    """Left and right edge of every box of a group, and their colours."""
    groups = [g for g in root.iter(f"{SVG}g") if g.get("id") == gid]
    paths = [p for g in groups for p in g.iter(f"{SVG}path")]
    points = [[float(x) for x in re.findall(r"([\d.]+) -?[\d.]+", p.get("d"))] for p in paths]
    styles = [u.get("style") for g in groups for u in g.iter(f"{SVG}use")]
    return [(min(xs), max(xs)) for xs in points], {re.search(r"fill: (#\w+)", s)[1] for s in styles if "fill" in s}


def test_every_operation_is_drawn_where_it_ran_in_its_adapters_colour():
    root = drawn([row("predicted & more"), row("measured")])
    for label in ("predicted & more", "measured"):
        for stage in (0, 1):
            for kind in "FB":
                for name, colour in zip(("docs", "co$de$"), PALETTE, strict=False):
                    boxes, colours = spans(root, f"{label}, stage {stage}, {kind}, {name}")
                    assert len(boxes) == 1
                    assert colours == {to_hex(colour)}
    # one scale: the first forward takes 1 s, the backward begins after 6 s and takes 2
    [(begin, end)], _ = spans(root, "measured, stage 0, F, docs")
    [(low, high)], _ = spans(root, "measured, stage 0, B, docs")
    assert low - begin == pytest.approx(6 * (end - begin), rel=1e-3)
    assert high - low == pytest.approx(2 * (end - begin), rel=1e-3)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"predicted & more, 8 s", "time, s", "docs", "co$de$", "forward (pale)", "optimizer step"} <= set(texts)
    assert not any("evaluation" in t for t in texts)  # there is none


def test_optimizer_steps_of_no_length_are_seen():
    root = drawn([row("r")])
    group = next(g for g in root.iter(f"{SVG}g") if g.get("id") == "r, stage 0, S, docs")
    style = next(u.get("style") for u in group.iter() if f"stroke: {STEP}" in u.get("style", ""))
    assert "stroke-width: 0" not in style


def test_a_window_shows_what_falls_into_it():
    root = drawn([row("r")], window=(3.5, 7.0))
    kinds = {g.get("id") for g in root.iter(f"{SVG}g") if str(g.get("id")).startswith("r, ")}
    assert kinds == {f"r, stage {s}, B, {name}" for s in (0, 1) for name in ("docs", "co$de$")}


def test_adapters_beyond_the_colours_are_counted():
    names = tuple(f"a{i}" for i in range(len(PALETTE) + 3))
    texts = [t.text for t in drawn([row("r", names)]).iter(f"{SVG}text")]
    assert "3 more" in texts
    assert names[-1] not in texts


def test_a_picture_in_pixels_is_one():
    pixels = imread(io.BytesIO(drawing([row("r")], ".png")))
    assert pixels.shape[1] == 1800  # 12 inches of 150 dots
    assert pixels.std() > 0
