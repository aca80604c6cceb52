"""Executed notebooks become pages of the site; mkdocs itself is not needed for them."""

import base64
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
TABLE = (
    "<div>\n<style scoped>\n    .dataframe {}\n</style>\n"
    '<table border="1" class="dataframe">\n\n  <tr></tr>\n</table>\n</div>'
)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "notebook_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cells_and_outputs_stand_in_their_order(pages: ModuleType) -> None:
    picture = {"image/png": base64.b64encode(b"pixels").decode(), "text/plain": "<Figure>"}
    outputs = [
        new_output("stream", name="stdout", text="said\n"),
        new_output("display_data", data=picture),
        new_output("execute_result", data={"text/html": TABLE, "text/plain": "a table"}),
        new_output("execute_result", data={"text/plain": "42"}),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell("f()", outputs=outputs)])
    page, pictures = pages.notebook_page(notebook, "01-first")
    assert pictures == {"01-first-1.png": b"pixels"}
    assert page.split("\n\n") == [
        "# Title",
        "```python\nf()\n```",
        "```text\nsaid\n```",
        "[![Figure 1](01-first-1.png)](01-first-1.png)",
        "<div>\n<table>\n  <tr></tr>\n</table>\n</div>",
        "```text\n42\n```\n",
    ]


def test_long_sentences_are_wrapped(pages: ModuleType) -> None:
    outputs = [new_output("stream", name="stdout", text="short\n  " + "word " * 20 + "\n\nlast\n")]
    page, _ = pages.notebook_page(new_notebook(cells=[new_code_cell("f()", outputs=outputs)]), "01-first")
    shown = page.split("```text\n")[1].splitlines()
    assert shown == ["short", "  " + " ".join(["word"] * 17), "    word word word", "", "last", "```"]


def test_a_notebook_that_fails_ends_the_build(pages: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print(6 * 7)\n1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        pages.executed(path)
    nbformat.write(new_notebook(cells=[new_code_cell("print(6 * 7)")]), path)
    assert pages.executed(path).cells[0].outputs[0].text == "42\n"


def test_links_to_notebooks_lead_to_their_pages(pages: ModuleType) -> None:
    assert pages.on_page_markdown("[a](../notebooks/01-a-b.ipynb)") == "[a](notebooks/01-a-b.md)"
    assert pages.on_page_markdown("[a](costs.md)") == "[a](costs.md)"


def test_every_notebook_is_in_the_overview_and_in_the_navigation() -> None:
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    overview = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert re.findall(r"\.\./notebooks/([\w-]+)\.ipynb", overview) == names
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r": notebooks/([\w-]+)\.md", navigation) == names
