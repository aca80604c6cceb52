"""Verifies a plan against the seven rules of validity, one by one, knowing nothing of how it was made."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from cappuccino.costs import CostModel
from cappuccino.errors import InvalidPlanError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan, Replica, Status, objective_gap
from cappuccino.simulator import DeadlockError, Simulation, simulate

RELATIVE_TOLERANCE = 1e-6
"""Within which times in the file must equal the simulated ones."""


@dataclass(frozen=True)
class Violation:
    """One broken rule."""

    rule: int
    """1 to 7, as docs/formats.md numbers them: placement, samples, operations, steps, order, memory, times."""
    message: str

    def __str__(self) -> str:
        return f"rule {self.rule}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """The checker's word on a plan."""

    violations: tuple[Violation, ...]
    simulation: Simulation | None
    """None when the plan is too broken to be run."""

    @property
    def valid(self) -> bool:
        """Whether no rule is broken."""
        return not self.violations

    def raise_if_invalid(self, source: object = "plan") -> None:
        """Raise InvalidPlanError naming the first broken rule when there is one."""
        if self.violations:
            more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
            raise InvalidPlanError(f"{source}: invalid plan: {self.violations[0]}{more}")


def check(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> CheckReport:
    """Check a plan of an instance.

    Parameters
    ----------
    costs
        Cost model by GPU type.
    """
    found = list(_placement(plan, instance, costs))
    if found:  # the other rules need replicas that exist
        return CheckReport(tuple(found), None)
    for replica in plan.replicas:
        of_replica = list(_samples(replica, instance)) + list(_operations(replica))
        if not of_replica:
            of_replica = list(_steps(replica, instance)) + list(_fifo_order(replica))
        found += of_replica
    if any(v.rule in (2, 3) for v in found):
        return CheckReport(tuple(found), None)
    try:
        simulation = simulate(plan, instance, costs)
    except DeadlockError as error:
        return CheckReport((*found, Violation(5, str(error))), None)
    found += _memory(plan, instance, costs, simulation)
    found += _times(plan, simulation)
    found += _savings(plan, instance, simulation)
    return CheckReport(tuple(found), simulation)


def _placement(plan: Plan, instance: Instance, costs: Mapping[str, CostModel]) -> Iterator[Violation]:
    """Rule 1: every adapter is in exactly one replica, and no pool is overdrawn."""
    if plan.instance.sha256 != instance.digest:
        yield Violation(1, f'the plan was made for another instance ("{plan.instance.name}") or another state of it')
        return
    known = {a.name for a in instance.adapters}
    placed = Counter(name for r in plan.replicas for name in r.adapters)
    for name in placed:
        if name not in known:
            yield Violation(1, f'adapter "{name}" is not in the instance')
    for name in sorted(known):
        if placed[name] != 1:
            yield Violation(1, f'adapter "{name}" is in {placed[name]} replicas')
    for number, count in Counter(r.id for r in plan.replicas).items():
        if count > 1:
            yield Violation(1, f"{count} replicas have the id {number}")
    pools = {p.gpu: p.count for p in instance.gpu_pools}
    used: Counter[str] = Counter()
    for r in plan.replicas:
        used[r.gpu] += r.num_stages
        if r.gpu not in pools:
            yield Violation(1, f'replica {r.id}: there is no pool of "{r.gpu}"')
        yield from _stages(r, costs.get(r.gpu))
    for gpu, count in used.items():
        if gpu in pools and count > pools[gpu]:
            yield Violation(1, f'{count} GPUs used of a pool of {pools[gpu]} "{gpu}"')


def _stages(r: Replica, costs: CostModel | None) -> Iterator[Violation]:
    """Rule 1, of one replica: what is said of its stages is said of each, and costs are those of their layers."""
    if len(r.programs) != r.num_stages or len(r.peak_memory_gib) != r.num_stages:
        found = f"{len(r.programs)} programs and {len(r.peak_memory_gib)} memory peaks"
        yield Violation(1, f"replica {r.id}: {found} for {r.num_stages} stages")
    layers = None if costs is None else costs.num_layers
    if layers is not None and r.num_stages > layers:
        yield Violation(1, f"replica {r.id}: {r.num_stages} stages for {layers} layers")
    if r.layers_per_stage is not None and len(r.layers_per_stage) != r.num_stages:
        yield Violation(1, f"replica {r.id}: layers for {len(r.layers_per_stage)} of {r.num_stages} stages")
    if r.layers_per_stage is not None and layers is not None and sum(r.layers_per_stage) != layers:
        yield Violation(1, f"replica {r.id}: {sum(r.layers_per_stage)} layers placed of a backbone of {layers}")
    elif costs is not None:
        try:
            costs.of_replica(r)
        except InvalidPlanError as error:
            yield Violation(1, f"replica {r.id}: {error}")


def _samples(replica: Replica, instance: Instance) -> Iterator[Violation]:
    """Rule 2: every sample is in exactly one micro-batch, which holds samples of at most one step per adapter."""
    jobs = [instance.adapters[instance.adapter_index(name)] for name in replica.adapters]
    totals = [
        instance.num_steps(instance.adapter_index(n)) * j.global_batch_size
        for n, j in zip(replica.adapters, jobs, strict=True)
    ]
    seen: Counter[tuple[int, int]] = Counter()
    for m, batch in enumerate(replica.micro_batches):
        at = f"replica {replica.id}, micro-batch {m}"
        step_of: dict[int, int] = {}
        order = [a for a, _ in batch.samples]
        for a, n in batch.samples:
            if a >= len(jobs) or n >= totals[a]:
                yield Violation(2, f"{at}: there is no sample [{a}, {n}]")
                continue
            seen[a, n] += 1
            step = n // jobs[a].global_batch_size
            if step_of.setdefault(a, step) != step:
                yield Violation(2, f'{at}: samples of steps {step_of[a]} and {step} of adapter "{jobs[a].name}"')
        if sum(x != y for x, y in pairwise(order)) + 1 != len(set(order)):
            yield Violation(2, f"{at}: samples are not listed adapter by adapter")
    for (a, n), count in seen.items():
        if count > 1:
            yield Violation(2, f'replica {replica.id}: sample {n} of adapter "{jobs[a].name}" is in {count} places')
    for a, total in enumerate(totals):
        missing = [n for n in range(total) if (a, n) not in seen]
        if missing:
            what = f"sample {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            yield Violation(2, f'replica {replica.id}: {what} of adapter "{jobs[a].name}" in no micro-batch')


def _operations(replica: Replica) -> Iterator[Violation]:
    """Rule 3: on every stage every micro-batch has one F and, later, one B."""
    count = len(replica.micro_batches)
    for s, program in enumerate(replica.programs):
        at = f"replica {replica.id}, stage {s}"
        place: dict[str, dict[int, int]] = {"F": {}, "B": {}}
        for i, operation in enumerate(program):
            kind, m = operation[0], operation[1]
            if kind == "S":
                continue
            if m >= count:
                yield Violation(3, f"{at}: there is no micro-batch {m}")
            elif m in place[kind]:
                yield Violation(3, f"{at}: {kind} of micro-batch {m} stands twice")
            place[kind].setdefault(m, i)
        for m in range(count):
            for missing in (k for k, places in place.items() if m not in places):
                yield Violation(3, f"{at}: {missing} of micro-batch {m} is missing")
            if m in place["F"] and m in place["B"] and place["B"][m] < place["F"][m]:
                yield Violation(3, f"{at}: B of micro-batch {m} stands before its F")


def _steps(replica: Replica, instance: Instance) -> Iterator[Violation]:
    """Rule 4: S of (a, j) stands after every B with samples of (a, j) and before every F with samples of (a, j + 1)."""
    sizes = [instance.adapters[instance.adapter_index(name)].global_batch_size for name in replica.adapters]
    wanted = {
        (a, j)
        for a, name in enumerate(replica.adapters)
        for j in range(instance.num_steps(instance.adapter_index(name)))
    }
    steps = [{(a, n // sizes[a]) for a, n in batch.samples} for batch in replica.micro_batches]
    for s, program in enumerate(replica.programs):
        at = f"replica {replica.id}, stage {s}"
        place: dict[tuple[int, int], int] = {}
        for i, operation in enumerate(program):
            if operation[0] == "S":
                key = (operation[1], operation[2])
                if key not in wanted:
                    yield Violation(4, f"{at}: there is no step {key[1]} of adapter {key[0]}")
                elif key in place:
                    yield Violation(4, f"{at}: S of step {key[1]} of adapter {key[0]} stands twice")
                place.setdefault(key, i)
        for a, j in sorted(wanted - set(place)):
            yield Violation(4, f"{at}: S of step {j} of adapter {a} is missing")
        for i, operation in enumerate(program):
            if operation[0] == "S":
                continue
            for a, j in steps[operation[1]]:
                if operation[0] == "B" and place.get((a, j), i) < i:
                    yield Violation(
                        4, f"{at}: S of step {j} of adapter {a} stands before B of micro-batch {operation[1]}"
                    )
                if operation[0] == "F" and j > 0 and place.get((a, j - 1), i) > i:
                    message = f"F of micro-batch {operation[1]} stands before S of step {j - 1} of adapter {a}"
                    yield Violation(4, f"{at}: {message}")


def _fifo_order(replica: Replica) -> Iterator[Violation]:
    """Rule 5, first half: the F's stand in one order on all stages, and so do the B's."""
    for kind in ("F", "B"):
        first = [op[1] for op in replica.programs[0] if op[0] == kind]
        for s, program in enumerate(replica.programs[1:], start=1):
            order = [op[1] for op in program if op[0] == kind]
            if order != first:
                i = next(i for i, (x, y) in enumerate(zip(order, first, strict=True)) if x != y)
                where = f"replica {replica.id}, stage {s}"
                message = f"{where}: {kind} number {i} is of micro-batch {order[i]}, on stage 0 of {first[i]}"
                yield Violation(5, message)


def _memory(
    plan: Plan, instance: Instance, costs: Mapping[str, CostModel], simulation: Simulation
) -> Iterator[Violation]:
    """Rule 6: at every moment the memory of every stage fits its GPU."""
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        mine = costs[replica.gpu].of_recomputation(replica.recompute)
        limit = mine.memory_limit(instance.pool(replica.gpu).memory_gib)
        for s, peak in enumerate(run.peak_memory_gib):
            if peak > limit * (1 + RELATIVE_TOLERANCE):
                message = f"needs {peak:.2f} GiB of {limit:.2f} usable on {replica.gpu}"
                yield Violation(6, f"replica {replica.id}, stage {s}: {message}")


def _times(plan: Plan, simulation: Simulation) -> Iterator[Violation]:
    """Rule 7: the figures in the file are those that the programs give, and bound and gap do not contradict them."""
    figures: list[tuple[str, float | None, float | None]] = [
        ("gpu_time_s", plan.gpu_time_s, simulation.gpu_time_s),
        ("makespan_s", plan.makespan_s, simulation.makespan_s),
    ]
    if plan.objective is Objective.COST and plan.cost is None:
        yield Violation(7, "cost is null, and it is the objective")
        return
    if plan.cost is not None:
        figures.append(("cost", plan.cost, simulation.cost))
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        at = f"replica {replica.id}: "
        figures.append((at + "makespan_s", replica.makespan_s, run.timeline.makespan))
        pairs = zip(replica.peak_memory_gib, run.peak_memory_gib, strict=True)
        figures += [(f"{at}peak_memory_gib[{s}]", stated, found) for s, (stated, found) in enumerate(pairs)]
        if replica.lower_bound_s is not None and replica.lower_bound_s > run.timeline.makespan * (
            1 + RELATIVE_TOLERANCE
        ):
            yield Violation(7, f"{at}lower_bound_s {replica.lower_bound_s:g} is above the makespan")
    wrong = [(name, stated, found) for name, stated, found in figures if not _close(stated, found)]
    for name, stated, found in wrong:
        yield Violation(7, f"{name} is {_figure(stated)}, the programs give {_figure(found)}")
    if wrong:
        return
    objective, bound = plan.objective_value, plan.lower_bound
    if bound is not None and bound > objective * (1 + RELATIVE_TOLERANCE):
        yield Violation(7, f"lower_bound_s {bound:g} is above the objective {objective:g}")
    gap = objective_gap(objective, bound)
    if (gap is None) != (plan.gap is None) or (
        gap is not None and plan.gap is not None and abs(gap - plan.gap) > RELATIVE_TOLERANCE
    ):
        yield Violation(7, f"gap is {_figure(plan.gap)}, objective and bound give {_figure(gap)}")
    if plan.status is Status.OPTIMAL:
        tolerance = plan.solver.get("gap_tolerance", 0.0)
        if gap is None:
            yield Violation(7, "status is optimal without a bound")
        elif not isinstance(tolerance, int | float) or gap > tolerance + RELATIVE_TOLERANCE:
            yield Violation(7, f"status is optimal with a gap of {gap:g}, above solver.gap_tolerance ({tolerance})")
    if plan.deadline_s is not None and simulation.makespan_s > plan.deadline_s * (1 + RELATIVE_TOLERANCE):
        yield Violation(7, f"the makespan {simulation.makespan_s:g} s misses the deadline of {plan.deadline_s:g} s")


def _savings(plan: Plan, instance: Instance, simulation: Simulation) -> Iterator[Violation]:
    """Rule 7: what is said of separate runs belongs to the replica, and its money to its GPU time."""
    prices = {p.gpu: p.price_per_hour for p in instance.gpu_pools}
    for replica, run in zip(plan.replicas, simulation.replicas, strict=True):
        if replica.savings is None:
            continue
        if len(replica.savings) != len(replica.adapters):
            stated = f"{len(replica.savings)} savings for {len(replica.adapters)} adapters"
            yield Violation(7, f"replica {replica.id}: {stated}")
            continue
        gpu_time = replica.num_stages * run.timeline.makespan
        for name, saving in zip(replica.adapters, replica.savings, strict=True):
            at = f'replica {replica.id}: savings of "{name}": '
            added = saving.added_gpu_time_s
            if saving.alone_gpu is not None and saving.alone_gpu not in prices:
                yield Violation(7, f'{at}there is no pool of "{saving.alone_gpu}"')
                continue
            if added is not None and added > gpu_time * (1 + RELATIVE_TOLERANCE):
                yield Violation(7, f"{at}added_gpu_time_s {added:g} is above the replica's {gpu_time:g}")
            if added is not None and len(replica.adapters) == 1 and not _close(added, gpu_time):
                yield Violation(7, f"{at}added_gpu_time_s is {added:g}, the replica without it nothing: {gpu_time:g}")
            for gpu, what, cost, used in (
                (saving.alone_gpu, "alone", saving.alone_cost, saving.alone_gpu_time_s),
                (replica.gpu, "added", saving.added_cost, added),
            ):
                price = None if gpu is None else prices[gpu]
                money = None if price is None or used is None else used * price / 3600
                if not _close(cost, money):
                    stated = f"{_figure(cost)}, {what}_gpu_time_s and the price on {gpu} give {_figure(money)}"
                    yield Violation(7, f"{at}{what}_cost is {stated}")


def _close(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    if not (math.isfinite(stated) and math.isfinite(found)):
        return False
    return abs(stated - found) <= RELATIVE_TOLERANCE * max(abs(stated), abs(found), 1e-9)


def _figure(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
