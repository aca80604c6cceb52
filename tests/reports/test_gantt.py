from xml.etree import ElementTree

import numpy as np

from cappuccino.reports.gantt import COLOURS, gantt
from cappuccino.timeline import Timeline


def test_every_operation_is_drawn_where_it_ran():
    line = Timeline(
        0,
        ((("F", 0), ("B", 0), ("S", 0, 0)), (("F", 0), ("B", 0))),
        (np.array([0.0, 6.0, 8.0]), np.array([1.0, 3.0])),
        (np.array([1.0, 8.0, 9.0]), np.array([3.0, 6.0])),
    )
    root = ElementTree.fromstring(gantt([("predicted & more", line), ("measured", line)]))
    boxes = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if len(r)]
    assert len(boxes) == 2 * 5
    first, second = boxes[0], boxes[1]
    assert first.get("fill") == COLOURS["F"]
    assert first[0].text == "F 0: 0 to 1 s"
    # the second box of a stage begins where its operation does: at 6 of 9 s, on the same scale
    unit = float(first.get("width"))
    assert abs(float(second.get("x")) - float(first.get("x")) - 6 * unit) < 0.05
    assert abs(float(second.get("width")) - 2 * unit) < 0.05
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "predicted & more, 9 s" in texts
