"""estimate: a cost table from specifications, for a backbone or a GPU that nobody has profiled."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cappuccino.cli.terminal import console
from cappuccino.cli.terminal.console import JsonFlag
from cappuccino.errors import InputError, counted
from cappuccino.files import require_writable

if TYPE_CHECKING:
    from cappuccino.analytic.efficiency import Efficiency, StatedErrors
    from cappuccino.backbone import BackboneShape

BOTH = "both"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(estimate)


def estimate(
    backbone: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="Catalogued name, or a Hugging Face folder or config.json.")
    ],
    gpu: Annotated[str, typer.Option(metavar="GPU", help="Catalogued GPU type.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE", help="Where the table goes (CSV).")],
    num_stages: Annotated[
        str | None, typer.Option(metavar="G,...", help="Pipeline stages; by default 1,2,4,8 as layers allow.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="ENGINE", help="Software: fused (fast), eager (slow launches).")
    ] = "fused",
    recompute: Annotated[
        str, typer.Option(metavar="MODE", help="Activations computed again in the backward: none, full, both.")
    ] = BOTH,
    dtype: Annotated[str, typer.Option(help="Type of computation: bfloat16, float16, float32, tf32.")] = "bfloat16",
    name: Annotated[
        str | None, typer.Option(help="Backbone's name in the table; by default the catalogue's or the folder's.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(metavar="TABLE", help="Measured table to calibrate on instead; repeatable."),
    ] = None,
    calibrate_gpu: Annotated[
        str | None, typer.Option(metavar="GPU", help="GPU of calibration tables without a column `gpu`.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Estimate a cost table from the specifications of a backbone and a GPU: nothing runs, and the error is stated."""
    from cappuccino.analytic.catalogue import DTYPES, GPUS  # noqa: PLC0415
    from cappuccino.analytic.efficiency import ENGINES  # noqa: PLC0415
    from cappuccino.analytic.table import estimated_table  # noqa: PLC0415
    from cappuccino.backbone import BACKBONES  # noqa: PLC0415
    from cappuccino.files import write_atomically  # noqa: PLC0415
    from cappuccino.plan import Recompute  # noqa: PLC0415

    require_writable(output)
    for option, value, known in (
        ("--gpu", gpu, list(GPUS)),
        ("--calibrate-gpu", calibrate_gpu, list(GPUS)),
        ("--engine", engine, list(ENGINES)),
        ("--recompute", recompute, [*(mode.value for mode in Recompute), BOTH]),
        ("--dtype", dtype, list(DTYPES)),
    ):
        if value is not None and value not in known:
            raise InputError(option, "", f'"{value}" is not known', f"use one of {', '.join(known)}")
    label, spec = _backbone(backbone, name)
    counts = _stage_counts(num_stages, label, spec)
    efficiency, errors = _calibrated(calibrate or [], calibrate_gpu, engine, {**BACKBONES, label: spec})
    modes = tuple(Recompute) if recompute == BOTH else (Recompute(recompute),)
    table = estimated_table(label, gpu, spec, counts, modes, efficiency, dtype)
    fits = table["status"] == "OK"
    fitting = {
        m: {g: int((fits & (table["recompute"] == m) & (table["pp_size"] == g)).sum()) for g in counts} for m in modes
    }
    write_atomically(output, table.to_csv(index=False, lineterminator="\n"))
    if gpu not in errors.gpus:
        console.warn(f"no measured table is of a {gpu}: its error may be larger than stated")
    if json:
        figures: dict[str, Any] = {
            "backbone": label,
            "gpu": gpu,
            "engine": engine,
            "dtype": dtype,
            "parameters": spec.parameters,
            "source": "analytic",
        }
        figures |= {"rows": len(table), "rows_that_fit": fitting}
        console.print_json(
            {"table": str(output), **figures, "efficiency": asdict(efficiency), "errors": asdict(errors)}
        )
        return
    print(f"analytic: {_off(f'{errors.measured} are', errors.time, errors.time_left_out, errors.time_gpu_left_out)}")
    print(f"analytic: {_off('peak memory is', errors.memory, errors.memory_left_out)}")
    size = f"{spec.parameters / 1e9:.3g} billion parameters, {counted(spec.num_layers, 'layer')}"
    print(f"{label} on {gpu}, {engine}, {dtype}: {size}")
    each = len(table) // len(counts) // len(modes)
    for g in counts:
        found = ", ".join(f"{fitting[mode][g]} of {each} rows fit with recomputation {mode}" for mode in modes)
        print(f"  {counted(g, 'stage')}: {found}")
    print(f"table {output}")


