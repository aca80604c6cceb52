"""Notebooks are stored without output, run from top to bottom, label their axes and end with what was learnt.

They run in their small size, one after the other in one kernel, which imports the packages once.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
RUNS = "07-plan-against-run"
SLOW = {"02-budget-and-deadline", "03-heterogeneity", "05-errors-in-the-costs"}
"""Those that search longest; with `--slow` they run as well."""

FORGET = """
%reset -f
%matplotlib agg
import sys
import matplotlib.pyplot
matplotlib.pyplot.close("all")
if sys.modules.get("torch", sys) is None:
    del sys.modules["torch"]
"""
WITHOUT_TORCH = "sys.modules['torch'] = None"
"""As where it is not installed, until the next notebook."""
AXES = """
import json
import matplotlib.pyplot
from matplotlib.category import StrCategoryFormatter
from matplotlib.ticker import FixedFormatter, FuncFormatter
print(json.dumps([
    {
        "label": axis.get_label_text(),
        "counts": not isinstance(axis.get_major_formatter(), StrCategoryFormatter | FixedFormatter | FuncFormatter)
        or all(t.get_text().replace(".", "").isdigit() for t in axis.get_ticklabels() if t.get_text()),
    }
    for number in matplotlib.pyplot.get_fignums()
    for axes in matplotlib.pyplot.figure(number).axes
    if axes.axison
    for axis in (axes.xaxis, axes.yaxis)
]))
"""
"""Prints the axes of all figures that are open, and whether they have numbers."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(next(p for p in NOTEBOOKS if p.stem == name), as_version=4)


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    client = NotebookClient(new_notebook(), timeout=300, resources={"metadata": {"path": str(NOTEBOOKS[0].parent)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPPUCCINO_NOTEBOOKS", "small")
        with client.setup_kernel():
            yield client


def executed(kernel: NotebookClient, notebook: nbformat.NotebookNode, before: str = "") -> nbformat.NotebookNode:
    """Return a notebook with its outputs; the last cell, behind its own, prints the axes of its figures."""
    notebook.cells = [new_code_cell(FORGET + before), *notebook.cells, new_code_cell(AXES)]
    kernel.nb = notebook
    for index, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, index)
    return notebook


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def check_output(notebook: nbformat.NotebookNode) -> None:
    sentences = printed(notebook.cells[-2]).strip().splitlines()
    assert len(sentences) > 1, "too few sentences"
    assert all(line.rstrip().endswith(".") for line in sentences), sentences
    assert any(character.isdigit() for character in "".join(sentences)), "no number in them"
    axes = json.loads(printed(notebook.cells[-1]))
    assert axes, "no figure"
    for axis in axes:
        assert axis["label"], "an axis without a label"
        assert ", " in axis["label"] or not axis["counts"], f"{axis['label']}: no unit"


def test_there_are_eight() -> None:
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{k:02}" for k in range(1, 9)]


@pytest.mark.parametrize("name", [p.stem for p in NOTEBOOKS])
def test_stored_without_output(name: str) -> None:
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert notebook.cells[0].source.startswith("# ")
    assert notebook.cells[-2].source == "## What was learnt"
    assert notebook.cells[-1].cell_type == "code"


@pytest.mark.parametrize("name", [pytest.param(p.stem, marks=[pytest.mark.slow] * (p.stem in SLOW)) for p in NOTEBOOKS])
def test_runs(kernel: NotebookClient, name: str) -> None:
    if name == RUNS:  # as where there is no torch: the training takes longer, and is below
        check_output(executed(kernel, read(name), WITHOUT_TORCH))
    else:
        check_output(executed(kernel, read(name)))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="training needs the extra runtime")
def test_trains(kernel: NotebookClient) -> None:
    notebook = executed(kernel, read(RUNS))
    check_output(notebook)
    assert "Measured:" in printed(notebook.cells[-2])


DRAWN = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.barh(['a', 'b'], [1, 2])\n"
LABELLED = f"{DRAWN}ax.set(xlabel='time, s', ylabel='adapter')\n"
SAID = "Took 3 s.\nNo more."


@pytest.mark.parametrize(
    ("figure", "said", "complaint"),
    [
        (f"{DRAWN}ax.set(xlabel='time, s')", SAID, "an axis without a label"),
        (f"{DRAWN}ax.set(xlabel='time', ylabel='adapter')", SAID, "time: no unit"),
        (f"{LABELLED}ax.set_yticks([0, 1], [2, 4])", SAID, "adapter: no unit"),
        ("", SAID, "no figure"),
        (LABELLED, "Took 3 s.", "too few sentences"),
        (LABELLED, "It took long.\nNo more.", "no number"),
    ],
)
def test_what_is_missing_is_found(kernel: NotebookClient, figure: str, said: str, complaint: str) -> None:
    cells = [new_code_cell(figure), new_code_cell(f"print({said!r})")]
    with pytest.raises(AssertionError, match=complaint):
        check_output(executed(kernel, new_notebook(cells=cells)))


def test_what_is_whole_is_accepted(kernel: NotebookClient) -> None:
    check_output(executed(kernel, new_notebook(cells=[new_code_cell(LABELLED), new_code_cell(f"print({SAID!r})")])))
