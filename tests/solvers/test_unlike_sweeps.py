"""Sweeps of unlike jobs on tables that a profile writes: a plan or an explained infeasibility, and bounds that hold."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.exhaustive import least_makespan
from helpers.naive import is_valid
from helpers.strategies import Machine, Sweep, machines, plan_options, sweeps, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import InfeasibleError, NoPlanFoundError
from cappuccino.instance import Instance
from cappuccino.plan import Objective, Plan
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.layer_split import LayerSplit, with_layers
from cappuccino.solvers.planning import PlanOptions, make_plan

Costs = Mapping[str, CostModel]
MANY = settings(
    max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False, print_blob=True
)
FEW = settings(MANY, max_examples=30, derandomize=True)


def problem_of(machine: Machine, sweep: Sweep, folder: Path) -> tuple[Instance, Costs]:
    """Return the instance on the machine's table, and the costs fitted to it."""
    table = write_table(folder, machine, {gpu: sweep.slowness[gpu] for gpu in sweep.gpus})
    instance = sweep.instance(table, memory_gib=1e6)
    costs = fit_instance_costs(instance)
    model = costs["x"]
    depth = model.profiled[0]
    tokens = min(1536, machine.largest * depth)
    needed = float(model.memory_model(depth).peak(tokens, tokens)) / 0.95
    return sweep.instance(table, memory_gib=max(sweep.memory * needed, 1e-3)), costs


AMPLE = 1.2
"""Times the makespan of a plan without a deadline: one that some plan meets."""


def with_deadline(options: PlanOptions, factor: float | None, instance: Instance, costs: Costs) -> PlanOptions:
    """Return the options with a deadline: an ample one, or relative to the least makespan that bounds allow."""
    if factor is None:
        return options
    if factor == AMPLE:
        makespan = make_plan(instance, options, costs).makespan_s
    else:
        space = ReplicaSpace.of(instance, costs, options.num_stages, options.profiled_only)
        makespan = space.objective_bound(Objective.MAKESPAN)
    return replace(options, deadline_s=factor * makespan)


def plan_or_reason(machine: Machine, sweep: Sweep, options: PlanOptions, factor: float | None) -> None:
    """Plan; the planner itself raises where its checker refuses a plan."""
    with tempfile.TemporaryDirectory() as folder:
        instance, costs = problem_of(machine, sweep, Path(folder))
        try:
            plan = planned(instance, costs, options, factor)
        except InfeasibleError as error:
            proven = ("fits nowhere", "no plan can end within", "are too small")
            assert any(word in str(error) for word in proven), error
            return
        if plan is None:
            return
        assert plan.lower_bound is not None
        assert plan.lower_bound <= plan.objective_value * (1 + 1e-9)
        if len(sweep.adapters) <= 8:
            assert is_valid(plan, instance, costs)


def planned(instance: Instance, costs: Costs, options: PlanOptions, factor: float | None) -> Plan | None:
    """Return a plan; None where none was found by a deadline that need not be met. An ample one only takes time."""
    try:
        limited = with_deadline(options, factor, instance, costs)
        return make_plan(instance, limited, costs)
    except NoPlanFoundError as error:
        assert factor is not None
        assert "deadline" in str(error)
        return make_plan(instance, replace(limited, time_limit_s=30.0), costs) if factor == AMPLE else None


problems = sweeps().flatmap(lambda sweep: st.tuples(machines(), st.just(sweep), plan_options(sweep)))


@FEW
@given(problems)
def test_a_sweep_of_unlike_jobs_gets_a_plan_or_a_reason(problem) -> None:
    machine, sweep, (options, factor) = problem
    plan_or_reason(machine, sweep, options, factor)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(problems)
def test_many_sweeps_of_unlike_jobs_get_a_plan_or_a_reason(problem) -> None:
    machine, sweep, (options, factor) = problem
    plan_or_reason(machine, sweep, options, factor)


def evaluated(sweep: Sweep) -> bool:
    """Return whether any adapter is evaluated, which makes many more schedules."""
    return any(a.eval_dataset is not None for a in sweep.adapters)


small = sweeps(most=3, most_gpus=3, most_batch=2, most_steps=2, most_length=200).filter(
    lambda s: sum(a.global_batch_size * a.num_steps for a in s.adapters) <= (2 if evaluated(s) else 4)
)


def no_plan_beats_the_bound(machine: Machine, sweep: Sweep, options: PlanOptions, factor: float | None) -> None:
    """Compare the plan and its bound with the best of all partitions, places, packings and orders."""
    sweep = replace(sweep, gpus={"x": (sweep.gpus["x"][0], 3600.0)})
    with tempfile.TemporaryDirectory() as folder:
        instance, costs = problem_of(machine, sweep, Path(folder))
        try:
            options = with_deadline(options, factor, instance, costs)
            costs = with_layers(instance, costs, LayerSplit.AUTO)  # the bound is one for layers that are split so
            plan = make_plan(instance, options, costs)
        except NoPlanFoundError:
            return
        except InfeasibleError:
            assert np.isinf(least_objective(instance, costs["x"], options))
            return
        least = least_objective(instance, costs["x"], options)
        assert plan.lower_bound <= least * (1 + 1e-9)
        assert plan.objective_value >= least * (1 - 1e-9)


def least_objective(instance: Instance, costs: CostModel, options: PlanOptions) -> float:
    """Return the least objective of all plans, by exhaustion; the price is one a GPU-second."""
    count, fixed = instance.gpu_pools[0].count, options.num_stages
    depths = costs.stage_counts(count, options.profiled_only)
    if fixed is not None:  # any depth, measured or not
        allowed = fixed <= min(count, costs.num_layers) and not (options.profiled_only and costs.extrapolated(fixed))
        depths = (fixed,) if allowed else ()
    limit = (options.deadline_s or float("inf")) * (1 + 1e-12)

    @cache
    def makespan(adapters: tuple[int, ...], depth: int) -> float:
        found = min(least_makespan(instance.subset(list(adapters)), model, depth) for model in costs.choices)
        return found if found <= limit else float("inf")

    def best(parts: list[tuple[int, ...]], gpus: int) -> float:
        if not parts:
            return 0.0
        values = []
        for g in (g for g in depths if g <= gpus):
            here, rest = makespan(parts[0], g), best(parts[1:], gpus - g)
            values.append(max(here, rest) if options.objective is Objective.MAKESPAN else g * here + rest)
        return min(values, default=float("inf"))

    everyone = tuple(range(len(instance.adapters)))
    return min(best(parts, count) for parts in partitions(everyone))


def partitions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to part the items."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [(items[0],), *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], (items[0], *part), *rest[i + 1 :]]


small_problems = small.flatmap(lambda sweep: st.tuples(machines(), st.just(sweep), plan_options(sweep)))


@FEW
@given(small_problems)
def test_no_plan_of_a_small_sweep_beats_its_bound(problem) -> None:
    machine, sweep, (options, factor) = problem
    no_plan_beats_the_bound(machine, sweep, options, factor)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(small_problems)
def test_no_plan_of_many_small_sweeps_beats_its_bound(problem) -> None:
    machine, sweep, (options, factor) = problem
    no_plan_beats_the_bound(machine, sweep, options, factor)
