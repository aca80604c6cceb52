"""Plans that others would make, on the same costs and checked by the same checker: what a plan is compared with."""

import time
from collections.abc import Callable, Mapping
from enum import StrEnum

from cappuccino.costs import CostModel
from cappuccino.instance import Instance
from cappuccino.plan import Plan
from cappuccino.solvers.assembly import assemble_plan
from cappuccino.solvers.baselines.grouped import grouped
from cappuccino.solvers.baselines.layout import Layout
from cappuccino.solvers.baselines.mlora import mlora
from cappuccino.solvers.baselines.reference import reference
from cappuccino.solvers.baselines.sequential import sequential
from cappuccino.solvers.layer_split import LayerSplit, with_layers
from cappuccino.solvers.scheduling.schedule import PlacedReplica
from cappuccino.solvers.verification import verified


class Baseline(StrEnum):
    """Ways to train many adapters, each described in its module."""

    SEQUENTIAL = "sequential"
    """Every adapter alone."""
    MLORA = "mlora"
    """Adapters take turns in one pipeline, each with its own micro-batches."""
    REFERENCE = "reference"
    """The heuristics of the system that this project started from."""
    GROUPED = "grouped"
    """Groups of adapters whose batches alternate, bin-packed."""


BASELINES: tuple[Baseline, ...] = tuple(Baseline)

_MAKERS: Mapping[Baseline, Callable[[Instance, Mapping[str, CostModel]], Layout]] = {
    Baseline.SEQUENTIAL: sequential,
    Baseline.MLORA: mlora,
    Baseline.REFERENCE: reference,
    Baseline.GROUPED: grouped,
}


def baseline_plan(name: Baseline | str, instance: Instance, costs: Mapping[str, CostModel]) -> Plan:
    """Return the plan that a baseline makes of an instance; the checker has confirmed it.

    Baselines are deterministic and aim at the least GPU time. Their plans state no bound.

    Parameters
    ----------
    costs
        Cost model by GPU type.

    Raises
    ------
    InfeasibleError
        When the baseline cannot run on the instance; the message says why.
    ValueError
        When there is no baseline of this name.
    PlannerError
        When the checker refuses the plan: an error of this program.
    """
    baseline = Baseline(name)
    begin = time.monotonic()
    costs = with_layers(instance, costs, LayerSplit.AUTO)
    plan = assemble_plan(
        instance,
        costs,
        baseline_replicas(baseline, instance, costs),
        wall_time_s=time.monotonic() - begin,
        solver={"baseline": baseline.value},
    )
    return verified(plan, instance, costs, f"baseline {baseline}")


def baseline_replicas(
    baseline: Baseline, instance: Instance, costs: Mapping[str, CostModel]
) -> tuple[PlacedReplica, ...]:
    """Return the scheduled replicas of a baseline, on costs whose layers are split already.

    Raises
    ------
    InfeasibleError
        When the baseline cannot run on the instance; the message says why.
    """
    layout = _MAKERS[baseline](instance, costs)
    return tuple(PlacedReplica(replica.schedule(), gpu) for replica, gpu in layout)
