"""Exported models, solved by plain solvers, against the planner's own."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import highspy
import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.drawn import seeds
from helpers.small_replicas import ERROR, cases, worst_schedule
from ortools.sat.python import cp_model

from cappuccino.costs import SmoothMaximum
from cappuccino.errors import InputError
from cappuccino.instance import Instance
from cappuccino.models.set_partitioning import Column
from cappuccino.plan import Objective
from cappuccino.solvers.allocation.context import Goal
from cappuccino.solvers.allocation.milp import PartitionProblem
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.export.models import PlanModels, require_exportable
from cappuccino.solvers.export.names import LONGEST_NAME, Names
from cappuccino.solvers.export.partition import PartitionModel, PartitionNames
from cappuccino.solvers.export.replicas import write_replicas
from cappuccino.solvers.planning import MadePlan, PlanOptions, plan_with_models
from cappuccino.solvers.scheduling.schedule import PlacedReplica
from cappuccino.solvers.scheduling.whole import solve_whole, whole_model
from cappuccino.solvers.settings import DEFAULT

OPTIONS = PlanOptions(time_limit_s=None, iterations=2, compare_separate=False)
COSTS = {"x": make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0))}
ODD_NAMES = ("st", "free", "End", "s.t.", "2e5", "a b", "ü", "\u4e16\u754c", "x" * 64, "x" * 63 + "y", "bounds", "-inf")


def drawn(seed: int, count: int = 3, **options: object) -> Instance:
    rng = np.random.default_rng(seed)
    jobs = [(rng.integers(1, 15, size=4).tolist(), 1 + int(rng.integers(3)), 2) for _ in range(count)]
    return make_instance(*jobs, **options)


def resolved(folder: Path, ending: str) -> tuple[float, list[str]]:
    """Return optimum and chosen columns of an exported set partitioning, as HiGHS alone reads and solves it."""
    highs = highspy.Highs()
    highs.silent()
    assert highs.readModel(str(folder / f"set_partitioning.{ending}")) == highspy.HighsStatus.kOk
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return highs.getInfo().objective_function_value, [v.name for v in highs.getVariables() if highs.val(v) > 0.5]


def least_gpu_time(columns: list[Column], uncovered: frozenset[int], gpus: int) -> float:
    """Return the least GPU time of columns that cover adapters once, by trying them all."""
    if not uncovered:
        return 0.0
    best = np.inf
    for c in columns:
        if min(uncovered) in c.adapters and uncovered.issuperset(c.adapters) and c.num_stages <= gpus:
            rest = least_gpu_time(columns, uncovered - set(c.adapters), gpus - c.num_stages)
            best = min(best, c.gpu_time_s + rest)
    return best


def unit_of(folder: Path) -> float:
    """Return what one in the objective stands for, as README.txt says it."""
    found = re.search(r"; one is (\S+) (GPU-seconds|money)", (folder / "README.txt").read_text())
    assert found is not None
    return float(found[1])


def planners_optimum(models: PlanModels) -> float:
    """Return what the planner's own solver makes of the columns."""
    model = models.partition
    space = model.space
    problem = PartitionProblem(
        space.kinds.of_adapter.tolist(), space.pools, model.objective, 0.0, 0, at_least=model.at_least
    )
    found = problem.solve(model.columns(), Clock(None))
    assert found is not None
    return found.objective


def made(instance: Instance, options: PlanOptions = OPTIONS) -> MadePlan:
    return plan_with_models(instance, options, COSTS)


