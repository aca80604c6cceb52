"""What a shell asks for, and is told."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = "import sys; sys.argv[0] = 'cappuccino'; from cappuccino.cli import main; main()"


def ask(words: str, number: int) -> list[str]:
    """Ask as bash does for the word `number` of a line."""
    environment = os.environ | {
        "_CAPPUCCINO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"cappuccino {words}",
        "COMP_CWORD": str(number),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.split()


def test_commands_options_and_instances_are_completed():
    assert set(ask("pr", 1)) == {"provision", "profile"}
    assert "--time-limit" in ask("plan --ti", 2)
    assert set(ask("bench seed4-q", 2)) == {"seed4-qwen32b"}


def test_instances_of_another_library_are_completed_once(tmp_path):
    index = {"entries": [{"name": "mine-1"}, {"name": "mine-2"}, {"name": "other"}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert ask(f"bench --library {tmp_path} mine-1 m", 5) == ["mine-2"]
    assert ask(f"bench --library {tmp_path / 'none'} m", 4) == []
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "index.json").write_text('{"entries": [{"name": "mine"}, {"nam": "more"}]}')
    assert ask(f"bench --library {tmp_path / 'odd'} m", 4) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells_are_shown(shell):
    command = [sys.executable, "-c", PROGRAM, "--show-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "_CAPPUCCINO_COMPLETE" in done.stdout
