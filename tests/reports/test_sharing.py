"""What plans say about sharing: its sum, and the checker's word on it."""

import pytest
from helpers.builders import changed, make_costs, make_instance, make_plan, make_replica, parse_programs, timed
from pydantic import ValidationError

from cappuccino.checker import check
from cappuccino.cli.terminal import console
from cappuccino.plan import AdapterSaving, Objective
from cappuccino.reports.sharing import SEPARATE_AND_SEQUENTIAL, sharing_summary

COSTS = {"x": make_costs()}
INSTANCE = make_instance(([2], 1), ([3], 1), ([4], 1), gpus=4, prices={"x": 3600.0})


def saving(alone, added, price=1.0):
    return AdapterSaving(
        alone_gpu="x",
        alone_num_stages=1,
        alone_gpu_time_s=alone,
        added_gpu_time_s=added,
        alone_cost=alone * price,
        added_cost=added * price,
    )


def planned(first=(), second=(), objective=Objective.GPU_TIME):
    """Return a plan of a replica of a0 and a1 (15 s) and one of a2 (12 s) with these savings; 1 money a second."""
    two = make_replica([[(0, 0)], [(1, 0)]], parse_programs("F0 B0 S0.0 F1 B1 S1.0"), ["a0", "a1"])
    one = make_replica([[(0, 0)]], parse_programs("F0 B0 S0.0"), ["a2"], 1)
    two, one = (changed(r, savings=s or None) for r, s in ((two, first), (one, second)))
    return timed(make_plan(INSTANCE, two, one, objective=objective), INSTANCE, COSTS)


def messages(plan):
    return [str(v) for v in check(plan, INSTANCE, COSTS).violations]


def test_plans_that_compare_nothing_have_no_summary():
    assert sharing_summary(planned()) is None
    assert messages(planned()) == []


@pytest.mark.parametrize(("objective", "unit"), [(Objective.GPU_TIME, "GPU-s"), (Objective.COST, "money")])
def test_separate_runs_against_the_plan(objective, unit):
    plan = planned((saving(10, 5), saving(14, 9)), (saving(12, 12),), objective)
    assert messages(plan) == []
    found = sharing_summary(plan)
    assert (found.adapters, found.evaluated, found.compared, found.unit) == (3, 3, 3, unit)
    assert (found.separate, found.shared) == (pytest.approx(36), pytest.approx(27))
    assert found.ratio == pytest.approx(36 / 27)


def test_replicas_that_are_not_evaluated_are_left_out():
    plan = planned((saving(10, 5), AdapterSaving()), (saving(12, 12),))
    assert messages(plan) == []
    found = sharing_summary(plan)
    assert (found.adapters, found.evaluated, found.compared) == (3, 2, 1)
    assert (found.separate, found.shared) == (pytest.approx(12), pytest.approx(12))


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.COST])
def test_separate_runs_are_enough_for_the_sum(objective):
    alone = [
        s.model_copy(update={"added_gpu_time_s": None, "added_cost": None}) for s in (saving(10, 5), saving(14, 9))
    ]
    plan = planned(alone, (saving(12, 12),), objective)
    assert messages(plan) == []
    found = sharing_summary(plan)
    assert (found.evaluated, found.compared) == (1, 3)
    assert (found.separate, found.shared) == (pytest.approx(36), pytest.approx(27))


@pytest.mark.parametrize("objective", [Objective.GPU_TIME, Objective.COST])
def test_nothing_evaluated_is_no_figure(objective):
    found = sharing_summary(planned((AdapterSaving(), AdapterSaving()), (AdapterSaving(),), objective))
    assert (found.evaluated, found.separate, found.shared, found.ratio) == (0, None, None, None)


