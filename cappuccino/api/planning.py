"""An instance becomes a plan, in one call."""

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from cappuccino.api.options import one_of
from cappuccino.costs import fit_instance_costs
from cappuccino.errors import CappuccinoWarning, InputError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan, Recompute
from cappuccino.remaining import planned_onwards, remaining_instance
from cappuccino.reports.plan_warnings import instance_warnings, plan_warnings
from cappuccino.solvers.budget import interruptible
from cappuccino.solvers.export.models import require_exportable
from cappuccino.solvers.export.replicas import MOST_CHOICES
from cappuccino.solvers.layer_split import LayerSplit
from cappuccino.solvers.planning import PlanOptions, Progress, plan_with_models
from cappuccino.solvers.settings import Method, with_method


def plan(
    instance: Instance,
    *,
    time_limit: float | None = 60.0,
    objective: Objective | Literal["gpu_time", "makespan", "cost"] = "gpu_time",
    deadline: float | None = None,
    num_stages: int | None = None,
    seed: int = 0,
    gap: float = 1e-3,
    profiled_only: bool = False,
    recompute: Recompute | Literal["none", "full"] | None = None,
    layers: LayerSplit | Literal["auto", "even"] = "auto",
    method: Method | Literal["auto", "cp-sat", "search"] = "auto",
    resume: Path | str | None = None,
    export_models: Path | str | None = None,
    export_limit: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Plan:
    """Plan an instance: replicas, micro-batches and the order of all operations, with a proven bound.

    The independent checker has confirmed what is returned. In the main thread, a first Ctrl-C ends the search with the
    best plan so far. What there is to know before one relies on the plan, costs
    that nobody measured for example, is a `CappuccinoWarning`.

    Parameters
    ----------
    instance
        What is to be trained, and the GPUs that are there.
    time_limit
        Seconds for the search; None: limits of iterations only, so that equal seeds give equal plans.
    objective
        What is minimised: "gpu_time" (GPU-seconds), "makespan" (seconds) or "cost" (money, where pools have prices).
    deadline
        Seconds within which every replica is to end; None: no limit.
    num_stages
        Pipeline stages of every replica; None: the planner chooses, replica by replica.
    seed
        Of the search.
    gap
        The search ends at this distance to the bound, a fraction of the objective.
    profiled_only
        Whether only the stage counts of the cost table are allowed.
    recompute
        Activation recomputation, "none" or "full"; None: the planner chooses among what the cost table has.
    layers
        Decoder layers by stage: "auto", as suits the instance, where the table tells; or "even".
    method
        What schedules replicas: "search", local search; "cp-sat", CP-SAT from a greedy schedule; "auto", both.
    resume
        Output folder of a run: what its checkpoints leave is planned.
    export_models
        Folder for the models behind the plan, new, empty, or of an earlier export: the set partitioning as LP and MPS,
        every replica as a CP-SAT model, and README.txt, which tells what they are. Replicas that are too large for a
        model are a `CappuccinoWarning`.
    export_limit
        Samples x micro-batches of a replica up to which its model is exported; None: 10,000.
    on_progress
        Called with seconds, objective and bound whenever the search has come further.

    Raises
    ------
    InputError
        When an option, the instance, or its cost table is wrong.
    InfeasibleError
        When there can be no plan; `NoPlanFoundError` when none was found in time.
    CappuccinoError
        When the time was up before there was a plan.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import cappuccino
    >>> instance = cappuccino.Instance.load(files("cappuccino.instances") / "tiny1-llama7b.json")
    >>> plan = cappuccino.plan(instance, time_limit=None)
    >>> plan.status.value, plan.gap < 1e-3
    ('optimal', True)
    >>> cappuccino.plan(instance, objective="time")
    Traceback (most recent call last):
        ...
    cappuccino.errors.InputError: plan: objective: "time" is not known; use one of gpu_time, makespan, cost
    """
    options = PlanOptions(
        objective=one_of(Objective, "plan", "objective", objective),
        time_limit_s=time_limit,
        gap=gap,
        deadline_s=deadline,
        num_stages=num_stages,
        profiled_only=profiled_only,
        recompute=None if recompute is None else one_of(Recompute, "plan", "recompute", recompute),
        layers=one_of(LayerSplit, "plan", "layers", layers),
        seed=seed,
        settings=with_method(one_of(Method, "plan", "method", method)),
    )
    if export_models is not None:
        require_exportable(Path(export_models), most_choices=export_limit)
    elif export_limit is not None:
        raise InputError("plan", "export_limit", "is given without export_models", "name the folder, or leave it out")
    done = {} if resume is None else _steps_done(instance, Path(resume))
    left = remaining_instance(instance, done) if done else instance
    costs = fit_instance_costs(left)
    in_main_thread = threading.current_thread() is threading.main_thread()
    with interruptible(_say_that_it_ends) if in_main_thread else nullcontext():
        found = plan_with_models(left, options, costs, on_progress)
    made = found.plan
    notes: tuple[str, ...] = ()
    if export_models is not None:
        notes = found.models.export(Path(export_models), export_limit or MOST_CHOICES).notes
    for warning in (*instance_warnings(left), *plan_warnings(made, left, costs), *notes):
        warnings.warn(warning, CappuccinoWarning, stacklevel=2)
    return planned_onwards(made, instance, done) if done else made


def _say_that_it_ends() -> None:
    message = "interrupted: finishing with the best plan so far; interrupt again to give up"
    warnings.warn(message, CappuccinoWarning, stacklevel=2)


def _steps_done(instance: Instance, out: Path) -> dict[str, int]:
    from cappuccino.runtime.checkpoint.progress import steps_done  # noqa: PLC0415 - planning alone needs no runtime

    return steps_done(instance, out)
