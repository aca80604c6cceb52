"""bench: the table, the index it updates, and the values it refuses."""

import csv
import json

import pytest
from cli.conftest import cappuccino, one_clear_error, read_instance

from cappuccino.cli import bench_commands
from cappuccino.costs import fit_instance_costs
from cappuccino.errors import CappuccinoError, InfeasibleError
from cappuccino.instance import Instance
from cappuccino.library.index import Library
from cappuccino.library.records import Entry, EntryFile, EntryOptions, Size
from cappuccino.plan import Plan, Status, objective_gap
from cappuccino.solvers import baselines, planning

NAMES = ("toy", "toy-deep", "toy-makespan", "toy-in-time")


PLAN = planning.make_plan
BASELINE_PLAN = baselines.baseline_plan


@pytest.fixture
def folder(workspace, monkeypatch):
    """A library of four entries on one toy instance, run in this process."""

    def in_this_process(function, *args):
        try:
            return function(*args), 0.25
        except CappuccinoError as error:
            raise CappuccinoError(str(error)) from error

    monkeypatch.setattr(bench_commands, "run_isolated", in_this_process)
    instance = Instance.load(workspace / "instance.json")
    options = (
        EntryOptions(time_limit_s=0.1),
        EntryOptions(num_stages=2, time_limit_s=0.1),
        EntryOptions(objective="makespan", time_limit_s=0.1),
        EntryOptions(deadline_s=2.0, time_limit_s=0.1),
    )
    entries = [
        Entry(
            name=name,
            kind="tiny",
            instance=EntryFile(file="instance.json", sha256=instance.digest),
            size=Size.of(instance),
            options=chosen,
        )
        for name, chosen in zip(NAMES, options, strict=True)
    ]
    Library(workspace, tuple(entries)).save()
    return workspace


def bench(folder, *arguments):
    return cappuccino("bench", *arguments, "--library", folder)


def known(folder, name="toy"):
    return Library.load(folder).entry(name).best_known


def state(folder, name="toy", **figures):
    """Write other best-known values over those of an entry, with the gap that they give."""
    library = Library.load(folder)
    entry = library.entry(name)
    data = entry.best_known.model_dump()
    for field, value in figures.items():
        data[field]["value"] = value
    data["gap"] = objective_gap(data["objective"]["value"], data["bound"]["value"])
    changed = entry.model_copy(update={"best_known": type(entry.best_known).model_validate(data)})
    library.with_entry(changed).save()
    return (folder / "index.json").read_text()


def test_all_entries_in_one_table(folder):
    before = (folder / "index.json").read_text()
    done = bench(folder, "--json")
    assert done.code == 0, done.err
    rows = {r["instance"]: r for r in done.json["entries"]}
    assert tuple(rows) == NAMES
    toy = rows["toy"]
    assert (toy["adapters"], toy["steps"], toy["unit"], toy["checked"]) == (2, 5, "GPU-s", "valid")
    assert toy["bound"] <= toy["objective"]
    assert toy["gap"] == pytest.approx(1 - toy["bound"] / toy["objective"])
    assert toy["best_known"] is None
    assert toy["reference"] == BASELINE_PLAN("reference", *loaded(folder)).gpu_time_s
    assert toy["reference_ratio"] == pytest.approx(toy["reference"] / toy["objective"])
    assert toy["peak_memory_gib"] == 0.25
    assert rows["toy-makespan"]["unit"] == "s"
    assert rows["toy-makespan"]["objective"] <= 2.0
    assert rows["toy-deep"]["reference"] is None
    assert "fixes 2 stages" in rows["toy-deep"]["reference_reason"]
    assert (folder / "index.json").read_text() == before  # without --update nothing is written


def test_the_table_as_text_markdown_and_csv(folder, tmp_path):
    text = bench(folder, "toy", "-o", tmp_path / "table.md")
    assert text.code == 0, text.err
    heading, row = text.out.splitlines()[:2]
    assert [w for w in heading.split() if w in ("instance", "objective", "bound", "gap", "reference/ours", "checked")]
    assert row.split()[0] == "toy"
    assert row.split()[-1] == "valid"
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| instance | adapters | steps | objective |")
    assert lines[2].startswith("| toy | 2 | 5 |")
    assert lines[-1].startswith("geometric mean of reference/ours over 0 ")  # the backbone fits one GPU
    assert bench(folder, "toy", "-o", tmp_path / "table.csv").code == 0
    (record,) = csv.DictReader((tmp_path / "table.csv").open())
    assert (record["instance"], record["checked"], record["unit"]) == ("toy", "valid", "GPU-s")
    assert float(record["gap"]) >= 0


