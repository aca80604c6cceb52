"""doctor: what this machine can do, and what brings the rest."""

from typing import TYPE_CHECKING

import typer

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag
from cappuccino.errors import counted

if TYPE_CHECKING:
    from cappuccino.machine.checkup import Checkup, ExtraState


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(json: JsonFlag = False) -> None:
    """Say what this machine can do, and which command brings what is missing; exit 1 when planning cannot work."""
    from cappuccino.machine.checkup import check_up  # noqa: PLC0415

    found = check_up()
    if json:
        console.print_json(found.figures())
    else:
        _print(found)
    if not found.plans:
        raise typer.Exit(1)


def _print(found: "Checkup") -> None:
    memory = "" if found.memory is None else f", {found.memory[1]:.1f} of {found.memory[0]:.1f} GiB of memory free"
    console.print_entry("cappuccino", f"from {found.installation.described}")
    console.print_entry("machine", f"Python {found.python}, {counted(found.cores, 'core')}{memory}")
    for gpu in found.gpus:
        console.print_entry(
            "GPU", f"{gpu.name}, {gpu.free_gib:.1f} of {gpu.memory_gib:.1f} GiB free, driver {gpu.driver}"
        )
    if not found.gpus:
        console.print_entry("GPU", f"none ({found.no_gpus})")
    for extra in found.extras:
        _print_extra(extra, found)
    ray = "not installed" if found.ray is None else f"ray {found.ray}"
    console.print_entry("Ray", f"{ray}; nothing here needs it: run starts the processes of this machine itself")
    kernels = found.kernels
    later = "" if kernels.cached == kernels.modules else "; the others at their first use, some half a minute for all"
    console.print_entry("kernels", f"{kernels.cached} of {counted(kernels.modules, 'module')} compiled{later}")
    console.print_entry("instances", f"{found.instances} shipped (cappuccino bench --help)")


def _print_extra(extra: "ExtraState", found: "Checkup") -> None:
    """Print whether what an extra is for works, with what is there and what is not."""
    heading = {"": "planning", "runtime": "training", "gpu": "flash-attn"}.get(extra.extra, extra.extra)
    there = ", ".join(p.described for p in extra.packages if p.state == "ok")
    if not extra.lacking:
        console.print_entry(heading, f"{_works(extra.extra, found)}: {there}")
        return
    lacking = ", ".join(p.described for p in extra.lacking)
    broken = "DOES NOT WORK" if extra.extra in ("", "runtime") else "not here"
    console.print_entry(heading, f"{broken}: {lacking}, for {extra.purpose}")
    if there:
        console.print_entry("", f"here: {there}")
    if extra.extra == "gpu" and not found.gpus:
        console.print_entry("", "not needed without a GPU")
    else:
        print(f"{'':<{console.INDENT}}{extra.command}")  # not wrapped: to be copied


def _works(extra: str, found: "Checkup") -> str:
    if extra == "" and not found.plans:
        return f"DOES NOT WORK ({'; '.join(found.problems)})"
    if extra != "runtime":
        return "works"
    build = found.torch_build or "unknown build"
    if found.trains_on_gpus:
        return f"works, on GPUs too (torch built for {build})"
    if found.gpus and build == "cpu":
        return "works on the CPU only (this torch is built for the CPU: pytorch.org/get-started names the other)"
    return f"works on the CPU (torch built for {build})"