def test_money_is_compared_for_whole_plans_only():
    found = sharing_summary(planned((saving(10, 5), AdapterSaving()), (saving(12, 12),), Objective.COST))
    assert (found.evaluated, found.compared, found.separate) == (2, 0, None)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((saving(10, 5),), (), "replica 0: 1 savings for 2 adapters"),
        ((saving(10, 5), saving(9, 15.1)), (), 'savings of "a1": added_gpu_time_s 15.1 is above the replica\'s 15'),
        ((), (saving(12, 11),), 'savings of "a2": added_gpu_time_s is 11, the replica without it nothing: 12'),
        ((saving(10, 5), saving(9, 9, 2.0)), (), 'savings of "a1": alone_cost is 18, alone_gpu_time_s and the price'),
        (
            (),
            (saving(12, 12).model_copy(update={"added_cost": None}),),
            "added_cost is null, added_gpu_time_s and the price on x give 12",
        ),
        ((), (saving(12, 12).model_copy(update={"alone_gpu": "y"}),), 'there is no pool of "y"'),
    ],
)
def test_the_checker_refuses_figures_that_contradict_the_plan(first, second, message):
    found = messages(planned(first, second))
    assert any(message in text and text.startswith("rule 7") for text in found), found


@pytest.mark.parametrize(
    "values",
    [
        {"alone_gpu_time_s": 1.0},
        {"alone_gpu": "x", "alone_num_stages": 1},
        {"alone_cost": 1.0},
        {"added_cost": 1.0},
        {"alone_gpu": "x", "alone_num_stages": 1, "alone_gpu_time_s": float("inf"), "added_gpu_time_s": 1.0},
        {"alone_gpu": "x", "alone_num_stages": 1, "alone_gpu_time_s": 1.0, "added_gpu_time_s": -1.0},
        {"alone_gpu": "x", "alone_num_stages": 0, "alone_gpu_time_s": 1.0, "added_gpu_time_s": 1.0},
    ],
)
def test_figures_are_complete_finite_and_not_negative(values):
    with pytest.raises(ValidationError):
        AdapterSaving(**values)


def said(plan, capsys):
    report = check(plan, INSTANCE, COSTS)
    console.print_plan(plan, report)
    lines = capsys.readouterr().out.splitlines()
    return lines, console.plan_summary(plan, report)


def test_plans_are_printed_with_a_line_for_every_adapter(capsys):
    lines, summary = said(planned((saving(10, 5), saving(14, 9)), (saving(12, 12),)), capsys)
    assert "sharing     separate runs of all adapters 36 GPU-s, here 27: saves 25.0%" in lines
    assert f"({SEPARATE_AND_SEQUENTIAL})" in " ".join(line.strip() for line in lines)
    assert max(map(len, lines)) <= 80
    assert "  a0: alone 10 GPU-s on 1 x x, here it adds 5, saves 5" in lines
    assert [r["savings"][0]["alone_gpu_time_s"] for r in summary["replicas"]] == [10, 12]
    assert summary["sharing"]["ratio"] == pytest.approx(36 / 27)


def test_what_was_not_compared_is_printed_as_such(capsys):
    lines, summary = said(planned((saving(10, 5), AdapterSaving()), (saving(12, 12),)), capsys)
    assert "sharing     2 of 3 adapters evaluated one by one in time" in lines
    assert "sharing     separate runs of 1 adapter 12 GPU-s, here 12: saves 0.0%" in lines
    assert "  a1: not evaluated" in lines
    assert summary["replicas"][0]["savings"][1]["alone_gpu_time_s"] is None


def test_what_rounding_leaves_is_no_saving(capsys):
    tenths = 0.1 + 0.2  # a hair above 0.3
    lines, _ = said(planned((saving(10, 5), saving(14, 9)), (saving(0.3, tenths),)), capsys)
    assert "  a2: alone 0.3 GPU-s on 1 x x, here it adds 0.3, saves 0" in lines


def test_many_adapters_are_printed_as_a_sum(capsys, monkeypatch):
    monkeypatch.setattr(console, "MOST_ADAPTERS_LISTED", 2)
    lines, summary = said(planned((saving(10, 5), saving(14, 9)), (saving(12, 12),)), capsys)
    assert sum("sharing" in line for line in lines) == 1
    assert not any(": alone" in line for line in lines)
    assert len(summary["replicas"][0]["savings"]) == 2


def test_plans_without_figures_are_printed_without(capsys):
    lines, summary = said(planned(), capsys)
    assert not any("sharing" in line for line in lines)
    assert summary["sharing"] is None