@seeds(6)
def test_the_partition_has_the_planners_optimum(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    instance = drawn(seed)
    found = made(instance)
    folder = tmp_path_factory.mktemp("out") / "models"
    found.models.export(folder)
    columns = found.models.partition.columns()
    space = found.models.partition.space
    least = planners_optimum(found.models)
    if len(space.kinds.members) == len(instance.adapters):
        assert least == pytest.approx(least_gpu_time(columns, frozenset(range(3)), 4), rel=1e-9)
    for ending in ("lp", "mps"):
        value, chosen = resolved(folder, ending)
        assert value * unit_of(folder) == pytest.approx(least, rel=1e-8)
        assert value * unit_of(folder) <= found.plan.gpu_time_s * (1 + 1e-9)
        assert set(chosen) <= set(PartitionNames.of(found.models.partition).columns)


def test_the_columns_of_the_plan_are_worth_the_plan(tmp_path: Path) -> None:
    found = made(drawn(3))
    found.models.export(tmp_path / "models")
    rows = list(csv.DictReader((tmp_path / "models" / "columns.csv").open()))
    used = [r for r in rows if int(r["in_plan"])]
    total = sum(float(r["weight"]) * int(r["in_plan"]) for r in used)
    assert total == pytest.approx(found.plan.gpu_time_s, rel=1e-9)
    assert {r["makespan_is"] for r in used} == {"scheduled"}
    assert sorted(a for r in used for a in r["adapters"].split(" + ")) == ["a0", "a1", "a2"]


@pytest.mark.parametrize("objective", list(Objective))
def test_every_objective_has_its_model(objective: Objective, tmp_path: Path) -> None:
    # money in millionths: solvers' absolute tolerances would end the search at any partition
    instance = drawn(1, prices={"x": 1e-3})
    found = made(instance, replace(OPTIONS, objective=objective))
    found.models.export(tmp_path / "models")
    value, _ = resolved(tmp_path / "models", "mps")
    planned = found.plan.cost if objective is Objective.COST else found.plan.gpu_time_s
    assert planned is not None
    assert value * unit_of(tmp_path / "models") <= planned * (1 + 1e-9)
    assert value * unit_of(tmp_path / "models") == pytest.approx(planners_optimum(found.models), rel=1e-6)
    longest = max(c.makespan_s for c in found.models.partition.offered)
    if objective is Objective.MAKESPAN:
        assert longest <= found.plan.makespan_s


def test_columns_late_for_the_deadline_are_left_out() -> None:
    whole = made(drawn(2)).models.partition
    times = sorted(c.makespan_s for c in whole.offered)
    deadline = times[len(times) // 2]
    kept = PartitionModel.of(whole.space, Goal(deadline_s=deadline), whole.offered, ())
    assert sorted(c.makespan_s for c in kept.offered) == [t for t in times if t <= deadline] != times


def test_sweeps_stand_as_kinds_also_where_columns_are_generated(tmp_path: Path) -> None:
    jobs = [([3, 4, 5, 6], 2, 2)] * 5
    settings = replace(DEFAULT, allocation=replace(DEFAULT.allocation, most_sets=1))
    for options in (OPTIONS, replace(OPTIONS, settings=settings)):
        found = made(make_instance(*jobs), options)
        found.models.export(tmp_path / "models")
        value, _ = resolved(tmp_path / "models", "lp")
        assert value * unit_of(tmp_path / "models") == pytest.approx(planners_optimum(found.models), rel=1e-8)
        assert value * unit_of(tmp_path / "models") <= found.plan.gpu_time_s * (1 + 1e-9)
        text = (tmp_path / "models" / "README.txt").read_text()
        assert "a0, row cover_a0_and_4_alike: a0, a1, a2, a3, a4" in text
        assert ("at least one" in text) == found.models.partition.at_least


def test_names_survive_whatever_adapters_are_called(tmp_path: Path) -> None:
    jobs = [([k + 1, 2 * k + 3], 1, 2) for k in range(4)]
    for start in range(0, len(ODD_NAMES), 4):
        instance = make_instance(*jobs)
        names = ODD_NAMES[start : start + 4]
        adapters = [a.model_copy(update={"name": n}) for a, n in zip(instance.adapters, names, strict=True)]
        found = made(replace(instance, adapters=tuple(adapters)))
        found.models.export(tmp_path / "models")
        least = planners_optimum(found.models)
        for ending in ("lp", "mps"):
            value, chosen = resolved(tmp_path / "models", ending)
            assert value * unit_of(tmp_path / "models") == pytest.approx(least, rel=1e-8)
            assert all(re.fullmatch(r"r\d+_[A-Za-z0-9_]+", name) for name in chosen)
        legend = (tmp_path / "models" / "README.txt").read_text()
        assert all(f": {name}\n" in legend for name in names)


def test_names_are_short_and_different() -> None:
    names = Names()
    texts = ["a b", "a_b", "A B", "", "", "\u4e16", "y" * 300, "y" * 301]
    given = [names.unique(text) for text in texts]
    assert len({name.casefold() for name in given}) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", name) and len(name) <= LONGEST_NAME for name in given)
    many = made(make_instance(*(([k + 1] * 2, 2) for k in range(12)), gpus=1), replace(OPTIONS, iterations=0))
    adapters = tuple(
        a.model_copy(update={"name": f"{k}" + "n" * 60}) for k, a in enumerate(many.models.instance.adapters)
    )
    partition = many.models.partition
    space = replace(partition.space, instance=replace(partition.space.instance, adapters=adapters))
    columns = PartitionNames.of(replace(partition, space=space)).columns
    assert max(map(len, columns)) <= LONGEST_NAME + len("_and_12_more")
    assert len(set(columns)) == len(columns)
    assert any(name.endswith("_more") for name in columns)


def plain_optimum(path: Path) -> int:
    """Return the optimum of a CP-SAT model that nothing but OR-Tools has read."""
    model, solver = cp_model.CpModel(), cp_model.CpSolver()
    assert model.proto.parse_text_format(path.read_text())
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return round(solver.objective_value)


@pytest.mark.parametrize("first", [0, 10, 20])
def test_a_replica_has_the_optimum_of_the_planners_model(first: int, tmp_path: Path) -> None:
    count = 0
    for problem, least in cases(range(first, first + 10)):
        schedule = worst_schedule(problem)
        (written,) = write_replicas([PlacedReplica(schedule, "x")], tmp_path, 10_000)
        assert written.name is not None
        assert written.whole is not None
        assert written.reason == ""
        unit, optimum = written.whole.unit_s, plain_optimum(tmp_path / written.name)
        own = whole_model(schedule).model.solve(time_limit_s=None, deterministic_limit=60.0, seed=0)
        assert own.proven
        assert optimum == own.makespan
        assert optimum * unit <= schedule.makespan_s * (1 + 1e-9)
        if written.whole.complete:
            assert least * (1 - ERROR) <= optimum * unit <= least * (1 + 1e-9)
            solved = solve_whole(schedule, 0, time_limit_s=None, deterministic_limit=60.0)
            assert solved.bound_s == pytest.approx(optimum * unit, rel=1e-9)
        count += 1
    assert count


def test_a_plans_replicas_stand_under_their_numbers(tmp_path: Path) -> None:
    found = made(make_instance(([9, 8, 12], 3), ([3], 1), ([14, 2], 2), gpus=4), replace(OPTIONS, num_stages=1))
    done = found.models.export(tmp_path / "models")
    text = (tmp_path / "models" / "README.txt").read_text()
    for replica, mine in zip(found.plan.replicas, found.models.replicas, strict=True):
        names = tuple(found.models.instance.adapters[i].name for i in mine.schedule.problem.adapters)
        assert (names, mine.schedule.makespan_s) == (replica.adapters, replica.makespan_s)
        path = tmp_path / "models" / f"replica-{replica.id}.pbtxt"
        assert path in done.files
        unit = whole_model(mine.schedule).unit_s
        assert plain_optimum(path) * unit <= replica.makespan_s * (1 + 1e-9)
        assert f"{unit!r} seconds per unit" in text
    assert done.notes == ()


def test_large_replicas_are_named_with_limit_and_remedy(tmp_path: Path) -> None:
    found = made(make_instance(([3, 4, 5, 6], 4), gpus=1))
    (replica,) = found.plan.replicas
    batches = len(replica.micro_batches)
    done = found.models.export(tmp_path / "none", 4 * batches - 1)
    assert not [f for f in done.files if f.suffix == ".pbtxt"]
    (note,) = done.notes
    assert f"the limit is {4 * batches - 1}" in note
    assert f"export limit {4 * batches}" in note
    assert note in (tmp_path / "none" / "README.txt").read_text()
    # with as many choices as the note says, there is one: of as many micro-batches as there is room for
    done = found.models.export(tmp_path / "fewer", 4 * batches)
    assert [f.name for f in done.files if f.suffix == ".pbtxt"] == ["replica-0.pbtxt"]
    unit = whole_model(found.models.replicas[0].schedule).unit_s
    assert plain_optimum(tmp_path / "fewer" / "replica-0.pbtxt") * unit <= replica.makespan_s * (1 + 1e-9)
    assert [f"may have {batches} micro-batches" in n for n in done.notes] == [True] * (batches < 4)


def test_padded_replicas_are_said_to_have_no_model(tmp_path: Path) -> None:
    found = made(make_instance(([3, 4], 2), layout="padded"))
    done = found.models.export(tmp_path / "models")
    assert [f.name for f in done.files if f.suffix == ".pbtxt"] == []
    assert "not padded" in done.notes[0]


def test_the_python_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    found = made(make_instance(([3, 4], 2), ([5], 1), gpus=2))
    found.models.export(tmp_path / "models")
    text = (tmp_path / "models" / "README.txt").read_text()
    unit = re.search(r"([0-9.e-]+) seconds per unit", text)
    assert unit is not None
    monkeypatch.chdir(tmp_path / "models")
    blocks = re.findall(r"(?:^    (?:import|from) .*\n)(?:^    .*\n)+", text, re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(re.sub(r"^    ", "", block, flags=re.MULTILINE), {"SECONDS_PER_UNIT": float(unit[1])})
    said = capsys.readouterr().out
    assert f"{planners_optimum(found.models):.6g}"[:5] in said
    assert "OPTIMAL" in said


def test_own_files_are_replaced_and_no_others(tmp_path: Path) -> None:
    found = made(make_instance(([3, 4], 2)))
    folder = tmp_path / "deep" / "models"
    found.models.export(folder)
    (folder / "replica-7.pbtxt").write_text("of a plan before")
    found.models.export(folder)
    assert not (folder / "replica-7.pbtxt").exists()
    (folder / "mine.txt").write_text("keep")
    before = sorted(p.name for p in folder.iterdir())
    for call in (lambda: require_exportable(folder), lambda: found.models.export(folder)):
        with pytest.raises(InputError, match=r"mine\.txt.*name one that is empty"):
            call()
    assert sorted(p.name for p in folder.iterdir()) == before
    assert [p.name for p in folder.parent.iterdir()] == ["models"]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("README.txt", "columns.csv"):  # called as ours are
        (theirs / name).write_text("keep")
    for call in (lambda: require_exportable(theirs), lambda: found.models.export(theirs)):
        with pytest.raises(InputError, match="holds other files"):
            call()
    assert {p.read_text() for p in theirs.iterdir()} == {"keep"}
    with pytest.raises(InputError, match="stand in the way"):
        require_exportable(tmp_path / "out", [tmp_path / "out" / "plan.json"])


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(make_instance(([3, 4], 2)))
    folder = tmp_path / "models"
    found.models.export(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cappuccino.solvers.export.models.write_replicas", full)
    with pytest.raises(InputError, match="No space left"):
        found.models.export(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
