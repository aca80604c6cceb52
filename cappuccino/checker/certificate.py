"""Whether a plan's bound is proven: its certificate worked out anew, without any code of the searches.

Farley's bound: where no set of adapters is paid more than theta times its cost and its charges, `sum of prices / theta
- sum of charges` is below every plan, whatever the prices. For the makespan replicas cost their charges alone, and
prices above all charges say that no plan ends within the limit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cappuccino.certificate import Certificate
from cappuccino.checker.partitions import MOST_SETS, ListedSets, can_part
from cappuccino.checker.payments import largest_ratio
from cappuccino.checker.places import Space, space_of
from cappuccino.checker.violation import Violation
from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import PRECISION, Objective, Plan

_NO_MORE = 1 + 1e-10
"""Ratio of what is paid to what it costs that prices are to keep to, with a hair for rounding."""


@dataclass(frozen=True)
class BoundReport:
    """The checker's word on a plan's bound."""

    certified: bool
    """Whether no plan's objective is below it, among those that the reason names where it names some."""
    reason: str
    """What proves it, or why it is not certified."""
    proven: float | None = None
    """The value that prices prove, or the best partition where that certifies more, in the objective's unit."""
    by_prices: float | None = None
    """The value that prices prove alone."""

    def __str__(self) -> str:
        return f"certified: {self.reason}" if self.certified else f"bound not certified: {self.reason}"


def bound_report(
    plan: Plan, instance: Instance, costs: Mapping[str, CostModel]
) -> tuple[BoundReport, tuple[Violation, ...]]:
    """Return the word on a plan's bound, and what its certificate claims without proving it (rule 7).

    Parameters
    ----------
    plan
        Of this instance, with known adapters in known pools.
    costs
        Cost model by GPU type.
    """
    certificate, bound = plan.certificate, plan.lower_bound
    if certificate is None:
        if bound == 0:
            return BoundReport(True, "as no plan is below 0", 0.0), ()
        return BoundReport(False, "the plan states none" if bound is None else "the plan has no certificate"), ()
    wrong = [*_contradictions(certificate, plan, instance), *_other_plans(certificate, plan, costs)]
    if not wrong:
        try:
            return _judged(plan, certificate, _Proof.of(plan, certificate, instance, costs))
        except InvalidPlanError as error:
            wrong = [str(error)]
    return BoundReport(False, f"certificate: {wrong[0]}"), tuple(Violation(7, f"certificate: {w}") for w in wrong)


def _contradictions(certificate: Certificate, plan: Plan, instance: Instance) -> Iterator[str]:
    """Yield what is wrong with a certificate before anything is worked out."""
    for what, stated, known in (
        ("prices", certificate.prices, {a.name for a in instance.adapters}),
        ("charges", certificate.charges, {p.gpu for p in instance.gpu_pools}),
    ):
        for name in sorted(stated.keys() - known):
            yield f'{what} of "{name}", which is not in the instance'
        for name in sorted(known - stated.keys()):
            yield f'no {what} of "{name}"'
        for name, value in stated.items():
            if not (math.isfinite(value) and value >= 0):
                yield f'{what} of "{name}" are {value:g}, no number of at least 0'
    limit, deadline = certificate.limit_s, plan.deadline_s
    if not (math.isfinite(certificate.bound) and certificate.bound >= 0):
        yield f"bound is {certificate.bound:g}, no number of at least 0"
    if plan.objective is Objective.MAKESPAN:
        if limit is None:
            yield "limit_s is null, and a bound on the makespan is a limit that no plan ends within"
    elif limit is not None and (deadline is None or not limit >= deadline * (1 - PRECISION)):
        asked = "has no deadline" if deadline is None else f"has a deadline of {deadline:g} s"
        yield f"limit_s is {limit:g}, and the plan {asked}"


def _other_plans(certificate: Certificate, plan: Plan, costs: Mapping[str, CostModel]) -> Iterator[str]:
    """Yield why the plan is none of those that its certificate is about."""
    by_place: dict[tuple[str, str | None, int], tuple[int, ...]] = {
        (x.gpu, x.recompute, len(x.layers)): x.layers for x in certificate.layers
    }
    if len(by_place) < len(certificate.layers):
        yield "layers are given twice for one depth"
    for gpu in sorted({gpu for gpu, _, _ in by_place} - costs.keys()):
        yield f'layers on "{gpu}", of which there is no pool'
    for r in plan.replicas:
        mode = None if r.recompute is None else r.recompute.value
        if certificate.num_stages not in (None, r.num_stages):
            yield f"is about depth {certificate.num_stages}, and replica {r.id} has {r.num_stages}"
        if certificate.recompute not in (None, mode):
            yield f"is about recompute {certificate.recompute}, and replica {r.id} has {mode}"
        if certificate.profiled_only and r.gpu in costs and costs[r.gpu].extrapolated(r.num_stages):
            yield f"is about profiled depths, and replica {r.id} has {r.num_stages}"
        stated = by_place.get((r.gpu, mode, r.num_stages))
        if stated is not None and r.layers_per_stage not in (None, stated):
            yield f"is about layers {'+'.join(map(str, stated))}, and replica {r.id} has others"


