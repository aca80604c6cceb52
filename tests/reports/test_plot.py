from xml.etree import ElementTree

import pytest

from cappuccino.reports.plot import Axis, Panel, Series, line_charts

SVG = "{http://www.w3.org/2000/svg}"
DEADLINE, GPU_TIME = Axis("deadline, s"), Axis("GPU time, GPU-s")


def drawn(*series, x=DEADLINE, y=GPU_TIME, columns=1, panels=1):
    return ElementTree.fromstring(line_charts([Panel("title", x, y, series)] * panels, columns))


def group(root, label):
    return next(g for g in root.iter(f"{SVG}g") if g.get("id") == label)


def markers(root, label):
    return [(float(c.get("x")), float(c.get("y"))) for c in group(root, label).iter(f"{SVG}use")]


def line(root, label):
    return group(root, label).find(f"{SVG}path").get("d")


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def test_every_point_has_a_marker_and_every_axis_its_label():
    root = drawn(Series("found", [1, 2, 3], [5, 4, 2]), Series("bound", [1, 2, 3], [4, 3, 1], dashed=True))
    assert len(markers(root, "found")) == len(markers(root, "bound")) == 3
    assert {"title", "deadline, s", "GPU time, GPU-s", "found", "bound"} <= set(texts(root))


def test_larger_values_are_further_right_and_further_up():
    xs, ys = zip(*markers(drawn(Series("a", [1, 2, 4], [1, 2, 4])), "a"), strict=True)
    assert xs[0] < xs[1] < xs[2] and ys[0] > ys[1] > ys[2]
    # a linear axis keeps differences, a logarithmic one ratios
    assert xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), rel=1e-3)
    xs, _ = zip(*markers(drawn(Series("a", [1, 2, 4], [1, 2, 4]), x=Axis("x", log=True)), "a"), strict=True)
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], rel=1e-3)


def test_an_axis_may_begin_at_zero():
    assert "0" in texts(drawn(Series("a", [1, 2], [80, 100]), y=Axis("y", zero=True)))
    assert "0" not in texts(drawn(Series("a", [1, 2], [80, 100])))


def test_a_missing_value_breaks_the_line():
    root = drawn(Series("a", [1, 2, 3, 4], [1, None, 3, 4]))
    assert len(markers(root, "a")) == 3
    assert line(root, "a").count("M") == 2


@pytest.mark.parametrize(("shape", "first"), [("step-after", "x"), ("step-before", "y")])
def test_steps(shape, first):
    root = drawn(Series("a", [1, 2, 3], [3, 2, 1], shape))
    points = [tuple(map(float, p.split())) for p in line(root, "a").replace("M", "L").split("L") if p.strip()]
    assert len(points) == 5
    moved = "x" if points[1][0] != points[0][0] else "y"
    assert moved == first


def test_panels_stand_in_columns():
    root = drawn(Series("a", [1], [1]), panels=3, columns=2)
    width, height = (float(root.get(n).removesuffix("pt")) for n in ("width", "height"))
    single = drawn(Series("a", [1], [1]))
    assert [width, height] == [2 * float(single.get(n).removesuffix("pt")) for n in ("width", "height")]


def test_labels_are_escaped():
    assert "gap <= 2% & more" in texts(drawn(Series("gap <= 2% & more", [1, 2], [1, 2])))


@pytest.mark.parametrize("title", ["a < b & c", "$100 of $\\nothing{", "模型 ☕", "_private"])
def test_a_title_is_what_the_user_wrote(title, recwarn):
    root = ElementTree.fromstring(line_charts([Panel(title, DEADLINE, GPU_TIME, [Series("a", [1, 2], [1, 2])])]))
    assert title in texts(root)
    assert not recwarn


@pytest.mark.parametrize("values", [[7, 7], [0, 0], [1e-7, 2e-7], [3e8, 9e8], [-5, 5]])
def test_axes_of_any_range_have_ticks(values):
    root = drawn(Series("a", [1, 2], values))
    assert len(texts(root)) > 6
    assert len(markers(root, "a")) == 2


@pytest.mark.parametrize("values", [[1, float("nan")], [0, 1]])
def test_what_cannot_be_drawn_is_refused(values):
    with pytest.raises(ValueError, match="cannot be drawn"):
        drawn(Series("a", values, [1, 2]), x=Axis("x", log=True))


def test_equal_charts_are_equal_files():
    panel = Panel("title", DEADLINE, GPU_TIME, [Series("a", [1, 2], [3, 4])])
    assert line_charts([panel]) == line_charts([panel])


def test_a_logarithmic_axis_has_plain_numbers_even_within_a_decade():
    words = texts(drawn(Series("a", [77, 97, 194], [1, 2, 3]), x=Axis("x", log=True)))
    assert {"80", "100", "150"} <= set(words)
