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


def test_plans_fit_a_terminal_of_80_columns(capsys):
    names = ", ".join(f"adapter-{i}" for i in range(20))
    console.print_entry("replica 0", f"3 x a100-40gb, 99.8 s, 121 micro-batches, 32.9/31.3/29.6 GiB: {names}")
    console.print_wrapped(f"{'long-name' * 5}: alone 257.3 GPU-s on 3 x a100-40gb, here it adds 207.4", "  ", "    ")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("replica 0   3 x a100-40gb, ")
    assert lines[1].startswith(" " * 12)
    assert " ".join(" ".join(lines).split()).count("adapter-") == 20
    console.print_entry("plan", "/" + "x" * 200)  # a path stays whole
    assert "x" * 200 in capsys.readouterr().out


def test_what_rounding_leaves_of_nothing_is_nothing():
    assert [console.figure(x) for x in (1.55e-16, -1e-17, 0.0, 0.012345, 118.76999)] == ["0", "0", "0", "0.0123", "119"]
