from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import changed, make_costs, make_instance, make_plan, make_replica, timed, with_evaluations
from helpers.pages import columns_named, page_models
from helpers.plans import random_plan

from cappuccino.checker import check
from cappuccino.plan import AdapterSaving, FoundPlan, Operation
from cappuccino.reports.page.contents import LossPoint, PageContents
from cappuccino.reports.page.document import report_page
from cappuccino.reports.page.figures import memory_steps
from cappuccino.reports.page.operations import KINDS, list_works, operation_columns
from cappuccino.reports.prediction_error import compare_with_trace


def contents_of(plan, instance, costs, *, trace=False, losses=()):
    report = check(plan, instance, costs)
    assert report.valid, report.violations[:3]
    lines = [run.timeline for run in report.simulation.replicas]
    measured = compare_with_trace(plan, instance, costs, lines, instance.digest, "trace") if trace else ()
    return PageContents(plan, instance, costs, report.simulation, measured, losses)


def drawn(seed, **more):
    instance = with_evaluations(make_instance(([5, 3, 4], 2, 3), ([7, 2], 3, 2), ([4], 1, 4), layout="padded"), seed)
    costs = {"x": make_costs(optimizer_s=0.5, transfer=(0.1, 0.0))}
    return contents_of(timed(random_plan(instance, 2, seed), instance, costs), instance, costs, **more)


@pytest.mark.parametrize("seed", range(5))
def test_every_operation_is_in_the_data_where_it_runs(seed):
    contents = drawn(seed)
    works, numbers = list_works(contents)
    lines = [run.timeline for run in contents.simulation.replicas]
    columns = operation_columns(contents, lines, numbers)
    (replica,), (line,) = contents.plan.replicas, lines
    assert set(columns["operation"]) == set(range(sum(map(len, replica.programs))))
    operation = 0
    for stage, program in enumerate(replica.programs):
        for position, name in enumerate(program):
            rows = columns["operation"] == operation
            operation += 1
            assert list(KINDS)[columns["kind"][rows][0]] == name[0]
            assert set(columns["stage"][rows]) == {stage}
            assert set(columns["left"][rows]) == {line.starts[stage][position]}
            assert set(columns["right"][rows]) == {line.ends[stage][position]}
            (work,) = set(columns["work"][rows])
            assert sorted(columns["adapter"][rows]) == sorted(works.members[work])
            assert (columns["bottom"] - columns["top"])[rows].sum() == pytest.approx(0.84, rel=1e-5)
            if name[0] in "FB":
                batch = replica.micro_batches[name[1]]
                lengths = [contents.instance.sample_length(a, n) for a, n in batch.samples]
                assert set(works.members[work]) == {a for a, _ in batch.samples}
                assert works.tokens[work] == max(lengths) * len(lengths)  # padded
                heights = (columns["bottom"] - columns["top"])[rows]
                mine = [
                    sum(m for m, (a, _) in zip(lengths, batch.samples, strict=True) if a == i)
                    for i in columns["adapter"][rows]
                ]
                assert heights == pytest.approx(0.84 * np.array(mine) / sum(lengths), rel=1e-3)


def test_figures_are_those_of_the_plan():
    contents = drawn(1, trace=True)
    html = report_page(contents)
    plan, (run,) = contents.plan, contents.simulation.replicas
    assert f"{plan.objective_value:.4g} GPU-s" in html
    assert f"{100 * run.timeline.bubble:.1f}%" in html
    assert contents.bubble == pytest.approx(run.timeline.bubble)
    for peak in run.peak_memory_gib:
        assert f"<td>{peak:.2f}</td>" in html
    samples = [[contents.instance.sample_length(a, n) for a, n in b.samples] for b in plan.replicas[0].micro_batches]
    samples += [
        [int(contents.instance.evaluation_lengths(e.adapter)[n]) for n in e.samples]
        for e in plan.replicas[0].evaluations
    ]
    padding = 1 - sum(map(sum, samples)) / sum(max(s) * len(s) for s in samples)
    assert contents.padding(0) == contents.total_padding == pytest.approx(padding)
    assert f'<div class="value">{100 * padding:.1f}%</div>' in html
    predicted, measured = (columns_named(html, f"operations-{name}") for name in ("predicted", "measured"))
    assert len(set(predicted["operation"])) == sum(map(len, plan.replicas[0].programs))
    assert np.array_equal(predicted["left"], measured["left"])
    axes = {m["id"] for m in page_models(html) if m["name"] == "Range1d" and "bounds" in m["attributes"]}
    assert len(axes) == 1  # of time: one for all plots


