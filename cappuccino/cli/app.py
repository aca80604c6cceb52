"""The commands in one application, and how errors become messages and exit codes."""

import errno
import json
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from cappuccino.cli import (
    adapter_commands,
    bench_commands,
    compare_commands,
    data_commands,
    estimate_commands,
    fit_commands,
    pareto_commands,
    plan_commands,
    profile_commands,
    report_commands,
    run_commands,
    seed_commands,
    simulate_commands,
)
from cappuccino.cli.help import doctor_commands
from cappuccino.cli.help.examples import ExampleCommand, ExampleGroup
from cappuccino.cli.terminal import console
from cappuccino.errors import CappuccinoError

RUNTIME_PACKAGES = {
    "torch",
    "megatron",
    "peft",
    "transformers",
    "datasets",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
}
"""Of the extra `runtime`, which planning does without."""
REPORT_PACKAGES = {"bokeh"}
"""Of the extra `report`, which only pages need."""

_REFUSED_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)

app = typer.Typer(
    name="cappuccino",
    help="Plan and run the fine-tuning of many LoRA adapters on one frozen backbone at the least GPU time.",
    no_args_is_help=True,
    cls=ExampleGroup,
    pretty_exceptions_enable=False,
)
for commands in (
    run_commands,
    adapter_commands,
    data_commands,
    profile_commands,
    plan_commands,
    compare_commands,
    pareto_commands,
    estimate_commands,
    fit_commands,
    bench_commands,
    seed_commands,
    simulate_commands,
    report_commands,
    doctor_commands,
):
    commands.register(app)
for _command in app.registered_commands:
    _command.cls = ExampleCommand


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("cappuccino-lora"))
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    console.be_quiet(False)


def main() -> NoReturn:
    """Run the command line.

    It exits 0 when done, 1 when the input is wrong or infeasible, 2 on wrong usage, 3 when adapters diverged, 75 when a
    run was interrupted.
    """
    try:
        app(standalone_mode=True)
    except CappuccinoError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:  # of a path that the system refuses, wherever it is touched first
        if error.errno not in _REFUSED_PATHS or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; name another path")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in RUNTIME_PACKAGES | REPORT_PACKAGES:
            raise
        extra = "report" if package in REPORT_PACKAGES else "runtime"
        from cappuccino.machine.installation import find_installation  # noqa: PLC0415

        command = find_installation().install_command(extra)
        _fail(f'this command needs the package "{package}"; install it with: {command}')
    sys.exit(0)


def _fail(message: str, status: int = 1) -> NoReturn:
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": message}))
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