def test_the_mean_is_over_backbones_that_need_two_gpus(folder):
    # half a GPU's memory: the 2 GiB backbone with a sample of 400 tokens no longer fits one
    path = folder / "instance.json"
    document = read_instance(folder)
    document["gpu_pools"][0]["memory_gib"] = 1.9
    path.write_text(json.dumps(document))
    library = Library.load(folder)
    reference = EntryFile(file="instance.json", sha256=Instance.load(path).digest)
    Library(folder, tuple(e.model_copy(update={"instance": reference}) for e in library.entries)).save()
    said = bench(folder, "toy", "toy-makespan", "toy-deep", "--json").json
    rows = {r["instance"]: r for r in said["entries"]}
    assert rows["toy"]["least_gpus"] == 2
    assert said["geometric_mean"] == pytest.approx(rows["toy"]["reference_ratio"])  # not the makespan's


def test_geometric_mean():
    assert bench_commands._geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert bench_commands._geometric_mean([]) is None


def test_the_baseline_may_miss_the_deadline_or_have_no_plan(folder, monkeypatch):
    # b alone on one GPU: 400 + 300 and 200 + 400 tokens at 1 ms each; on two GPUs there is time enough
    monkeypatch.setattr(baselines, "baseline_plan", lambda _, *problem: BASELINE_PLAN("sequential", *problem))
    library = Library.load(folder)
    entry = library.entry("toy-in-time")
    soon = entry.options.model_copy(update={"deadline_s": 1.2})
    library.with_entry(entry.model_copy(update={"options": soon})).save()
    (row,) = bench(folder, "toy-in-time", "--json").json["entries"]
    assert (row["reference"], row["checked"]) == (None, "valid")
    assert "misses the deadline" in row["reference_reason"]

    def impossible(*_):
        raise InfeasibleError("too small")

    monkeypatch.setattr(baselines, "baseline_plan", impossible)
    (row,) = bench(folder, "toy", "--json").json["entries"]
    assert (row["reference"], row["checked"]) == (None, "valid")
    assert row["reference_reason"] == "infeasible: too small"


def loaded(folder):
    instance = Instance.load(folder / "instance.json")
    return instance, fit_instance_costs(instance)


def test_update_writes_only_what_is_better(folder):
    done = bench(folder, "toy", "--update", "--json")
    assert done.code == 0, done.err
    (row,) = done.json["entries"]
    first = known(folder)
    assert (first.objective.value, first.bound.value) == (row["objective"], row["bound"])
    assert first.objective.seed == 0
    assert Library.load(folder).entry("toy").reference.value == row["reference"]
    assert known(folder, "toy-deep") is None

    state(folder, objective=1.5 * first.objective.value, bound=0.5 * first.bound.value)
    again = bench(folder, "toy", "--update", "--seed", 3, "--json")
    assert again.json["entries"][0]["ratio_to_best_known"] < 0.7
    assert known(folder).objective.seed == known(folder).bound.seed == 3

    better = 0.5 * (row["objective"] + row["bound"]) if row["objective"] > row["bound"] * 1.001 else row["objective"]
    before = state(folder, objective=better)
    assert bench(folder, "toy", "--update").code == 0
    assert known(folder).objective.value == better
    assert (folder / "index.json").read_text() == before


def test_values_of_other_costs_are_left_out_and_replaced(folder):
    assert bench(folder, "toy", "--update").code == 0
    before = known(folder)
    state(folder, objective=0.5 * before.bound.value, bound=0.4 * before.bound.value)  # nothing could be as good
    table = folder / "table.csv"
    slower = [line.split(",") for line in table.read_text().splitlines()]
    for line in slower[1:]:
        line[7] = str(2 * float(line[7]))
    table.write_text("\n".join(",".join(line) for line in slower) + "\n")
    (row,) = bench(folder, "toy", "--update", "--json").json["entries"]
    assert row["best_known"] is None
    assert known(folder).objective.value == row["objective"] > before.objective.value


