"""What is left of a run: the prediction, times measured over predicted so far."""

import numpy as np
import pytest
from helpers.builders import make_plan, make_replica
from helpers.small import instance_of

from cappuccino.instance import Adapter
from cappuccino.plan import Plan
from cappuccino.reports.remaining_time import RemainingTime
from cappuccino.timeline import Timeline

PROGRAM = (("F", 0), ("B", 0), ("S", 0, 0), ("F", 1), ("B", 1), ("S", 0, 1))


@pytest.fixture
def plan() -> Plan:
    """Replicas of one stage and of two, an adapter with two steps on each."""
    adapters = [Adapter(name=name, dataset="d", global_batch_size=1, num_steps=2) for name in "ab"]
    replicas = [
        make_replica([[(0, 0)], [(0, 1)]], [list(PROGRAM)] * stages, [name]).model_copy(update={"id": k})
        for k, (name, stages) in enumerate([("a", 1), ("b", 2)])
    ]
    return make_plan(instance_of(adapters, {"d": [3, 4]}), *replicas)


def lines(plan: Plan) -> list[Timeline]:
    """Steps that end at 3 and 10 seconds in the first replica, at 12 and 20 in the second."""
    found = []
    for replica, ends in zip(plan.replicas, ([1, 2, 3, 5, 9, 10], [4, 8, 12, 14, 18, 20]), strict=True):
        both = tuple(np.array(ends, dtype=float) for _ in replica.programs)
        found.append(Timeline(replica.id, replica.programs, both, both))
    return found


def test_replicas_in_turn_add_up(plan: Plan) -> None:
    remaining = RemainingTime(plan, lines(plan), None)
    assert (remaining.total_s, remaining.seconds()) == (30, 30)
    remaining.note("a", 0, 6.0)  # twice as long as predicted
    assert remaining.seconds() == (30 - 3) * 2
    remaining.note("a", 1, 15.0)
    remaining.note("b", 0, 33.0)  # 33 s for 10 + 12
    assert remaining.seconds() == pytest.approx(8 * 1.5)
    remaining.note("b", 1, 50.0)
    assert remaining.seconds() == 0


def test_replicas_side_by_side_take_as_long_as_the_longest(plan: Plan) -> None:
    remaining = RemainingTime(plan, lines(plan), 3)
    assert remaining.total_s == 20
    remaining.note("a", 1, 10.0)
    remaining.note("b", 0, 12.0)
    assert remaining.seconds() == 8


def test_gpus_that_do_not_suffice_are_shared(plan: Plan) -> None:
    remaining = RemainingTime(plan, lines(plan), 2)
    assert remaining.total_s == (10 * 1 + 20 * 2) / 2
    remaining.note("b", 1, 20.0)
    assert remaining.seconds() == 10  # of the first replica; all of the second's 20 s came true


def test_what_an_earlier_run_has_done_is_not_left(plan: Plan) -> None:
    remaining = RemainingTime(plan, lines(plan), None)
    remaining.note_earlier("a", 1)
    remaining.note_earlier("b", 0)
    remaining.note_earlier("another plan's", 0)
    assert remaining.seconds() == 8
    remaining.note("b", 1, 4.0)  # the 8 s took 4
    assert remaining.seconds() == 0


def test_steps_count_from_those_that_the_plan_takes_as_done(plan: Plan) -> None:
    onwards = plan.model_copy(update={"done": {"a": 5}})
    remaining = RemainingTime(onwards, lines(plan), None)
    remaining.note("a", 5, 6.0)
    assert remaining.seconds() == (30 - 3) * 2
