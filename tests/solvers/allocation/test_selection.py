import numpy as np
import pytest
from helpers.builders import make_costs, make_instance
from helpers.spaces import context_of

from cappuccino.plan import Objective
from cappuccino.solvers.allocation.candidates import find_candidates
from cappuccino.solvers.allocation.columns import ReplicaSpace
from cappuccino.solvers.allocation.known_columns import ChosenColumn, KnownColumns
from cappuccino.solvers.allocation.selection import Selection
from cappuccino.solvers.budget import Clock
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.schedule import ReplicaSchedule
from cappuccino.solvers.settings import DEFAULT

GAINS = DEFAULT.allocation.gains
LINEAR = {"x": make_costs(stages=(1, 2))}


def selection_of(
    *jobs, gpus: int, objective: Objective = Objective.GPU_TIME, deadline: float | None = None, most_sets: int = 4096
) -> Selection:
    return selection_in(
        ReplicaSpace.of(make_instance(*jobs, gpus=gpus), LINEAR, most_sets=most_sets), objective, deadline
    )


def selection_in(
    space: ReplicaSpace, objective: Objective = Objective.GPU_TIME, deadline: float | None = None, effort: float = 1.0
) -> Selection:
    context = context_of(space, objective, deadline)
    return Selection(context, find_candidates(context), KnownColumns(space, objective, effort))


def observe(selection: Selection, column: ChosenColumn, makespan_s: float, attempts: int = 1) -> None:
    """Let a column be known by a schedule of this makespan."""
    pool, bounds = selection.space.bounds[column.place]
    adapters, costs = selection.space.kinds.adapters(column.numbers), selection.space.costs[pool.gpu]
    problem = ReplicaProblem(selection.space.instance, costs, adapters, bounds.num_stages, pool.memory_gib)
    schedule = ReplicaSchedule(problem, (), ((),) * bounds.num_stages, makespan_s, (0.0,) * bounds.num_stages)
    if attempts == 1:
        selection.known.add(column, schedule)
    else:
        selection.known.update(column, schedule, attempts)


def covers(selection: Selection, picked: list[ChosenColumn]) -> bool:
    return (sum(r.numbers for r in picked) == selection.space.kinds.counts).all()


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("enumerated", [True, False])
def test_choices_are_partitions(objective, enumerated):
    jobs = [([n, n + 2], 1) for n in (3, 4, 6, 6, 9)]
    selection = selection_of(*jobs, gpus=4, objective=objective, most_sets=4096 if enumerated else 0)
    for picked in (selection.first(), selection.next(Clock(60.0))):
        assert picked is not None
        assert covers(selection, picked)
        assert sum(selection.places[r.place].num_stages for r in picked) <= 4


def test_schedules_replace_expectations():
    selection = selection_of(([4], 1), ([4], 1), gpus=2)
    together = ChosenColumn(0, np.array([2]))
    column = selection._index[together.key]
    bound = selection.known.bound(together)
    assert selection.expected()[column] > bound
    observe(selection, together, 1.7 * bound)
    assert selection.expected()[column] == 1.7 * bound


def test_a_column_that_has_come_out_bad_is_not_chosen_again():
    # without a floor one replica of both is as good as two; once it is known to take twice as long, it is not
    selection = selection_of(([4], 1), ([4], 1), gpus=2)
    observe(selection, ChosenColumn(0, np.array([2])), 48.0)
    picked = selection.next(Clock(60.0))
    assert picked is not None
    assert [r.numbers.tolist() for r in picked] == [[1], [1]]


def test_what_misses_the_deadline_is_out_of_the_question():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    assert np.isfinite(selection.expected()[selection._index[together.key]])
    observe(selection, together, 25.1)
    assert np.isinf(selection.expected()[selection._index[together.key]])


def test_effort_may_meet_a_deadline_until_it_was_made():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    column, bound = selection._index[together.key], selection.known.bound(together)
    observe(selection, together, 25.1)
    selection.judge(met_deadline=True)
    for attempts in range(1, len(GAINS)):
        assert selection.expected()[column] == pytest.approx(25.1 - GAINS[attempts - 1] * (25.1 - bound))
        assert selection.known.to_gain(together) == pytest.approx(GAINS[attempts - 1] * (25.1 - bound))
        observe(selection, together, 25.1, attempts + 1)
    assert np.isinf(selection.expected()[column])
    observe(selection, together, 24.9, len(GAINS))
    assert selection.expected()[column] < 24.9


def test_by_turns_a_missed_deadline_counts_as_missed():
    selection = selection_of(([4], 1), ([4], 1), gpus=2, deadline=25.0)
    together = ChosenColumn(0, np.array([2]))
    column = selection._index[together.key]
    observe(selection, together, 25.1)
    selection.judge(met_deadline=True)
    for _ in range(2):
        assert np.isfinite(selection.expected()[column])
        selection.alternate()
        assert np.isinf(selection.expected()[column])
        selection.alternate()


def test_with_little_time_effort_brings_little():
    space = ReplicaSpace.of(make_instance(([4], 1), ([4], 1), gpus=2), LINEAR)
    together, gains = ChosenColumn(0, np.array([2])), []
    for effort in (1.0, 0.5, 0.0):
        selection = selection_in(space, deadline=25.0, effort=effort)
        observe(selection, together, 26.0)
        gains.append(selection.known.to_gain(together))
    assert gains == pytest.approx([gains[0], gains[0] / 2, 0.0])
    assert gains[0] > 0


def test_choices_that_miss_the_deadline_make_cautious():
    # four stages deep, works and paths that are close: expected to end well above the bound
    space = ReplicaSpace.of(make_instance(([4, 4, 4, 4], 4), gpus=4), {"x": make_costs(stages=(4,))}, num_stages=4)
    single = ChosenColumn(0, np.array([1]))
    likely = selection_in(space).expected()[0]
    selection = selection_in(space, deadline=likely * 1.001)
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
