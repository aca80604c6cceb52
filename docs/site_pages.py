"""What the site has that no file holds: commands and schemas as they are, and pages from the root of the repository.

A hook of mkdocs (mkdocs.yml). Everything that it writes is in `out/`.
"""

import importlib.util
import inspect
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md")
MARK = re.compile(r"^( *```\w+) (?:slow|no-run)$", re.MULTILINE)
"""What the test of the blocks knows of a block, which is nothing for readers."""
LAID_OUT = ROOT / "out" / "import"
"""Links to the packages; the option `paths` of mkdocs.yml names it."""
PEERS = "[The table](../README.md#beside-its-peers)"
"""Stands in docs/peers.md for the table that the README has."""


def on_startup(**_: Any) -> None:
    """Lay the packages out as they are imported, for mkdocstrings, which reads sources and knows no mapped folders."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    shutil.rmtree(LAID_OUT, ignore_errors=True)
    for package, folder in settings["package-dir"].items():
        place = LAID_OUT.joinpath(*package.split("."))
        place.mkdir(parents=True, exist_ok=True)
        for entry in (ROOT / folder).iterdir():
            if entry.suffix == ".py" or (entry / "__init__.py").is_file():
                (place / entry.name).symlink_to(entry)


def on_files(files: "Files", config: Any) -> "Files":
    """Add the pages that are generated."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - the pages alone can be made without the extra `docs`

    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in FROM_ROOT}
    pages |= {"commands.md": commands_page(), "schemas.md": schemas_page()}
    for schema in _schema_files():
        pages[f"schemas/{schema.name}"] = schema.read_text(encoding="utf-8")
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take marks off the blocks, and make links between the root and docs/ links between pages."""
    markdown = markdown.replace(PEERS, peers_table())
    markdown = MARK.sub(r"\1", markdown).replace("](../CONTRIBUTING.md", "](CONTRIBUTING.md")
    return markdown.replace("](docs/", "](") if page.file.src_uri in FROM_ROOT else markdown


def peers_table() -> str:
    """Return what the README says beside its peers, up to the table's end."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Beside its peers\n")[2].partition("\n## ")[0]
    shown = section[: section.rindex("|\n") + 2].strip()
    return shown.replace("](docs/", "](")


def commands_page() -> str:
    """Return the reference of all commands, as the application knows them."""
    from cappuccino.cli.app import app  # noqa: PLC0415 - the schemas need no commands

    application: Any = typer.main.get_command(app)
    parent = application.context_class(application, info_name="cappuccino")
    lines = ["# Commands", "", application.help or "", ""]
    for name in sorted(application.commands):
        command = application.commands[name]
        context = command.context_class(command, parent=parent, info_name=name)
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [f"## {name}", "", inspect.cleandoc(command.help or ""), "", "```text", usage, "```", ""]
        records = [p.get_help_record(context) for p in command.params if not getattr(p, "hidden", False)]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{' '.join(names.split())}` | {_cell(meaning)} |" for names, meaning in filter(None, records)]
        lines.append("")
    return "\n".join(lines)


def schemas_page() -> str:
    """Return the fields of instances and plans, as their JSON Schemas have them."""
    told = "What a single value may be; what fields say of each other is in [File formats](formats.md)."
    lines = ["# JSON Schemas", "", told, ""]
    for path in _schema_files():
        schema = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## {schema['title']}", "", f"[{path.name}](schemas/{path.name})", ""]
        for name, part in [("", schema), *schema["$defs"].items()]:
            if "properties" not in part:
                continue
            lines += [f"### {name}", ""] if name else []
            lines += [part.get("description", ""), "", "| field | value | default | |", "|---|---|---|---|"]
            required = part.get("required", [])
            for field, one in part["properties"].items():
                default = "required" if field in required else json.dumps(one["default"]) if "default" in one else ""
                cells = (f"`{field}`", _kind(one), default, one.get("description", ""))
                lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
            lines.append("")
    return "\n".join(lines)


def _kind(one: dict[str, Any]) -> str:
    if "$ref" in one:
        return str(one["$ref"]).rsplit("/", 1)[-1]
    if "const" in one:
        return f'"{one["const"]}"'
    if "enum" in one:
        return ", ".join(map(str, one["enum"]))
    if "anyOf" in one or "oneOf" in one:
        return " or ".join(dict.fromkeys(_kind(each) for each in one.get("anyOf") or one["oneOf"]))
    if one.get("type") == "array" and isinstance(one.get("items"), dict):
        return f"list of {_kind(one['items'])}"
    return str(one.get("type", "any"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _schema_files() -> list[Path]:
    spec = importlib.util.find_spec("cappuccino.schemas")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("docs/site_pages.py: the package cappuccino is not installed; pip install -e . first")
    return sorted(Path(spec.submodule_search_locations[0]).glob("*.schema.json"))
