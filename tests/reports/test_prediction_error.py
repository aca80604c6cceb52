from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.builders import make_costs, make_instance, make_plan, make_replica, parse_programs, timed

from cappuccino.errors import InputError
from cappuccino.reports.prediction_error import compare_with_trace, durations
from cappuccino.reports.table_calibration import calibrate
from cappuccino.simulator import run_programs
from cappuccino.timeline import Timeline
from cappuccino.workload import Workload

PROGRAMS = "F0 F1 B0 B1 S0.0", "F0 B0 F1 B1 S0.0"
TRACE = Path("trace.json")


def planned(optimizer_s=1.0, transfer=(0.5, 0.0)):
    """Return two micro-batches of 2 and 3 tokens on two stages, with instance and costs."""
    instance, costs = make_instance(([2, 3], 2)), make_costs(optimizer_s=optimizer_s, transfer=transfer, stages=[2])
    replica = make_replica([[(0, 0)], [(0, 1)]], parse_programs(*PROGRAMS), ["a0"])
    return timed(make_plan(instance, replica), instance, {"x": costs}), instance, {"x": costs}


def ran(plan, instance, costs, *, compute=1.0, optimizer=1.0, transfer_s=None, idle_s=0.0):
    """Return the timeline of a run whose operations took so much longer, every stage beginning `idle_s` late."""
    replica = plan.replicas[0]
    workload = Workload.of(replica, instance, costs["x"])
    exact = run_programs(replica.programs, workload)
    if transfer_s is not None:
        workload = replace(workload, transfer_s=np.full_like(workload.transfer_s, transfer_s))
    factors = [np.array([optimizer if op[0] == "S" else compute for op in p]) for p in replica.programs]
    taken = [d * f for d, f in zip(durations(exact), factors, strict=True)]
    line = run_programs(replica.programs, workload, 0, taken)
    later = [tuple(x + idle_s for x in times) for times in (line.starts, line.ends)]
    return Timeline(0, line.programs, *later)


def compare(plan, instance, costs, line):
    (found,) = compare_with_trace(plan, instance, costs, [line], plan.instance.sha256, TRACE)
    return found


def test_a_run_as_predicted_has_no_causes():
    plan, instance, costs = planned()
    found = compare(plan, instance, costs, ran(plan, instance, costs))
    assert found.difference == pytest.approx(0.0)
    causes = found.causes
    assert list(asdict(causes).values()) == pytest.approx([0.0] * 5)
    assert [(o.kind, o.stage, o.count) for o in found.operations] == [
        ("F", 0, 2),
        ("F", 1, 2),
        ("B", 0, 2),
        ("B", 1, 2),
        ("S", 0, 1),
        ("S", 1, 1),
    ]
    forward = found.operations[0]
    assert (forward.predicted_s, forward.measured_s, forward.spread) == (5.0, pytest.approx(5.0), pytest.approx((1, 1)))
    (step,) = found.steps
    assert (step.adapter, step.step, step.predicted_s) == ("a0", 0, pytest.approx(step.measured_s))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"compute": 1.5}, "compute_s"),
        ({"optimizer": 3.0}, "optimizer_s"),
        ({"transfer_s": 2.0}, "transfer_s"),
        ({"idle_s": 4.0}, "waiting_s"),
    ],
)
def test_every_cause_is_found_by_itself(change, cause):
    plan, instance, costs = planned()
    found = compare(plan, instance, costs, ran(plan, instance, costs, **change))
    difference = found.measured.makespan - found.predicted.makespan
    assert difference > 1.0
    for name in asdict(found.causes):
        assert getattr(found.causes, name) == pytest.approx(difference if name == cause else 0.0, abs=1e-9), name


def test_causes_add_up():
    plan, instance, costs = planned()
    line = ran(plan, instance, costs, compute=1.3, optimizer=2.0, transfer_s=1.0, idle_s=0.7)
    found = compare(plan, instance, costs, line)
    causes = found.causes
    assert sum(asdict(causes).values()) == pytest.approx(found.measured.makespan - found.predicted.makespan)


def test_traces_of_something_else_are_refused():
    plan, instance, costs = planned()
    line = ran(plan, instance, costs)
    with pytest.raises(InputError, match=r"trace\.json: otherData\.instance_sha256: the trace is of another instance"):
        compare_with_trace(plan, instance, costs, [line], "0" * 64, TRACE)
    with pytest.raises(InputError, match="replica 0 is missing"):
        compare_with_trace(plan, instance, costs, [], plan.instance.sha256, TRACE)
    other = replace(line, programs=(line.programs[1], line.programs[1]))
    with pytest.raises(InputError, match="replica 0 ran other operations"):
        compare_with_trace(plan, instance, costs, [other], plan.instance.sha256, TRACE)


def test_the_speed_of_the_machine_is_a_cause_of_its_own():
    plan, instance, costs = planned()
    line = ran(plan, instance, costs, compute=1.5, optimizer=1.2)
    usual = {gpu: replace(model, reference_s={2: 0.010}) for gpu, model in costs.items()}
    found = compare(plan, instance, usual, replace(line, reference_s=(0.011, 0.013)))
    at_speed = compare(plan, instance, costs, ran(plan, instance, costs, compute=1.2, optimizer=1.2))
    assert found.causes.machine_s == pytest.approx(at_speed.measured.makespan - at_speed.predicted.makespan)
    assert found.causes.compute_s == pytest.approx(line.makespan - at_speed.measured.makespan)
    assert found.causes.optimizer_s == pytest.approx(0.0)
    expected = (found.measured.makespan - found.causes.machine_s) / found.predicted.makespan - 1
    assert found.difference_at_usual_speed == pytest.approx(expected) and expected < found.difference
    for known, told in ((usual, ()), (costs, (0.011, 0.013))):  # either of them alone tells nothing
        alone = compare(plan, instance, known, replace(line, reference_s=told))
        assert alone.causes.machine_s == 0.0
        assert alone.difference_at_usual_speed == alone.difference


def test_a_calibration_leaves_the_speed_of_the_machine_to_the_reference():
    plan, instance, costs = planned()
    line = ran(plan, instance, costs, compute=1.2 * 1.1, optimizer=1.2 * 2.0)
    usual = {gpu: replace(model, reference_s={2: 0.010}) for gpu, model in costs.items()}
    found = compare(plan, instance, usual, replace(line, reference_s=(0.012, 0.012)))
    assert found.slower == pytest.approx(1.2)
    said = calibrate([(found, Workload.of(plan.replicas[0], instance, usual["x"]))])
    assert said.forward(np.array([2.0, 3.0])) == pytest.approx(1.1)
    assert said.backward(np.array([2.0, 3.0])) == pytest.approx(1.1)
    assert said.optimizer_s == pytest.approx(2.0)  # 1 s predicted
