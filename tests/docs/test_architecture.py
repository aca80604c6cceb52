"""The pictures of the architecture show the code of the day."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_architecture", DOCS / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_architecture"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["draw_architecture"]


@pytest.fixture
def shapes(drawing):
    """What the script draws with."""
    return sys.modules["drawing"]


@pytest.mark.parametrize("name", ["packages.svg", "way-of-the-data.svg"])
def test_pictures_are_not_stale(drawing, shapes, name):
    shown = shapes.recorded((DOCS / name).read_text(encoding="utf-8"))
    assert shown == shapes.recorded(drawing.PICTURES[name]()), "python docs/draw_architecture.py draws it anew"


def test_arrows_lead_down_and_leave_nothing_out(drawing, shapes):
    graph = drawing.package_graph()
    level = shapes.levels(graph)
    assert all(level[used] < level[box] for box in graph for used in graph[box])

    def behind(box):
        return set(graph[box]).union(*(behind(used) for used in graph[box]))

    for room, used in drawing.room_imports().items():
        mine = drawing.drawn_as(room)
        if room not in drawing.FOLDERS and mine in graph:
            assert {drawing.drawn_as(u) for u in used if u not in drawing.FOLDERS} - {mine} <= behind(mine)


def test_what_is_gone_is_not_drawn(drawing):
    with pytest.raises(SystemExit, match=r"no module cappuccino\.solvers\.gone"):
        drawing.step("solvers.gone", 0, 0, "improve")
    with pytest.raises(SystemExit, match="does not define gone"):
        drawing.step("solvers.improvement", 0, 0, "gone")
    with pytest.raises(SystemExit, match="no command gone"):
        drawing.command("gone", 0, 0, "checker")
    with pytest.raises(SystemExit, match="no format"):
        drawing.file("plan.json", 0, 0, "plan:cappuccino.gone")


def test_the_text_names_files_that_are_there(drawing):
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = [n for n in text.split("`")[1::2] if n.endswith((".py", "/")) and "/" in n and " " not in n]
    assert len(named) > 10
    for name in named:
        places = [DOCS.parent / name, DOCS.parent / "cappuccino" / name]
        places += [p / name for p in (DOCS.parent / "solvers").iterdir() if p.is_dir()]
        assert any(p.exists() for p in places), name
