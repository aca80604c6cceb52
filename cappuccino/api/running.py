"""The adapters of a plan trained, in one call; what it needs of the extra `runtime` is imported by the call."""

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cappuccino.api.options import one_of
from cappuccino.checker import check
from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import CappuccinoWarning, InputError
from cappuccino.instance import Instance
from cappuccino.machine.installation import find_installation
from cappuccino.plan import Plan, Recompute
from cappuccino.remaining import planned_alone
from cappuccino.reports.run_warnings import run_warnings

if TYPE_CHECKING:
    from cappuccino.runtime.launch.keeper import CheckpointOptions
    from cappuccino.runtime.launch.run_result import RunResult
    from cappuccino.runtime.monitoring.metrics import MetricEvent


Keep = Literal["last", "best"]


def run(
    plan: Plan,
    instance: Instance,
    backbone: Path | str,
    data: Path | str | None,
    out: Path | str,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "float64", "bfloat16"] | None = None,
    recompute: Recompute | Literal["none", "full"] | None = None,
    keep: Keep = "last",
    base_model_name: str | None = None,
    checkpoint_every: int | Literal["auto"] | None = "auto",
    keep_checkpoints: int = 2,
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_event: "Callable[[MetricEvent], None] | None" = None,
) -> "RunResult":
    """Train the adapters of a plan, one process per pipeline stage, exactly as planned. Needs the extra `runtime`.

    The plan is checked first. Whatever makes its times no prediction for this run is a `CappuccinoWarning`, and so is
    what the data hold that is not used. From the main thread, the first SIGINT (Ctrl-C) or SIGTERM ends the run with
    checkpoints written.

    Parameters
    ----------
    plan
        A valid plan.
    instance
        What the plan was made for.
    backbone
        Folder of the Hugging Face backbone, or its name on the hub.
    data
        Folder with `<dataset>.jsonl`, `.json` or `.parquet` for every dataset; None: the sources in the instance.
    out
        Folder for adapters, losses, trace, metrics, logs and checkpoints.
    device
        Where the stages run.
    dtype
        Type of weights and activations; None: the cost table's, where it says one, else float32.
    recompute
        Activation recomputation instead of what was planned.
    keep
        Weights that adapters are written with: of the last step, or of the least evaluation loss.
    base_model_name
        What the adapters call their backbone; None: its name on the hub, or the path given.
    checkpoint_every
        Optimizer steps of an adapter between checkpoints; "auto": a tenth of its steps; None: no checkpoints.
    keep_checkpoints
        Checkpoints that stay of every adapter.
    resume
        Whether to go on from the checkpoints in `out`.
    on_progress
        Called with the operations done and the operations in all.
    on_event
        Told of every optimizer step, evaluation and early end of an adapter.

    Returns
    -------
    RunResult
        `adapters` (a PEFT folder by name), `losses`, `evaluations`, measured `timelines`, and `diverged`: adapters that
        ended early because a loss was not finite. They are as they were before, and no error.

    Raises
    ------
    InvalidPlanError
        When the plan breaks a rule of validity; nothing was started.
    InputError
        When an option, the instance, the backbone or the data is wrong.
    RunError
        When a process failed; the error says what is kept.
    InterruptedRunError
        When a signal ended the run; likewise.
    ModuleNotFoundError
        When the extra `runtime` is not installed.
    """
    if find_spec("torch") is None:
        command = find_installation().install_command("runtime")
        problem = f'training needs the package "torch"; install it with: {command}'
        raise ModuleNotFoundError(problem, name="torch")
    from cappuccino.runtime.backbone.hub import backbone_name, find_backbone  # noqa: PLC0415
    from cappuccino.runtime.launch.devices import num_gpus  # noqa: PLC0415
    from cappuccino.runtime.launch.interruption import interruptible  # noqa: PLC0415
    from cappuccino.runtime.launch.local import run_plan  # noqa: PLC0415

    if keep not in get_args(Keep):
        raise InputError("run", "keep", f'"{keep}" is not known', f"use one of {', '.join(get_args(Keep))}")
    asked = None if recompute is None else one_of(Recompute, "run", "recompute", recompute)
    checkpoints = _checkpoints(checkpoint_every, keep_checkpoints)
    costs = fit_instance_costs(instance)
    check(*planned_alone(plan, instance), costs).raise_if_invalid()
    used = dtype or profiled_dtype(plan, costs) or "float32"
    gpus = num_gpus(device)
    for warning in run_warnings(plan, instance, costs, device=device, dtype=used, recompute=asked, num_gpus=gpus):
        warnings.warn(warning, CappuccinoWarning, stacklevel=2)
    folder = find_backbone(str(backbone))
    in_main_thread = threading.current_thread() is threading.main_thread()
    with interruptible(lambda: _warn("interrupted: writing checkpoints")) if in_main_thread else nullcontext() as ends:
        return run_plan(
            plan if asked is None else recomputing(plan, asked),
            instance,
            folder,
            None if data is None else Path(data),
            Path(out),
            device=device,
            dtype=used,
            keep=keep,
            backbone_name=base_model_name or backbone_name(str(backbone), folder),
            checkpoints=checkpoints,
            resume=resume,
            interruption=ends,
            on_progress=on_progress,
            on_note=_warn,
            on_event=on_event,
        )


def profiled_dtype(plan: Plan, costs: Mapping[str, CostModel]) -> str | None:
    """Return the type of weights and activations that the costs of a plan were measured with; None for none or several.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    """
    found = {costs[replica.gpu].dtype for replica in plan.replicas} - {None}
    return found.pop() if len(found) == 1 else None


def recomputing(plan: Plan, mode: Recompute) -> Plan:
    """Return a plan whose replicas recompute otherwise than planned."""
    return plan.model_copy(update={"replicas": tuple(r.model_copy(update={"recompute": mode}) for r in plan.replicas)})


def _checkpoints(every: int | str | None, keep: int) -> "CheckpointOptions | None":
    """Return when checkpoints are written; None for never."""
    from cappuccino.runtime.launch.keeper import CheckpointOptions  # noqa: PLC0415

    if every is None:
        return None
    if every != "auto" and not isinstance(every, int):
        raise InputError(
            "run", "checkpoint_every", f'"{every}" is no number of steps', 'give 1 or more, "auto" or None'
        )
    return CheckpointOptions(every=None if isinstance(every, str) else every, keep=keep)


def _warn(message: str) -> None:
    warnings.warn(message, CappuccinoWarning, stacklevel=2)
