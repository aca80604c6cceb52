import pytest
from helpers.builders import changed, make_costs, make_instance, make_plan, make_replica, parse_programs

from cappuccino.reports.run_warnings import run_warnings

COSTS = {"x": make_costs()}
INSTANCE = make_instance(([5], 1), ([7], 1))


def plan_of(*makespans: float):
    """Return a plan with a replica of two stages for each makespan."""
    programs = parse_programs("F0 B0 S0.0", "F0 B0 S0.0")
    replicas = [
        changed(make_replica([[(0, 0)]], programs, [f"a{i}"], number=i), makespan_s=s) for i, s in enumerate(makespans)
    ]
    return changed(make_plan(INSTANCE, *replicas), makespan_s=max(makespans))


@pytest.mark.parametrize(
    ("makespans", "num_gpus", "said"),
    [
        ((10.0,), None, None),
        ((10.0,), 2, None),
        ((10.0, 4.0), 4, None),
        (
            (10.0, 4.0),
            None,
            "its 2 replicas side by side, on cpu they run one after another: 14 s by its own times, not 10 s",
        ),
        ((10.0, 4.0), 3, "on 4 GPUs for its 2 replicas, this machine has 3"),
    ],
)
def test_replicas_that_cannot_run_side_by_side_are_told(makespans, num_gpus, said):
    device = "cpu" if num_gpus is None else "cuda"
    found = list(run_warnings(plan_of(*makespans), INSTANCE, COSTS, device=device, dtype="float32", num_gpus=num_gpus))
    assert found[0].startswith('none.csv: "x" does not say with which engine')
    assert len(found) == 1 + (said is not None)
    if said is not None:
        assert said in found[1]
