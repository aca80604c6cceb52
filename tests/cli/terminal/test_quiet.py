"""--quiet, and what is printed where there is no terminal."""

import os
import pty
import subprocess
import sys

import pytest
from cli.conftest import cappuccino, read_instance, write_instance

from cappuccino.cli.terminal import console

ESCAPE = "\x1b"


def plan(workspace, *options):
    return cappuccino("plan", workspace / "instance.json", "-o", workspace / "p.json", "--time-limit", 0.5, *options)


@pytest.fixture
def warned(workspace):
    """An instance that is warned of."""
    instance = read_instance(workspace)
    instance["adapters"][0]["target_modules"] = ["q_proj", "strange"]
    write_instance(workspace, instance)
    return workspace


def test_quiet_leaves_results_and_errors(warned):
    loud, quiet = plan(warned), plan(warned, "--quiet")
    assert "planning: " in loud.err
    assert "warning: " in loud.err
    assert quiet.code == 0
    assert quiet.err == ""
    assert "objective   gpu_time" in quiet.out
    assert any("strange" in warning for warning in plan(warned, "-q", "--json").json["warnings"])
    (warned / "instance.json").write_text("{")
    assert plan(warned, "-q").err.startswith("error: ")


def test_quiet_is_of_one_command_only(workspace):
    plan(workspace, "-q")
    cappuccino("doctor")  # has no such option
    assert not console.is_quiet()


def test_who_interrupts_is_answered(capsys):
    console.be_quiet(True)
    try:
        console.answer("interrupted")
        console.note("progress")
        console.warn("warning")
    finally:
        console.be_quiet(False)
    assert capsys.readouterr().err == "interrupted\n"


def test_no_colours_and_no_bars_in_a_pipe(workspace):
    done = plan(workspace)
    assert ESCAPE not in done.out + done.err
    assert "━" not in done.err


LEARNT = """
from cappuccino.cli.data_commands import _print_inspected
from cappuccino.runtime.data.inspection import InspectedDataset, ShownToken
counts = {'form': 'text', 'loss_on': 'all'}
tokens = ((ShownToken(1, 'no', False), ShownToken(2, 'yes', True)),)
_print_inspected(InspectedDataset('d', 's', counts, 'ends', tokens))
"""


def on_a_terminal(code: str, **changes: str) -> str:
    """Return what a program prints on a terminal."""
    shown, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", **changes}
    with open(terminal, "wb", closefd=True) as end:
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=end, check=True)
    text = os.read(shown, 10_000).decode()
    os.close(shown)
    return text


def test_without_colour_what_is_learnt_stands_in_brackets():
    coloured = on_a_terminal(LEARNT)
    assert f"{ESCAPE}[1;32m" in coloured
    assert "⟦" not in coloured
    plain = on_a_terminal(LEARNT, NO_COLOR="1")
    assert "32m" not in plain
    assert "⟦yes⟧" in plain.replace(f"{ESCAPE}[1m", "").replace(f"{ESCAPE}[0m", "").replace(f"{ESCAPE}[2m", "")
