"""Planning, checking, simulating and running from Python."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli.conftest import TINY_LENGTHS, write_tiny

import cappuccino
from cappuccino import CappuccinoWarning, InputError, Instance, InvalidPlanError, Plan
from cappuccino.api import running
from cappuccino.plan import Objective, Recompute, Replica
from cappuccino.solvers.planning import PlanOptions, Progress, make_plan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Instance:
    return Instance.load(write_tiny(tmp_path_factory.mktemp("tiny")))


def planned(instance: Instance, **options: object) -> Plan:
    """Plan without a limit of time, so that equal seeds give equal plans."""
    with pytest.warns(CappuccinoWarning, match="outside the profiled 64 to 1024"):
        return cappuccino.plan(instance, time_limit=None, **options)


@pytest.fixture(scope="module")
def plan(tiny: Instance) -> Plan:
    return planned(tiny)


def test_options_are_those_of_the_planner(tiny: Instance) -> None:
    found = planned(tiny, objective="makespan", num_stages=2, seed=3, gap=0.05)
    by_hand = make_plan(tiny, PlanOptions(Objective.MAKESPAN, time_limit_s=None, num_stages=2, seed=3, gap=0.05))
    assert found.replicas == by_hand.replicas
    assert {r.num_stages for r in found.replicas} == {2}
    assert found.objective == "makespan"
    assert planned(tiny, method="search").solver["method"] == "search"
    late = planned(tiny, deadline=100.0)
    assert late.deadline_s == 100.0
    assert max(r.makespan_s for r in late.replicas) <= 100.0


def test_an_interrupt_ends_the_search_with_the_best_plan_so_far(tiny: Instance) -> None:
    before, sent = signal.getsignal(signal.SIGINT), list[float]()

    def interrupt(state: Progress) -> None:
        if not sent:
            sent.append(state.objective)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(CappuccinoWarning) as warned:
        found = cappuccino.plan(tiny, time_limit=100_000.0, gap=0.0, on_progress=interrupt)
    assert any("interrupted: finishing with the best plan so far" in str(warning.message) for warning in warned)
    assert cappuccino.check(found, tiny).valid
    assert sent and found.gpu_time_s <= sent[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_models_behind_a_plan_are_exported(tiny: Instance, tmp_path: Path) -> None:
    found = planned(tiny, export_models=tmp_path / "models")
    names = {p.name for p in (tmp_path / "models").iterdir()}
    assert names >= {"README.txt", "set_partitioning.lp", *(f"replica-{r.id}.pbtxt" for r in found.replicas)}
    with pytest.warns(CappuccinoWarning, match="too large for one model"):
        planned(tiny, export_models=tmp_path / "models", export_limit=1)
    for options in ({"export_limit": 5}, {"export_models": tmp_path, "export_limit": 0}, {"export_models": tmp_path}):
        with pytest.raises(InputError, match=r"export_limit|holds other files"):
            cappuccino.plan(tiny, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "gpu-time"}, ('"gpu-time" is not known', "use one of gpu_time, makespan, cost")),
        ({"recompute": "some"}, ('"some" is not known', "use one of none, full")),
        ({"method": "guess"}, ('"guess" is not known', "use one of auto, cp-sat, search")),
        ({"layers": "odd"}, ('"odd" is not known', "use one of auto, even")),
        ({"time_limit": -1.0}, ("time_limit_s", "-1.0 is not allowed", "seconds from 0 on, or None")),
        ({"deadline": 0.0}, ("deadline_s", "0.0 is not allowed", "more than 0 seconds")),
        ({"gap": math.nan}, ("gap", "nan is not allowed", "below 1")),
        ({"seed": 2**31}, ("seed", "2147483648 is not allowed", "to 2147483647")),
        ({"recompute": "full"}, ("recompute", "unknown, not full", "profile it too")),
        ({"objective": "cost"}, ("gpu_pools[0].price_per_hour", "is missing")),
    ],
)
def test_wrong_options_are_one_error(tiny: Instance, options: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        cappuccino.plan(tiny, **options)
    for word in words:
        assert word in str(caught.value)


def test_progress_is_told(tiny: Instance) -> None:
    seen = []
    found = planned(tiny, on_progress=seen.append)
    assert seen[-1].objective >= found.gpu_time_s * (1 - 1e-9)
    assert all(state.bound <= state.objective for state in seen)


def test_plans_are_checked_and_simulated(tiny: Instance, plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert cappuccino.check(plan, tiny).valid
    found = cappuccino.simulate(plan, tiny)
    assert found.gpu_time_s == pytest.approx(plan.gpu_time_s)
    assert found.makespan_s == pytest.approx(plan.makespan_s)
    first = plan.replicas[0]
    programs = (tuple(reversed(first.programs[0])), *first.programs[1:])
    broken = plan.model_copy(update={"replicas": (first.model_copy(update={"programs": programs}), *plan.replicas[1:])})
    report = cappuccino.check(broken, tiny)
    assert not report.valid
    with pytest.raises(InvalidPlanError, match="invalid plan: rule"):
        cappuccino.simulate(broken, tiny)


def test_a_plan_is_a_table_of_its_replicas(plan: Plan) -> None:
    first = plan.replicas[0]
    other = Replica.model_validate(
        {**dict(first), "id": 1, "recompute": "full", "layers_per_stage": (3,) * first.num_stages, "savings": None}
    )
    table = plan.model_copy(update={"replicas": (first, other)}).to_dataframe()
    assert list(table["replica"]) == [first.id, 1]
    assert list(table["gpu_time_s"]) == [first.num_stages * first.makespan_s] * 2
    assert list(table["peak_memory_gib"]) == [max(first.peak_memory_gib)] * 2
    assert list(table["micro_batches"]) == [len(first.micro_batches)] * 2
    assert list(table["evaluations"]) == [0, 0]
    assert table["recompute"][1] == "full"
    assert table["layers_per_stage"][1] == (3,) * first.num_stages
    alone = sum(saving.alone_gpu_time_s for saving in first.savings)
    assert table["alone_gpu_time_s"][0] == alone
    assert np.isnan(table["alone_gpu_time_s"][1])
    assert list(table.explode("adapters")["adapters"]) == [*first.adapters] * 2
    assert pd.api.types.is_float_dtype(table["lower_bound_s"])


def test_every_column_of_the_table_is_documented(plan: Plan) -> None:
    documented = Plan.to_dataframe.__doc__
    assert documented is not None
    for column in plan.to_dataframe().columns:
        assert f"`{column}`" in documented, column


@pytest.fixture
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    from helpers.small import save_llama

    return save_llama(tmp_path_factory.mktemp("backbone") / "backbone", layers=2)


def test_a_plan_is_run_and_goes_on(tiny: Instance, plan: Plan, backbone: Path, tmp_path: Path) -> None:
    from helpers.small import write_data

    write_data(tmp_path / "data", TINY_LENGTHS)
    events: list[object] = []
    arguments = plan, tiny, str(backbone), tmp_path / "data", tmp_path / "out"
    with pytest.warns(CappuccinoWarning, match="does not say with which engine"):
        done = cappuccino.run(*arguments, checkpoint_every=1, on_event=events.append)
    assert {name: len(losses) for name, losses in done.losses.items()} == {"a": 2, "b": 3}
    assert len(events) == 5
    assert (done.adapters["a"] / "adapter_model.safetensors").exists()
    assert json.loads((done.adapters["b"] / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        backbone
    )
    assert not done.diverged
    with pytest.warns(CappuccinoWarning, match="does not say with which engine"):
        again = cappuccino.run(*arguments, resume=True)
    assert again.losses == done.losses
    with pytest.raises(InputError, match="all steps are done"):
        cappuccino.plan(tiny, resume=tmp_path / "out")


def test_an_invalid_plan_is_refused_before_the_run(tiny: Instance, plan: Plan, backbone: Path, tmp_path: Path) -> None:
    wrong = plan.model_copy(update={"gpu_time_s": 2 * plan.gpu_time_s})
    with pytest.raises(InvalidPlanError, match="rule 7"):
        cappuccino.run(wrong, tiny, backbone, tmp_path, tmp_path / "out")
    for options, words in (
        ({"keep": "all"}, "use one of last, best"),
        ({"recompute": "some"}, "use one of none, full"),
        ({"checkpoint_every": "often"}, 'give 1 or more, "auto" or None'),
        ({"checkpoint_every": 0}, "0 is below 1"),
        ({"keep_checkpoints": 0}, "0 is below 1"),
    ):
        with pytest.raises(InputError, match=words):
            cappuccino.run(plan, tiny, backbone, tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_without_torch_says_what_to_install(
    tiny: Instance, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'"torch"; install it with: .*pip install .*\[runtime\]"'):
        cappuccino.run(plan, tiny, tmp_path, tmp_path, tmp_path / "out")


def test_other_recomputation_changes_the_replicas_alone(plan: Plan) -> None:
    changed = running.recomputing(plan, Recompute.FULL)
    assert {r.recompute for r in changed.replicas} == {Recompute.FULL}
    assert changed.model_copy(update={"replicas": plan.replicas}) == plan
