import pytest
from helpers.builders import make_costs, make_instance

from cappuccino.costs import SmoothMaximum
from cappuccino.errors import InputError
from cappuccino.solvers.budget import Budget
from cappuccino.solvers.scheduling.replica_problem import ReplicaProblem
from cappuccino.solvers.scheduling.scheduler import schedule_replica
from cappuccino.solvers.settings import DEFAULT, with_changes


def test_settings_are_changed_by_name():
    changed = with_changes(DEFAULT, ["scheduling.max_shift=4", "allocation.smoothing=0", "round_share=0.5"])
    assert (changed.scheduling.max_shift, changed.allocation.smoothing, changed.round_share) == (4, 0.0, 0.5)
    assert with_changes(changed, ["scheduling.max_shift=8", "allocation.smoothing=0.7", "round_share=0.3"]) == DEFAULT
    assert with_changes(DEFAULT, ["scheduling.hot = 0.2", "scheduling.loads=(1.0,)"]).scheduling.loads == (1.0,)


@pytest.mark.parametrize(
    "change", ["max_shift=4", "scheduling.max_shift", "scheduling.max_shift=four", "scheduling.max_shift=4.0",
               "models.x=1", "allocation.first_attempt=1", "scheduling=1", "scheduling.loads=1.0", "=", "s.=1"],
)  # fmt: skip
def test_what_is_no_setting_is_refused(change):
    with pytest.raises(InputError, match="settings"):
        with_changes(DEFAULT, [change])


def test_a_changed_setting_changes_the_search():
    # 10 + 20 s up to 10 tokens: at the usual targets samples share a micro-batch, at a tiny one each is alone
    flat = make_costs(forward=SmoothMaximum(10.0, 1.0, 0.0, 16.0), backward=SmoothMaximum(20.0, 2.0, 0.0, 16.0))
    problem = ReplicaProblem(make_instance(([1] * 6, 6)), flat, (0,), 1, 1e6)
    once = Budget(seconds=None, constructions=1, moves=0, windows=0)
    tiny = with_changes(DEFAULT, ["scheduling.targets=(0.01,)"])
    usual, alone = (schedule_replica(problem, once, 0, settings=s.scheduling) for s in (DEFAULT, tiny))
    assert (len(usual.order), len(alone.order)) == (1, 6)