def test_losses_are_lines_by_adapter_with_stops():
    losses = [LossPoint("a0", j, "train", 3.0 - j) for j in range(3)]
    losses += [LossPoint("a0", 2, "eval", 1.5), LossPoint("a1", 0, "train", 2.0), LossPoint("a1", 1, "train", None)]
    losses += [LossPoint("a1", 1, "stop", None, "diverged")]
    models = page_models(report_page(drawn(1, losses=losses)))
    found = [dict(m["attributes"]["data"]["entries"]) for m in models if m["name"] == "ColumnDataSource"]
    found = [columns for columns in found if "loss" in columns]
    assert [c["loss"] for c in found] == [[3.0, 2.0, 1.0], [1.5], [2.0], [2.0]]
    assert [c["kind"][0] for c in found] == ["train", "eval", "train", "stop"]
    assert found[-1]["reason"] == ["diverged"]


def test_the_search_is_told_where_the_plan_knows_it():
    contents = drawn(1)
    assert "How the plan was found" not in report_page(contents)
    incumbents = tuple(
        FoundPlan(time_s=k, method=method, objective=9.0 - k, bound=5.0)
        for k, method in enumerate(("allocation", "annealing", "allocation"))
    )
    html = report_page(replace(contents, plan=changed(contents.plan, incumbents=incumbents)))
    assert "How the plan was found" in html
    found = [dict(m["attributes"]["data"]["entries"]) for m in page_models(html) if m["name"] == "ColumnDataSource"]
    found = [columns for columns in found if "objective" in columns]
    assert [c["objective"] for c in found] == [[9.0, 8.0, 7.0], [9.0, 7.0], [8.0]]
    assert found[0]["bound"] == [5.0] * 3


def test_savings_stand_where_the_plan_knows_any():
    contents = drawn(1)
    assert "adds here" not in report_page(contents)
    unknown = AdapterSaving()
    known = AdapterSaving(alone_gpu="x", alone_num_stages=1, alone_gpu_time_s=77.0, added_gpu_time_s=33.5)
    (replica,) = contents.plan.replicas
    for savings, words in (((unknown,) * 3, []), ((known, unknown, unknown), ["77 on 1 x x", "33.5", "43.5"])):
        plan = changed(contents.plan, replicas=(changed(replica, savings=savings),))
        html = report_page(replace(contents, plan=plan))
        assert ("adds here" in html) == bool(words)
        assert all(f"<td>{word}</td>" in html for word in words)


def test_memory_keeps_what_lasts_and_its_peak():
    starts, ends = np.array([0.0, 2.0, 5.0]), np.array([2.0, 3.0, 6.0])
    running, behind = np.array([4.0, 6.0, 5.0]), np.array([1.0, 2.0, 3.0])
    times, memory = memory_steps(starts, ends, running, behind)
    assert times.tolist() == [0.0, 2.0, 3.0, 5.0, 6.0]
    assert memory.tolist() == [4.0, 6.0, 2.0, 5.0, 3.0]


def large(steps):
    """A plan of two adapters that share every micro-batch; 20 operations a step."""
    instance = make_instance(([5, 7, 3], 4, steps), ([2, 9], 4, steps))
    costs = {"x": make_costs(optimizer_s=0.5)}
    program: list[Operation] = []
    for j in range(steps):
        program += [("F", m) for m in range(4 * j, 4 * j + 4)]
        program += [("B", m) for m in range(4 * j, 4 * j + 4)]
        program += [("S", 0, j), ("S", 1, j)]
    batches = [[(0, n), (1, n)] for n in range(4 * steps)]
    plan = make_plan(instance, make_replica(batches, [program] * 2, ["a0", "a1"]))
    return contents_of(timed(plan, instance, costs), instance, costs, trace=True)


def test_fifty_thousand_operations_fit_in_a_page():
    html = report_page(contents := large(2500))
    assert len(html) < 25e6
    assert f"{contents.plan.gpu_time_s:,.0f} GPU-s" in html
    assert len(set(columns_named(html, "operations-predicted")["operation"])) == 50_000
