"""Every command and every piece of Python that the documentation shows does what it says: it is run as printed.

A fence's information string may hold a mark. `slow`: takes longer than a moment, and runs with `--slow`. `no-run`:
needs a GPU, a download, minutes, or files of the reader's own; commands and options that it names are looked up in the
application.
"""

import ast
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import cappuccino
from cappuccino.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
MARKS = ("", "slow", "no-run")
DATA = ("text", "yaml", "json")
"""Languages of blocks that show what is in a file or on a terminal."""
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        language, _, mark = fence.group(1).partition(" ")
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, mark, fence.group(2)))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CODE = [block for block in BLOCKS if block.language not in DATA]


def pages_with(*marks: str) -> list[list[Block]]:
    pages = [[b for b in CODE if b.page == page and b.mark in marks] for page in PAGES]
    return [blocks for blocks in pages if blocks]


def named_by(blocks: list[Block]) -> str:
    return str(blocks[0].page.relative_to(ROOT))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of what is in the repository, with the environment of this process as its `.venv`."""
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a checkout of git")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return tmp_path


def run(block: Block, folder: Path) -> None:
    # as a reader does: in the root, behind an `activate`; the first command that fails ends it
    programs = Path(sys.executable).parent
    # the package is the installed one, whose kernels are compiled, not the copy in the folder
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONSAFEPATH": "1"}
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = shell if block.language == "sh" else [sys.executable, "-c", block.text]
    started = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = started.communicate()
    finally:
        with suppress(ProcessLookupError):  # where all of it ended by itself
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, f"{block.name}\n{out[-2000:]}\n{errors[-2000:]}"


@pytest.mark.parametrize("blocks", pages_with(""), ids=named_by)
def test_quick_blocks_run_as_printed(blocks: list[Block], copy: Path) -> None:
    for block in blocks:
        run(block, copy)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", pages_with("", "slow"), ids=named_by)
def test_all_blocks_run_as_printed(blocks: list[Block], copy: Path) -> None:
    for block in blocks:
        run(block, copy)


def test_blocks_say_what_they_are() -> None:
    assert len([b for b in CODE if b.mark != "no-run"]) > 4
    for block in BLOCKS:
        assert block.language in ("sh", "python", *DATA), f"{block.name}: {block.language!r}"
        assert block.mark in MARKS, f"{block.name}: {block.mark!r}"
    for page in PAGES:
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks_of(page)), f"{page.name}: a fence that is not at the begin of its line"


def mistakes(line: str) -> list[str]:
    """Return what a line of shell names that is not there: commands, options, targets of make, scripts."""
    words = shlex.split(line, comments=True)
    wrong = [word for word in words if word.startswith("../")]  # not in the repository
    while "&&" in words:
        first, words = words[: words.index("&&")], words[words.index("&&") + 1 :]
        wrong += mistakes(shlex.join(first))
    if words[:1] == ["cappuccino"]:
        if words[1:2] == [] or words[1] not in COMMANDS:
            return [*wrong, shlex.join(words[:2])]
        known = {name for p in COMMANDS[words[1]].params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
        given = [w.partition("=")[0] for w in words[2:] if re.match(r"--?[a-zA-Z]", w)]
        wrong += [f"cappuccino {words[1]} {option}" for option in given if option not in known]
    elif words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        wrong += [f"make {target}" for target in words[1:] if target not in targets]
    elif words[:1] == ["python"] and words[1] != "-m":
        wrong += _wrong_of_script(words[1], words[2:])
    elif words[:2] == ["python", "-m"]:
        top, *inside = words[2].split(".")[1:]
        wrong += [] if (ROOT / top / "/".join(inside)).with_suffix(".py").is_file() else [words[2]]
    elif words and words[0] not in (".", "pip", "git", "cd", "pre-commit"):
        wrong.append(words[0])
    return wrong


def _wrong_of_script(script: str, options: list[str]) -> list[str]:
    if not (ROOT / script).is_file():
        return [script]
    text = (ROOT / script).read_text(encoding="utf-8")
    return [f"{script} {o}" for o in options if o.startswith("--") and f'"{o.partition("=")[0]}"' not in text]


@pytest.mark.parametrize("block", [b for b in CODE if b.language == "sh"], ids=lambda b: b.name)
def test_commands_name_what_is_there(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        assert mistakes(line) == [], block.name


def test_what_is_not_there_is_found() -> None:
    assert mistakes("cappuccino plan a.json -o b.json --time-limit 5  # --no-such") == []
    assert mistakes("cappuccino plan a.json --no-such=1 -y") == ["cappuccino plan --no-such", "cappuccino plan -y"]
    assert mistakes("cappuccino brew a.json") == ["cappuccino brew"]
    assert mistakes("cappuccino") == ["cappuccino"]
    assert mistakes("cappuccino check ../a.json") == ["../a.json"]
    assert mistakes("make demo tea && cappuccino brew") == ["make tea", "cappuccino brew"]
    assert mistakes("python docs/scale.py --quick --slowly") == ["docs/scale.py --slowly"]
    assert mistakes("python -m cappuccino.instances.generate_all") == ["cappuccino.instances.generate_all"]
    assert mistakes("captain plan") == ["captain"]


@pytest.mark.parametrize("block", [b for b in CODE if b.language == "python"], ids=lambda b: b.name)
def test_python_names_what_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("cappuccino."):
            continue
        called = cappuccino
        for name in ast.unparse(node.func).split(".")[1:]:
            called = getattr(called, name)
        arguments = {keyword.arg: None for keyword in node.keywords}
        inspect.signature(called).bind(*node.args, **arguments)
