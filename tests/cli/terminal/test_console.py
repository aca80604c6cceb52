"""What every command prints with."""

import json

import pytest

from cappuccino.cli.terminal import console


def test_a_diverged_loss_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    # JSON has no NaN: Python's own parser takes it, jq and every other one stops there.
    console.print_json({"adapters": {"a": {"last_loss": float("nan")}}, "bounds": [float("inf"), 1.5]})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert said == {"adapters": {"a": {"last_loss": None}}, "bounds": [None, 1.5]}


def test_tables_are_as_wide_as_it_takes(capsys):
    long = "x" * 300
    console.print_table(
        ("plan", "GPU-s", "checked"), [("[red]ours", "1.5", "valid"), (long, "10.25", "no")], {"checked"}
    )
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == f"{'plan':300}  GPU-s  checked"
    assert first == f"{'[red]ours':300}    1.5  valid"
    assert second == f"{long}  10.25  no"


@pytest.mark.parametrize(("pause_s", "lines"), [(0.0, ["work: 25%, one", "work: 50%, two"]), (1e9, [])])
def test_progress_is_told_where_there_is_no_terminal(pause_s, lines, monkeypatch, capsys):
    monkeypatch.setattr(console, "PAUSE_S", pause_s)
    with console.progress_bar("work") as show:
        show(0.25, "one")
        show(0.5, "two")
    assert capsys.readouterr().err.splitlines() == [*lines, "work: two"]
