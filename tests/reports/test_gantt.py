import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cappuccino.reports.gantt import COLOURS, gantt
from cappuccino.timeline import Timeline

SVG = "{http://www.w3.org/2000/svg}"


def spans(root, gid):
    group = next(g for g in root.iter(f"{SVG}g") if g.get("id") == gid)
    points = [re.findall(r"([\d.]+) -?[\d.]+", p.get("d")) for p in group.iter(f"{SVG}path")]
    xs = [[float(x) for x in found] for found in points]
    colours = {re.search(r"fill: (#\w+)", u.get("style"))[1] for u in group.iter(f"{SVG}use")}
    return [(min(x), max(x)) for x in xs], colours


def test_every_operation_is_drawn_where_it_ran():
    line = Timeline(
        0,
        ((("F", 0), ("B", 0), ("S", 0, 0)), (("F", 0), ("B", 0))),
        (np.array([0.0, 6.0, 8.0]), np.array([1.0, 3.0])),
        (np.array([1.0, 8.0, 9.0]), np.array([3.0, 6.0])),
    )
    root = ElementTree.fromstring(gantt([("predicted & more", line), ("measured", line)]))
    found = {
        (label, stage, kind): spans(root, f"{label}, stage {stage}, {kind}")
        for label in ("predicted & more", "measured")
        for stage, kinds in enumerate(("FBS", "FB"))
        for kind in kinds
    }
    assert all(len(boxes) == 1 for boxes, _ in found.values())
    assert all(colours == {COLOURS[kind]} for (_, _, kind), (_, colours) in found.items())
    # one scale: the first forward takes 1 s, the backward begins after 6 s and takes 2
    [(begin, end)], _ = found["measured", 0, "F"]
    [(low, high)], _ = found["measured", 0, "B"]
    assert low - begin == pytest.approx(6 * (end - begin), rel=1e-3)
    assert high - low == pytest.approx(2 * (end - begin), rel=1e-3)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert "predicted & more, 9 s" in texts
