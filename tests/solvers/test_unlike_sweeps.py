"""Sweeps of unlike jobs on tables that a profile writes: a plan or an explained infeasibility, and bounds that hold."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from exhaustive import least_makespan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import is_valid
from strategies import Machine, Sweep, machines, plan_options, sweeps, write_table

from cappuccino.costs import CostModel, fit_instance_costs
from cappuccino.errors import InfeasibleError
from cappuccino.instance import Instance
from cappuccino.plan import Objective
from cappuccino.solvers.columns import ReplicaSpace
from cappuccino.solvers.planning import PlanOptions, make_plan

MANY = settings(
    max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False, print_blob=True
)
FEW = settings(MANY, max_examples=30, derandomize=True)


def problem_of(machine: Machine, sweep: Sweep, folder: Path) -> tuple[Instance, Mapping[str, CostModel]]:
    """Return the instance on the machine's table, and the costs fitted to it."""
    table = write_table(folder, machine, {gpu: sweep.slowness[gpu] for gpu in sweep.gpus})
    instance = sweep.instance(table, memory_gib=1e6)
    costs = fit_instance_costs(instance)
    model = costs["x"]
    depth = model.profiled[0]
    tokens = min(1536, machine.largest * depth)
    needed = float(model.memory_model(depth).peak(tokens, tokens)) / 0.95
    return sweep.instance(table, memory_gib=max(sweep.memory * needed, 1e-3)), costs


def plan_or_reason(machine: Machine, sweep: Sweep, options: PlanOptions, deadline: float | None) -> None:
    """Plan; the planner itself raises where its checker refuses a plan."""
    with tempfile.TemporaryDirectory() as folder:
        instance, costs = problem_of(machine, sweep, Path(folder))
        if deadline is not None and options.objective is not Objective.MAKESPAN:
            try:
                space = ReplicaSpace.of(instance, costs, options.num_stages, options.profiled_only)
            except InfeasibleError:
                return  # the same without a deadline
            least = space.objective_bound(Objective.MAKESPAN)
            options = replace(options, deadline_s=deadline * least)
        try:
            plan = make_plan(instance, options, costs)
        except InfeasibleError as error:
            assert any(word in str(error) for word in ("fits nowhere", "deadline", "give more GPUs", "no plan can end"))
            return
        assert plan.lower_bound_s is not None
        assert plan.lower_bound_s <= plan.objective_value * (1 + 1e-9)
        for replica in plan.replicas:
            assert replica.lower_bound_s <= replica.makespan_s * (1 + 1e-9)
        if len(sweep.adapters) <= 8:
            assert is_valid(plan, instance, costs)


problems = sweeps().flatmap(lambda sweep: st.tuples(machines(), st.just(sweep), plan_options(sweep)))


@FEW
@given(problems)
def test_a_sweep_of_unlike_jobs_gets_a_plan_or_a_reason(problem) -> None:
    machine, sweep, (options, deadline) = problem
    plan_or_reason(machine, sweep, options, deadline)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(problems)
def test_many_sweeps_of_unlike_jobs_get_a_plan_or_a_reason(problem) -> None:
    machine, sweep, (options, deadline) = problem
    plan_or_reason(machine, sweep, options, deadline)


small = sweeps(most=3, most_gpus=3, most_batch=2, most_steps=2, most_length=200).filter(
    lambda s: sum(a.global_batch_size * a.num_steps for a in s.adapters) <= 4
)


def no_plan_beats_the_bound(machine: Machine, sweep: Sweep, seed: int) -> None:
    """Compare the plan and its bound with the best of all partitions, places, packings and orders."""
    sweep = replace(sweep, gpus={"x": (sweep.gpus["x"][0], None)})
    with tempfile.TemporaryDirectory() as folder:
        instance, costs = problem_of(machine, sweep, Path(folder))
        options = PlanOptions(time_limit_s=0.2, seed=seed)
        try:
            plan = make_plan(instance, options, costs)
        except InfeasibleError:
            assert np.isinf(least_gpu_time(instance, costs["x"]))
            return
        least = least_gpu_time(instance, costs["x"])
        assert plan.lower_bound_s <= least * (1 + 1e-9)
        assert plan.gpu_time_s >= least * (1 - 1e-9)


def least_gpu_time(instance: Instance, costs: CostModel) -> float:
    """Return the least GPU time of all plans, by exhaustion."""
    depths = costs.stage_counts(instance.gpu_pools[0].count)

    @cache
    def makespan(adapters: tuple[int, ...], depth: int) -> float:
        return least_makespan(instance.subset(list(adapters)), costs, depth)

    def total(parts: list[tuple[int, ...]], gpus: int) -> float:
        if not parts:
            return 0.0
        fitting = [depth for depth in depths if depth <= gpus]
        return min((g * makespan(parts[0], g) + total(parts[1:], gpus - g) for g in fitting), default=float("inf"))

    everyone = tuple(range(len(instance.adapters)))
    return min(total(parts, instance.gpu_pools[0].count) for parts in partitions(everyone))


def partitions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Yield every way to part the items."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [(items[0],), *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], (items[0], *part), *rest[i + 1 :]]


@FEW
@given(machines(), small, st.integers(0, 3))
def test_no_plan_of_a_small_sweep_beats_its_bound(machine: Machine, sweep: Sweep, seed: int) -> None:
    no_plan_beats_the_bound(machine, sweep, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@MANY
@given(machines(), small, st.integers(0, 3))
def test_no_plan_of_many_small_sweeps_beats_its_bound(machine: Machine, sweep: Sweep, seed: int) -> None:
    no_plan_beats_the_bound(machine, sweep, seed)
