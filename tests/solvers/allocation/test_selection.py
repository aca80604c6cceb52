import numpy as np
import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.plan import Objective
from cappuccino.solvers.allocation import columns
from cappuccino.solvers.allocation.candidates import find_candidates
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.selection import GAINS, ChosenColumn, Selection
from cappuccino.solvers.budget import Clock

LINEAR = {"x": make_costs(stages=(1, 2))}


def selection_of(
    *jobs, gpus: int, objective: Objective = Objective.GPU_TIME, deadline: float | None = None
) -> Selection:
    space = ReplicaSpace.of(make_instance(*jobs, gpus=gpus), LINEAR)
    found = find_candidates(space, objective, deadline, Clock(None), 1e-3, 0)
    return Selection(space, objective, deadline, found, 1e-3, 0)


def covers(selection: Selection, picked: list[ChosenColumn]) -> bool:
    return (sum(r.numbers for r in picked) == selection.space.kinds.counts).all()


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("enumerated", [True, False])
def test_choices_are_partitions(objective, enumerated, monkeypatch):
    if not enumerated:
        monkeypatch.setattr(columns, "MOST_SETS", 0)
    selection = selection_of(*[([n, n + 2], 1) for n in (3, 4, 6, 6, 9)], gpus=4, objective=objective)
    for picked in (selection.first(), selection.next(Clock(60.0))):
        assert picked is not None
        assert covers(selection, picked)
        assert sum(selection.places[r.place].num_stages for r in picked) <= 4


def test_schedules_replace_expectations():
    selection = selection_of(([4], 1), ([4], 1), gpus=2)
    together = ChosenColumn(0, np.array([2]))
    column = selection._index[together.key]
    bound = selection.bound(together)
    assert selection.expected()[column] > bound
    selection.observe(together, 1.7 * bound)
    assert selection.expected()[column] == 1.7 * bound


def test_a_column_that_has_come_out_bad_is_not_chosen_again():
    # without a floor one replica of both is as good as two; once it is known to take twice as long, it is not
    selection = selection_of(([4], 1), ([4], 1), gpus=2)
    selection.observe(ChosenColumn(0, np.array([2])), 48.0)
    picked = selection.next(Clock(60.0))
    assert picked is not None
    assert [r.numbers.tolist() for r in picked] == [[1], [1]]


def test_what_misses_the_deadline_is_out_of_the_question():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    assert np.isfinite(selection.expected()[selection._index[together.key]])
    selection.observe(together, 25.1)
    assert np.isinf(selection.expected()[selection._index[together.key]])


def test_effort_may_meet_a_deadline_until_it_was_made():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    column, bound = selection._index[together.key], selection.bound(together)
    selection.observe(together, 25.1)
    assert selection.allow_optimism()
    assert not selection.allow_optimism()  # once is enough
    for attempts in range(1, len(GAINS)):
        assert selection.expected()[column] == pytest.approx(25.1 - GAINS[attempts - 1] * (25.1 - bound))
        assert selection.to_gain(together) == pytest.approx(GAINS[attempts - 1] * (25.1 - bound))
        selection.observe_again(together, 25.1, attempts + 1)
    assert np.isinf(selection.expected()[column])
    selection.observe_again(together, 24.9, len(GAINS))
    assert selection.expected()[column] < 24.9


def test_by_turns_a_missed_deadline_counts_as_missed():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    column = selection._index[together.key]
    selection.observe(together, 25.1)
    selection.judge(met_deadline=True)
    for _ in range(2):
        assert np.isfinite(selection.expected()[column])
        selection.alternate()
        assert np.isinf(selection.expected()[column])
        selection.alternate()


def test_with_little_time_effort_brings_little():
    space = ReplicaSpace.of(make_instance(([4], 1), ([4], 1), gpus=2), LINEAR)
    found = find_candidates(space, Objective.GPU_TIME, 25.0, Clock(None), 1e-3, 0)
    together, gains = ChosenColumn(0, np.array([2])), []
    for effort in (1.0, 0.5, 0.0):
        selection = Selection(space, Objective.GPU_TIME, 25.0, found, 1e-3, 0, effort)
        selection.observe(together, 26.0)
        gains.append(selection.to_gain(together))
    assert gains == pytest.approx([gains[0], gains[0] / 2, 0.0])
    assert gains[0] > 0


def test_choices_that_miss_the_deadline_make_cautious():
    # four stages deep, works and paths that are close: expected to end well above the bound
    space = ReplicaSpace.of(make_instance(([4, 4, 4, 4], 4), gpus=4), {"x": make_costs(stages=(4,))}, num_stages=4)
    single = ChosenColumn(0, np.array([1]))
    free = find_candidates(space, Objective.GPU_TIME, None, Clock(None), 1e-3, 0)
    likely = Selection(space, Objective.GPU_TIME, None, free, 1e-3, 0).expected()[0]
    found = find_candidates(space, Objective.GPU_TIME, likely * 1.001, Clock(None), 1e-3, 0)
    selection = Selection(space, Objective.GPU_TIME, likely * 1.001, found, 1e-3, 0)
    column = selection._index[single.key]
    assert np.isinf(selection.expected()[column])  # it might take longer
    selection.judge(met_deadline=True)
    assert np.isfinite(selection.expected()[column])
    selection.judge(met_deadline=False)
    assert selection.expected()[column] <= likely * 1.001


def test_alone_every_kind_has_its_cheapest_place():
    selection = selection_of(([4], 1), ([9], 1), ([4], 1), gpus=2)
    alone = selection.alone()
    assert [(r.place, r.numbers.tolist()) for r in alone] == [(0, [1, 0]), (0, [0, 1])]


def test_adapters_covered_twice_are_taken_out_where_it_pays_most():
    selection = selection_of(([4], 1), ([9], 1), ([5], 1), gpus=3)
    # kind 0 is in both: in the first it lengthens the replica by its work, in the second as well, on twice the GPUs
    picked = selection._without_surplus([ChosenColumn(0, np.array([1, 1, 0])), ChosenColumn(1, np.array([1, 0, 1]))])
    assert [(r.place, r.numbers.tolist()) for r in picked] == [(0, [1, 1, 0]), (1, [0, 0, 1])]
    assert selection._without_surplus([ChosenColumn(0, np.array([1, 1, 1])), ChosenColumn(0, np.array([0, 1, 0]))])[
        0
    ].numbers.any()