@dataclass(frozen=True)
class _Proof:
    """What a certificate proves.

    Path bounds that are found quickly nearly always do; where they do not, better ones are worked out.
    """

    space: Space
    makespan: bool
    limit_s: float

    @classmethod
    def of(cls, plan: Plan, certificate: Certificate, instance: Instance, costs: Mapping[str, CostModel]) -> "_Proof":
        space = space_of(certificate, plan.objective, instance, costs)
        limit, makespan = math.inf if certificate.limit_s is None else certificate.limit_s, False
        if plan.objective is Objective.MAKESPAN:
            makespan = True
        else:  # as late as the deadline is taken to be kept
            limit = max(limit, plan.deadline_s or 0.0) * (1 + PRECISION)
        return cls(space, makespan, limit)

    @property
    def lists_sets(self) -> bool:
        """Whether adapters are so few that every set of them is looked at."""
        return self.space.number_of_sets <= MOST_SETS

    @cached_property
    def by_prices(self) -> float:
        """The bound that the prices prove; 0 where they prove none."""
        if not self.makespan:
            return max(0.0, self._supported - self.space.rent) if math.isfinite(self.space.rent) else 0.0
        if not self._all_admitted(self.space):
            return self.limit_s
        if 0 < self.space.rent < math.inf and self._supported > self.space.rent * _NO_MORE:
            return self.limit_s
        return 0.0 if self._all_admitted(self._sharpened) else self.limit_s

    @property
    def _supported(self) -> float:
        """What the adapters are paid at prices that no set is paid too much at; 0 where there are none such."""
        paid = self._paid
        if not math.isfinite(paid):
            return 0.0
        ratio = self._largest_ratio()
        return paid / ratio if math.isfinite(ratio) else 0.0

    @property
    def _paid(self) -> float:
        with np.errstate(over="ignore"):
            return float(self.space.counts @ self.space.prices)

    @cached_property
    def _sharpened(self) -> Space:
        return self.space.sharpened()

    def _all_admitted(self, space: Space) -> bool:
        return bool(np.any([place.admits(self.limit_s) for place in space.places], axis=0).all())

    def _largest_ratio(self) -> float:
        """Return what no set is paid more than for a unit of its cost; at least `_NO_MORE`, which will do."""
        quick = self._ratios(self.space, _NO_MORE)
        doubtful = tuple(p for p, ratio in zip(self.space.places, quick, strict=True) if ratio > _NO_MORE)
        if not doubtful:
            return _NO_MORE
        return max(self._ratios(replace(self.space, places=doubtful).sharpened(), _NO_MORE))

    def _ratios(self, space: Space, least: float) -> list[float]:
        """Return the largest ratios by place, `least` where they are no more."""
        if self.lists_sets:
            listed = ListedSets.of(space)
            return [listed.largest_ratio(number, self.limit_s, least) for number in range(len(space.places))]
        return [largest_ratio(p, space.prices, space.counts, self.limit_s, least) for p in space.places]

    def by_partition(self, deadline_s: float | None) -> float | None:
        """Return the objective of the best partition, replicas at their bounds; None where it is out of reach."""
        if not self.lists_sets or not can_part(self.space):
            return None
        limit = self.limit_s
        if self.makespan:
            limit = math.inf if deadline_s is None else deadline_s * (1 + PRECISION)
        return ListedSets.of(self._sharpened).least_objective(limit, self.makespan)


def _judged(plan: Plan, certificate: Certificate, proof: _Proof) -> tuple[BoundReport, tuple[Violation, ...]]:
    """Compare what is claimed with what is proven."""
    proven = proof.by_prices
    if not _reaches(proven, certificate.bound):
        message = f"certificate: claims a bound of {certificate.bound:.9g}, and proves {proven:.9g}"
        return BoundReport(False, message, proven, proven), (Violation(7, message),)
    if plan.lower_bound is None:
        return BoundReport(False, "the plan states none", proven, proven), ()
    among = _restrictions(certificate, proof.space.limits)
    if _reaches(proven, plan.lower_bound):
        return BoundReport(True, f"by its prices{among}", proven, proven), ()
    best = proof.by_partition(plan.deadline_s)
    if best is not None and _reaches(best, plan.lower_bound):
        found = best if math.isfinite(best) else plan.lower_bound
        return BoundReport(True, f"by all partitions{among}", found, proven), ()
    most = proven if best is None else max(best, proven)
    return BoundReport(False, f"the certificate proves {most:.9g} of {plan.lower_bound:.9g}", most, proven), ()


def _reaches(proven: float, claimed: float) -> bool:
    return claimed <= proven * (1 + PRECISION)


def _restrictions(certificate: Certificate, limits: Sequence[str]) -> str:
    """Return which plans the bound is about, where not all."""
    said = []
    if certificate.num_stages is not None:
        said.append(f"of depth {certificate.num_stages}")
    if certificate.profiled_only:
        said.append("of profiled depths")
    if certificate.recompute is not None:
        said.append(f"with recompute {certificate.recompute}")
    said += limits
    return f", among plans {' '.join(said)}" if said else ""