def wrong_plans(monkeypatch, change):
    """Let the planner return a changed plan, as a solver with a fault would."""

    def make_plan(*args, **kwargs):
        return change(PLAN(*args, **kwargs))

    monkeypatch.setattr(planning, "make_plan", make_plan)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("toy", lambda p: {"gpu_time_s": 0.9 * p.gpu_time_s}, ("rule 7", "gpu_time_s")),
        ("toy", lambda p: {"lower_bound": 1.1 * p.gpu_time_s, "gap": 0.0}, ("rule 7", "lower_bound_s")),
        ("toy", lambda p: {"objective": "makespan", "lower_bound": None, "gap": None}, ("objective", "makespan")),
        ("toy-in-time", lambda p: {"deadline_s": 3.0}, ("deadline_s", "3.0", "2.0")),
        ("toy-deep", lambda p: {"replicas": p.replicas[:1]}, ("rule 1",)),
    ],
)
def test_a_value_that_the_checker_does_not_confirm_is_refused(folder, monkeypatch, name, change, words):
    def changed(plan):
        figures = {"status": "feasible", "certificate": None, **change(plan)}
        if name == "toy-deep" and len(plan.replicas) == 1:  # both adapters share one replica: take one away
            replica = plan.replicas[0]
            figures["replicas"] = (replica.model_copy(update={"adapters": replica.adapters[:1]}),)
        return Plan.model_validate({**plan.model_dump(), **figures})

    wrong_plans(monkeypatch, changed)
    before = (folder / "index.json").read_text()
    done = bench(folder, name, "--update", "--json")
    one_clear_error(done, f'entry "{name}"', "not confirmed", *words)
    assert done.json["entries"][0]["checked"] == "FAILED"
    assert done.json["failures"][0]["instance"] == name
    assert (folder / "index.json").read_text() == before


def test_a_plan_of_another_depth_is_refused(folder, monkeypatch):
    def shallow(instance, options, *args):
        return PLAN(instance, planning.PlanOptions(time_limit_s=0.1, num_stages=1), *args)

    monkeypatch.setattr(planning, "make_plan", shallow)
    one_clear_error(bench(folder, "toy-deep"), 'entry "toy-deep"', "num_stages of the plan is [1]", "of the entry 2")


def test_a_best_known_bound_above_a_checked_objective_is_a_contradiction(folder):
    assert bench(folder, "toy", "--update").code == 0
    value = known(folder).objective.value
    before = state(folder, objective=3 * value, bound=2 * value)
    done = bench(folder, "toy", "toy-makespan", "--update", "--json")
    one_clear_error(done, '"toy"', "best-known bound", "stands above", "checked objective")
    assert [r["checked"] for r in done.json["entries"]] == ["FAILED", "valid"]  # the others are still run
    toy = json.loads((folder / "index.json").read_text())["entries"][0]
    assert toy == json.loads(before)["entries"][0]


def test_a_bound_above_the_best_known_objective_is_a_contradiction(folder):
    assert bench(folder, "toy", "--update").code == 0
    bound = known(folder).bound.value
    before = state(folder, objective=0.5 * bound, bound=0.4 * bound)
    done = bench(folder, "toy", "--update")
    one_clear_error(done, '"toy"', "this run's bound", "stands above", "best-known objective")
    assert (folder / "index.json").read_text() == before


def test_plans_are_kept_and_verify_the_best_known(folder, tmp_path):
    plans = tmp_path / "plans"
    assert bench(folder, "--plans", plans, "--update").code == 0
    assert {p.name for p in plans.iterdir()} == {f"{name}.plan.json" for name in NAMES}
    done = bench(folder, "--verify", "--plans", plans, "--json")
    assert done.code == 0, done.err
    assert [r["verdict"] for r in done.json["entries"]] == ["confirmed"] * 4

    value = known(folder).objective.value
    state(folder, objective=1.5 * value)
    assert bench(folder, "toy", "--verify", "--plans", plans).out.splitlines()[1].split()[:2] == ["toy", "better"]
    state(folder, objective=0.9 * value, bound=0.8 * value)
    done = bench(folder, "toy", "--verify", "--plans", plans, "--json")
    one_clear_error(done, "toy.plan.json", "does not confirm the best-known", '"toy"')
    assert done.json["entries"][0]["verdict"] == "REFUSED"
    state(folder, objective=1.5 * value, bound=1.4 * value)
    one_clear_error(bench(folder, "toy", "--verify", "--plans", plans), "best-known bound", "stands above")