def _backbone(text: str, name: str | None) -> "tuple[str, BackboneShape]":
    from cappuccino.backbone import BACKBONES, read_backbone_shape  # noqa: PLC0415

    if name is not None and not name.strip():
        raise InputError("--name", "", f'"{name}" is no name', "give the name that instances use")
    if text in BACKBONES:
        return name or text, BACKBONES[text]
    path = Path(text)
    if not path.exists():
        remedy = f"give a folder or a config.json, or one of {', '.join(BACKBONES)}"
        raise InputError("--backbone", "", f'"{text}" is neither catalogued nor a file', remedy)
    spec = read_backbone_shape(path)
    folder = path if path.is_dir() else path.parent
    return name or folder.resolve().name, spec


def _stage_counts(text: str | None, label: str, spec: "BackboneShape") -> list[int]:
    from cappuccino.analytic.table import stage_counts  # noqa: PLC0415

    if text is None:
        return stage_counts(spec)
    counts = list(dict.fromkeys(console.integers("--num-stages", text, least=1)))
    if max(counts) > spec.num_layers:
        problem = f"{max(counts)} is more than the {counted(spec.num_layers, 'layer')} of {label}"
        raise InputError("--num-stages", "", problem, "give fewer stages")
    return counts


def _calibrated(
    tables: list[Path], gpu: str | None, engine: str, specs: "dict[str, BackboneShape]"
) -> "tuple[Efficiency, StatedErrors]":
    from cappuccino.analytic.catalogue import GPUS  # noqa: PLC0415
    from cappuccino.analytic.efficiency import COUNTED, ENGINES, STATED, StatedErrors  # noqa: PLC0415

    if not tables:
        return ENGINES[engine], STATED[engine]

    from cappuccino.analytic.calibration import calibrate_roofline  # noqa: PLC0415
    from cappuccino.analytic.measured import measured_rows  # noqa: PLC0415
    from cappuccino.costs import read_cost_table  # noqa: PLC0415

    rows = [row for table in tables for row in measured_rows(read_cost_table(table), gpu, specs)]
    found = calibrate_roofline(rows, COUNTED[engine])
    memory, memory_left_out = found.fitted.memory, found.left_out.memory if found.left_out else None
    errors = StatedErrors(
        measured="step times",
        gpus=tuple(name for name, spec in GPUS.items() if spec in {row.gpu_spec for row in rows}),
        time=found.fitted.time.mape,
        time_left_out=found.left_out.time.mape if found.left_out else None,
        time_gpu_left_out=found.gpu_left_out.time.mape if found.gpu_left_out else None,
        memory=memory.mape if memory else None,
        memory_left_out=memory_left_out.mape if memory_left_out else None,
    )
    return found.efficiency, errors


def _off(what: str, error: float | None, *left_out: float | None) -> str:
    if error is None:
        return f"{what} counted, and was never measured"
    mean, *unseen = (("unknown" if e is None else f"{100 * e:.1f}%") for e in (error, *left_out))
    places = ("on a backbone left out", "on a GPU left out")
    without = ", ".join(f"{e} {where}" for e, where in zip(unseen, places, strict=False))
    return f"{what} off by {mean} in the mean where measured ({without})"
