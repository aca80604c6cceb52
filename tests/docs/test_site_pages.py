"""The pages of the site that are generated; mkdocs itself is not needed for them."""

import importlib.util
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from cappuccino.cli.app import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_is_in_the_reference(pages):
    sections = dict(part.split("\n", 1) for part in pages.commands_page().split("\n## ")[1:])
    commands = typer.main.get_command(app).commands
    assert set(sections) == set(commands)
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(option in sections[name] for option in parameter.opts), (name, parameter.opts)
        rows = [line for line in sections[name].splitlines() if line.startswith("| `")]
        assert len(rows) == len([p for p in command.params if not getattr(p, "hidden", False)]), name


def test_every_field_of_the_schemas_is_in_the_reference(pages):
    page = pages.schemas_page()
    for name in ("instance", "plan"):
        schema = json.loads((ROOT / "cappuccino" / "schemas" / f"{name}.schema.json").read_text())
        for part in (schema, *schema["$defs"].values()):
            assert all(f"| `{field}` |" in page for field in part.get("properties", {}))


def test_the_table_of_peers_is_that_of_the_readme(pages):
    table = pages.peers_table()
    assert table.startswith("What each says of itself")
    assert "LoRAFusion" in table and table.endswith("|")
    assert "](benchmarks.md)" in table  # a page of the site, seen from docs/
    assert pages.PEERS in (ROOT / "docs" / "peers.md").read_text()


def test_marks_and_links_out_of_docs_are_none_of_the_readers(pages):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="architecture.md"))
    text = "```sh no-run\nmake docs\n```\n[habits](../CONTRIBUTING.md)\n"
    assert pages.on_page_markdown(text, page) == "```sh\nmake docs\n```\n[habits](CONTRIBUTING.md)\n"
    page.file.src_uri = "CONTRIBUTING.md"
    assert pages.on_page_markdown("[costs](docs/costs.md)", page) == "[costs](costs.md)"


def test_packages_are_laid_out_as_they_are_imported(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "LAID_OUT", tmp_path / "import")
    pages.on_startup()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in settings["packages"]:
        assert (tmp_path / "import" / package.replace(".", "/") / "__init__.py").is_file(), package
    pages.on_startup()  # what an earlier build left is replaced