def test_a_plan_that_was_tampered_with_confirms_nothing(folder, tmp_path):
    assert bench(folder, "toy", "--plans", tmp_path, "--update").code == 0
    path = tmp_path / "toy.plan.json"
    plan = json.loads(path.read_text())
    plan["replicas"][0]["programs"][0].pop()
    path.write_text(json.dumps(plan))
    one_clear_error(bench(folder, "toy", "--verify", "--plans", tmp_path), "toy.plan.json", "not confirmed", "rule")


def test_a_better_plan_is_not_overwritten(folder, tmp_path, monkeypatch):
    assert bench(folder, "toy", "--plans", tmp_path).code == 0
    path = tmp_path / "toy.plan.json"
    first = path.read_text()
    instance, costs = loaded(folder)
    deep = PLAN(instance, planning.PlanOptions(time_limit_s=None, iterations=0, num_stages=2), costs)
    worse = deep.model_copy(update={"lower_bound": None, "gap": None, "status": Status.FEASIBLE})
    assert worse.gpu_time_s > json.loads(first)["gpu_time_s"]
    monkeypatch.setattr(planning, "make_plan", lambda *_: worse)
    assert bench(folder, "toy", "--plans", tmp_path).code == 0
    assert path.read_text() == first
    path.unlink()
    assert bench(folder, "toy", "--plans", tmp_path).code == 0
    assert path.exists()
    assert path.read_text() != first


def test_verify_needs_plans(folder, tmp_path):
    refused = bench(folder, "--verify")
    assert refused.code == 2
    assert "bench NAMES --plans DIR" in " ".join(refused.err.replace("│", " ").split())
    made = f"cappuccino bench toy --plans {tmp_path} makes it"
    none = bench(folder, "--verify", "--plans", tmp_path)
    one_clear_error(none, "holds no plan of the entries", "toy.plan.json", "not shipped", made)
    assert bench(folder, "toy", "--plans", tmp_path).code == 0
    verdicts = [r["verdict"] for r in bench(folder, "--verify", "--plans", tmp_path, "--json").json["entries"]]
    assert verdicts == ["nothing stated", "no plan", "no plan", "no plan"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--quick", "--time-limit", 1),
        ("--verify", "--plans", "p", "--update"),
        ("--verify", "--plans", "p", "--quick"),
        ("--verify", "--plans", "p", "--seed", 0),
        ("--time-limit", 0),
    ],
)
def test_options_that_contradict_each_other_exit_2(folder, arguments):
    assert bench(folder, *arguments).code == 2


def test_limits_and_seed_reach_the_planner(folder, monkeypatch):
    asked = []
    plan = PLAN(loaded(folder)[0], planning.PlanOptions(time_limit_s=None, iterations=0))

    def make_plan(instance, options, *_):
        asked.append((options.time_limit_s, options.seed))
        return plan

    monkeypatch.setattr(planning, "make_plan", make_plan)
    for arguments in ((), ("--quick",), ("--time-limit", 7, "--seed", 5)):
        assert bench(folder, "toy", *arguments).code == 0
    assert asked == [(0.1, 0), (bench_commands.QUICK_LIMIT_S, 0), (7.0, 5)]


def test_bad_input_is_one_error_before_the_work(folder, tmp_path, monkeypatch):
    def must_not_run(*_):
        raise AssertionError("planned in vain")

    monkeypatch.setattr(bench_commands, "run_isolated", must_not_run)
    one_clear_error(bench(folder, "nothing"), 'no entry "nothing"', "toy-deep")
    one_clear_error(bench(folder, "-o", tmp_path / "table.txt"), "table.txt", ".csv or .md")
    one_clear_error(bench(folder, "-o", folder / "index.json" / "table.md"), "index.json", "no folder")
    one_clear_error(bench(tmp_path / "absent"), "index.json", "file not found")


def test_a_shipped_entry_in_a_process_of_its_own():
    done = cappuccino("bench", "tiny1-llama7b", "--time-limit", 1, "--json")
    assert done.code == 0, done.err
    (row,) = done.json["entries"]
    assert (row["checked"], row["unit"], row["adapters"]) == ("valid", "GPU-s", 1)
    assert row["reference"] >= row["objective"] * (1 - 1e-9)  # one adapter on one GPU leaves nothing to gain
    assert 0.05 < row["peak_memory_gib"] < 4
