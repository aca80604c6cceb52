"""The notebooks as pages of the site, executed: their figures are those of the version that the site is of.

A hook of mkdocs (mkdocs.yml). Notebooks run in their small size, each in a kernel of its own, unless the environment
variable CAPPUCCINO_NOTEBOOKS says `full`. One that fails ends the build.
"""

import base64
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
LINK = re.compile(r"\]\(\.\./notebooks/([\w-]+)\.ipynb\)")
"""To a notebook, seen from docs/."""
STYLE = re.compile(r"<style.*?</style>\n?", re.DOTALL)
"""What pandas says of its tables; the theme has a style for tables of no class."""
COLUMNS = 88
"""Of the page that printed lines are wrapped to."""
SECONDS = 600
"""A cell may take."""


def on_files(files: "Files", config: Any) -> "Files":
    """Add the pages and their pictures."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - the pages alone can be made without mkdocs

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page, pictures = notebook_page(executed(path), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links to notebooks links to their pages."""
    return LINK.sub(r"](notebooks/\1.md)", markdown)


def executed(path: Path) -> "NotebookNode":
    """Return a notebook with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails.
    """
    import nbformat  # noqa: PLC0415
    from nbclient import NotebookClient  # noqa: PLC0415

    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    quiet = ["--log-level=ERROR"]
    return NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=quiet).execute()


def notebook_page(notebook: "NotebookNode", name: str) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as Markdown, and the pictures that it shows by their file names.

    Parameters
    ----------
    name
        What the names of the pictures begin with.
    """
    blocks: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        blocks.append(_fenced("python", cell.source) if cell.cell_type == "code" else cell.source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if output.output_type == "stream":
                blocks.append(_fenced("text", _wrapped(output.text)))
            elif "image/png" in data:
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                blocks.append(f"[![Figure {len(pictures)}]({picture})]({picture})")  # a click shows it whole
            elif "text/html" in data:
                blocks.append(_plain_table(data["text/html"]))
            elif "text/plain" in data:
                blocks.append(_fenced("text", data["text/plain"]))
    return "\n\n".join(blocks) + "\n", pictures


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _wrapped(text: str) -> str:
    """Return printed lines wrapped, the rest of each a little further in."""
    lines = (
        textwrap.wrap(line, COLUMNS, subsequent_indent="    ", break_long_words=False) or [""]
        for line in text.splitlines()
    )
    return "\n".join(part for wrapped in lines for part in wrapped)


def _plain_table(html: str) -> str:
    """Return a table of pandas as the theme shows tables; a blank line would end it for Markdown."""
    plain = STYLE.sub("", html).replace('<table border="1" class="dataframe">', "<table>")
    return "\n".join(line for line in plain.splitlines() if line.strip())
