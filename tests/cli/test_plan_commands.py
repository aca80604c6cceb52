"""plan, check and simulate: what they print, what they write, and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli.conftest import cappuccino, one_clear_error, read_instance, write_instance


@pytest.fixture
def planned(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", "--time-limit", 2, "--json")
    assert done.code == 0, done.err
    return workspace, done


def plan_of(workspace):
    return json.loads((workspace / "plan.json").read_text())


def test_plan_states_objective_bound_gap_status_and_the_checkers_word(planned):
    workspace, done = planned
    said, plan = done.json, plan_of(workspace)
    assert said["checked"] is True
    assert said["value"] == plan["gpu_time_s"]
    assert said["lower_bound"] == plan["lower_bound_s"] <= said["value"]
    assert said["gap"] == pytest.approx(1 - said["lower_bound"] / said["value"])
    assert said["status"] in ("optimal", "within_gap", "feasible")
    assert said["certified"]


def test_plan_as_text_names_the_same(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", "--time-limit", 1)
    assert done.code == 0
    for word in ("objective", "bound", "gap", "checked: valid", "plan.json"):
        assert word in done.out


def test_sweeps_in_yaml_are_planned_and_checked_under_their_names(workspace):
    data = read_instance(workspace)
    data["adapters"][0] = {
        "name": "a",
        "dataset": "short",
        "global_batch_size": 4,
        "epochs": 2,
        "sweep": {"rank": [4, 8]},
    }
    instance, plan = workspace / "instance.yaml", workspace / "plan.json"
    instance.write_text(yaml.safe_dump(data))
    done = cappuccino("plan", instance, "-o", plan, "--time-limit", 1, "--json")
    assert done.code == 0, done.err
    assert sorted(name for r in done.json["replicas"] for name in r["adapters"]) == ["a-r4", "a-r8", "b"]
    checked = cappuccino("check", plan, "--instance", instance, "--json")
    assert (checked.code, checked.json["violations"]) == (0, [])
    data["adapters"][0]["epochs"] = 3  # another plan's instance
    instance.write_text(yaml.safe_dump(data))
    assert cappuccino("check", plan, "--instance", instance).code == 1


def test_check_and_simulate_accept_a_plan(planned):
    workspace, _ = planned
    plan, instance = workspace / "plan.json", workspace / "instance.json"
    checked = cappuccino("check", plan, "--instance", instance, "--json")
    assert checked.code == 0
    assert checked.json["violations"] == []
    trace = workspace / "trace.json"
    simulated = cappuccino("simulate", plan, "--instance", instance, "--trace", trace, "--json")
    assert simulated.code == 0
    assert simulated.json["gpu_time_s"] == pytest.approx(plan_of(workspace)["gpu_time_s"])
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    operations = sum(len(p) for r in plan_of(workspace)["replicas"] for p in r["programs"])
    assert len(events) == operations


def fixed_depth(workspace, stages):
    arguments = ("--time-limit", 1, "--num-stages", stages)
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", *arguments)
    assert done.code == 0, done.err
    return plan_of(workspace)


def rewrite(workspace, plan):
    (workspace / "plan.json").write_text(json.dumps(plan))
    return cappuccino("check", workspace / "plan.json", "--instance", workspace / "instance.json")


def test_a_plan_with_one_sample_twice_is_rejected(workspace):
    plan = fixed_depth(workspace, 2)
    batch = plan["replicas"][0]["micro_batches"][0]["samples"]
    batch.insert(0, batch[0])
    one_clear_error(rewrite(workspace, plan), "plan.json", "rule 2", "is in 2 places")


def test_a_plan_with_a_backward_before_its_forward_is_rejected(workspace):
    plan = fixed_depth(workspace, 2)
    program = plan["replicas"][0]["programs"][1]
    forward = next(i for i, op in enumerate(program) if op[0] == "F")
    backward = program.index(["B", program[forward][1]])
    program[forward], program[backward] = program[backward], program[forward]
    one_clear_error(rewrite(workspace, plan), "rule 3", "stands before its F")


def test_programs_that_wait_for_each_other_are_rejected(workspace):
    plan = fixed_depth(workspace, 2)
    first, second = plan["replicas"][0]["programs"]
    # stage 0 wants the gradient of its first micro-batch before it sends the second; stage 1 wants both before any B
    forwards = [op for op in second if op[0] == "F"][:2]
    plan["replicas"][0]["programs"][0] = [
        forwards[0],
        ["B", forwards[0][1]],
        *[op for op in first if op not in (forwards[0], ["B", forwards[0][1]])],
    ]
    backward = ["B", forwards[0][1]]
    rest = [op for op in second if op not in (*forwards, backward)]
    plan["replicas"][0]["programs"][1] = [*forwards, backward, *rest]
    one_clear_error(rewrite(workspace, plan), "rule 5", "deadlock", "stage 0", "stage 1")


def test_a_truncated_plan_is_named_as_such(workspace):
    fixed_depth(workspace, 2)
    path = workspace / "plan.json"
    path.write_text(path.read_text()[:-200])
    for command in (("check",), ("simulate",)):
        done = cappuccino(*command, path, "--instance", workspace / "instance.json")
        one_clear_error(done, "plan.json", "truncated")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i["adapters"][0].update(global_batch_size=-4), ("adapters[0].global_batch_size", "-4")),
        (lambda i: i.update(backbone="other"), ("table.csv", '"other"', "toy")),
        (lambda i: i["gpu_pools"][0].update(memory_gib=0.9), ('"b"', "400 tokens", "usable", "max_sequence_length")),
        (lambda i: i["adapters"][0].update(dataset="nothing"), ("adapters[0].dataset", "nothing", "short")),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(workspace, change, words):
    instance = read_instance(workspace)
    change(instance)
    path = write_instance(workspace, instance)
    before = sorted(workspace.iterdir())
    done = cappuccino("plan", path, "-o", workspace / "plan.json", "--time-limit", 1)
    one_clear_error(done, *words)
    assert sorted(workspace.iterdir()) == before


def test_errors_as_json(workspace):
    done = cappuccino("plan", workspace / "absent.json", "-o", workspace / "plan.json", "--json")
    assert done.code == 1
    assert "file not found" in done.json["error"]


def test_wrong_usage_exits_2(workspace):
    assert cappuccino("plan", workspace / "instance.json").code == 2
    assert cappuccino("plan", workspace / "instance.json", "-o", "x", "--objective", "speed").code == 2


def test_the_output_folder_is_checked_before_the_search(workspace):
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "instance.json" / "plan.json")
    one_clear_error(done, "instance.json", "no folder")


def test_the_number_of_stages_can_be_fixed(workspace):
    assert {r["num_stages"] for r in fixed_depth(workspace, 2)["replicas"]} == {2}


@pytest.mark.parametrize("method", ["auto", "cp-sat", "search"])
def test_plans_say_which_method_made_them(workspace, method):
    options = ("--time-limit", 1, "--method", method, "--json")
    done = cappuccino("plan", workspace / "instance.json", "-o", workspace / "plan.json", *options)
    assert done.code == 0, done.err
    assert done.json["checked"]
    assert plan_of(workspace)["solver"]["method"] == method


def test_the_installed_command_exits_as_the_error_says(tmp_path):
    command = [Path(sys.executable).parent / "cappuccino", "check", tmp_path / "absent.json", "--instance", "x.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_a_missing_extra_is_named_with_its_remedy(workspace, monkeypatch):
    fixed_depth(workspace, 2)
    for name in [n for n in sys.modules if n.startswith("cappuccino.runtime.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)  # as if it were not installed
    options = ("--instance", workspace / "instance.json", "--backbone", "x", "--data", "y", "-o", workspace / "out")
    done = cappuccino("run", workspace / "plan.json", *options)
    one_clear_error(done, '"safetensors"', "[runtime]")


def test_the_first_interrupt_ends_the_search_with_a_plan(workspace):
    # no gap is small enough and the time limit is longer than any test: only the interrupt ends it
    plan = workspace / "plan.json"
    arguments = ["plan", workspace / "instance.json", "-o", plan, "--time-limit", 100_000, "--gap", 0, "--json"]
    code = INTERRUPTED_ONCE_THERE_IS_A_PLAN + f"sys.argv[1:] = {[str(a) for a in arguments]!r}; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "best plan so far" in done.stderr
    assert json.loads(done.stdout)["checked"] is True
    assert cappuccino("check", plan, "--instance", workspace / "instance.json").code == 0


INTERRUPTED_ONCE_THERE_IS_A_PLAN = """
import os, signal, sys
from cappuccino.cli import main
from cappuccino.solvers import improvement, planning
def improve(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return improvement.improve(*arguments, **options)
planning.improve = improve
"""


def test_models_behind_a_plan_are_exported_and_listed(workspace):
    arguments = ("-o", workspace / "plan.json", "--time-limit", 1, "--export-models", workspace / "models")
    done = cappuccino("plan", workspace / "instance.json", *arguments, "--export-limit", 400, "--json")
    assert done.code == 0, done.err
    names = {"README.txt", "columns.csv", "set_partitioning.lp", "set_partitioning.mps"}
    names |= {f"replica-{r['id']}.pbtxt" for r in done.json["replicas"]}
    assert {Path(f).name for f in done.json["models"]["files"]} == names
    assert {p.name for p in (workspace / "models").iterdir()} == names
    # again over its own, with too low a limit for any replica
    done = cappuccino("plan", workspace / "instance.json", *arguments, "--export-limit", 1)
    assert done.code == 0, done.err
    assert done.err.count("too large for one model") == len(plan_of(workspace)["replicas"])
    assert "models" in done.out
    assert not list((workspace / "models").glob("*.pbtxt"))


def test_a_folder_for_models_is_tried_before_the_search(workspace):
    def attempt(folder, *more):
        plan = cappuccino("plan", workspace / "instance.json", "-o", workspace / "out" / "plan.json", *more, *folder)
        assert not (workspace / "out").exists()
        return plan

    (workspace / "full").mkdir()
    (workspace / "full" / "notes.txt").write_text("mine")
    one_clear_error(attempt(("--export-models", workspace / "full")), "notes.txt", "name one that is empty")
    (workspace / "file").write_text("")
    one_clear_error(attempt(("--export-models", workspace / "file")), "no folder")
    one_clear_error(attempt(("--export-models", workspace / "out")), "stand in the way")
    one_clear_error(attempt(("--export-limit", 5)), "--export-models")
