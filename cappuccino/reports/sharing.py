"""What a plan says about sharing, added up: separate runs of its adapters against its replicas."""

from dataclasses import dataclass

from cappuccino.plan import Objective, Plan

SEPARATE_AND_SEQUENTIAL = (
    "separate runs are each adapter alone at its best depth, scheduled by the planner; the baseline sequential of "
    "`compare` takes the shallowest pipelines that fit, the adapters' own micro-batches and a flush at every step"
)
"""Why the two figures for adapters that share nothing differ, in one sentence."""


@dataclass(frozen=True)
class SharingSummary:
    """Separate runs against the plan, over the replicas of which every adapter has a separate run."""

    adapters: int
    """Of the plan."""
    evaluated: int
    """Of these, those whose own saving is known."""
    compared: int
    """Of these, those in the replicas compared."""
    unit: str
    """`GPU-s`, or `money` in plans for cost."""
    separate: float | None
    """Sum of the best separate runs of the adapters compared; None: nothing to compare."""
    shared: float | None
    """What the plan spends on their replicas."""

    @property
    def ratio(self) -> float | None:
        """`separate / shared`: above 1 where sharing pays."""
        return None if self.separate is None or not self.shared else self.separate / self.shared


def sharing_summary(plan: Plan) -> SharingSummary | None:
    """Add up what a plan states; None when it states nothing.

    Money is compared for whole plans only, since a plan states its replicas' GPU time, not their prices. The savings
    of single adapters do not add up to that of all: what two of them save together, each has for its own.
    """
    if all(r.savings is None for r in plan.replicas):
        return None
    adapters = sum(len(r.adapters) for r in plan.replicas)
    evaluated = sum(s.evaluated for r in plan.replicas for s in r.savings or ())
    whole = [r for r in plan.replicas if r.savings is not None and all(s.alone_gpu is not None for s in r.savings)]
    compared = [s for r in whole for s in r.savings or ()]
    if plan.objective is Objective.COST and plan.cost is not None:
        if len(whole) < len(plan.replicas):
            return SharingSummary(adapters, evaluated, 0, "money", None, None)
        separate = sum(s.alone_cost or 0.0 for s in compared)
        return SharingSummary(adapters, evaluated, len(compared), "money", separate, plan.cost)
    if not whole:
        return SharingSummary(adapters, evaluated, 0, "GPU-s", None, None)
    separate = sum(s.alone_gpu_time_s or 0.0 for s in compared)
    shared = sum(r.num_stages * r.makespan_s for r in whole)
    return SharingSummary(adapters, evaluated, len(compared), "GPU-s", separate, shared)
