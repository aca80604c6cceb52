"""Every --help ends with examples, and these name what is there: commands, options and files."""

import shlex
from pathlib import Path

import pytest
import typer
from cli.conftest import cappuccino
from helpers.imports import ROOT

from cappuccino.cli.app import app
from cappuccino.cli.help.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands
MADE_BY_THE_DEMO = {
    "backbone", "data", "data/docs.jsonl", "plan.json", "instance.json", "adapters/docs", "adapters/trace.json"
}  # fmt: skip
OUTPUTS = {"-o", "--output", "--plot", "--trace", "--plans"}
"""Options whose values are made; `--trace` of `calibrate` is read, and made by the demo."""


def shown(command: str) -> list[list[str]]:
    """Return the command lines that the help of a command prints behind its last box, as a shell reads them."""
    done = cappuccino(*filter(None, [command]), "--help")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    tail = done.out[done.out.rindex("Example") :]
    text = tail.partition("\n")[2].replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def option_values(words: list[str]) -> dict[str, list[str]]:
    """Return what stands behind every option, and under `""` what stands behind none."""
    found: dict[str, list[str]] = {"": []}
    option = ""
    for word in words:
        if word.startswith("-"):
            option = word
            found.setdefault(option, [])
        else:
            found[option].append(word)
            option = option if option == "--data" else ""
    return found


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_ends_with_examples_of_commands_and_options_that_exist(command):
    lines = shown(command)
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert line[0] == "cappuccino"
        assert command in ("", line[1])
        known = {name: p for p in COMMANDS[line[1]].params for name in (*p.opts, *p.secondary_opts)}
        for option, values in option_values(line[2:]).items():
            assert not option or option in known, f"{command}: {option}"
            if option:
                assert bool(values) != bool(getattr(known[option], "is_flag", False)), f"{command}: {option}"
        required = {p.opts[0] for p in COMMANDS[line[1]].params if p.required and p.opts[0].startswith("-")}
        assert required <= {name for word in line if word in known for name in known[word].opts}


def test_examples_read_files_that_are_there_or_that_others_make():
    lines = [line for command in EXAMPLES for line in shown(command)]
    made = {v for line in lines for o, values in option_values(line[2:]).items() if o in OUTPUTS for v in values}
    made |= {f"out/demo/{name}" for name in MADE_BY_THE_DEMO}
    for line in lines:
        for word in line[2:]:
            path = word.partition("=")[2] or word
            if "/" in path and path not in made and not path.startswith("ORGANISATION/"):
                assert (ROOT / path).exists(), shlex.join(line)


def test_no_command_is_without_examples_and_no_example_without_command():
    assert set(EXAMPLES) == {"", *COMMANDS}


@pytest.mark.parametrize("command", ["doctor", "estimate"])
def test_examples_that_need_nothing_run_as_printed(command, tmp_path, monkeypatch):
    for name in ("instances", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for line in shown(command):
        done = cappuccino(*line[1:])
        assert done.code == 0, done.err
        assert all(Path(v).exists() for o, values in option_values(line[2:]).items() if o in OUTPUTS for v in values)
