from types import SimpleNamespace

import pytest
from helpers.builders import changed, make_replica

from cappuccino.plan import EvaluationBatch, MicroBatch, Replica
from cappuccino.runtime.pipeline.live_batches import LiveBatches

PROGRAM = [
    *[("F", 0), ("B", 0), ("S", 0, 0), ("E", 0)],
    *[("F", 1), ("B", 1), ("S", 1, 0)],
    *[("F", 2), ("B", 2), ("S", 0, 1), ("E", 1)],
]
SAMPLES = [SimpleNamespace(step=lambda number: number)] * 2


@pytest.fixture
def replica() -> Replica:
    """Two adapters of a sample a step; the first is evaluated after each, the second shares its last micro-batch."""
    made = make_replica([[(0, 0)], [(1, 0)], [(0, 1), (1, 1)]], [PROGRAM], ("a", "b"))
    evaluations = tuple(EvaluationBatch(adapter=0, step=step, samples=(0,)) for step in (0, 1))
    return changed(made, evaluations=evaluations)


def test_samples_of_a_stopped_adapter_leave_what_is_to_come(replica: Replica) -> None:
    live = LiveBatches(replica, SAMPLES)
    assert all(live.runs(operation) for operation in PROGRAM)
    assert live.stop(0, 0) == {-1: None, -2: None, 2: MicroBatch(samples=((1, 1),))}
    assert live.stopped(0)
    assert not live.stopped(1)
    assert live[2].samples == ((1, 1),)
    runs = [operation for operation in PROGRAM[3:] if live.runs(operation)]
    assert runs == [("F", 1), ("B", 1), ("S", 1, 0), ("F", 2), ("B", 2)]


def test_a_micro_batch_without_samples_does_not_run(replica: Replica) -> None:
    live = LiveBatches(replica, SAMPLES)
    live.stop(0, 0)
    assert live.stop(1, 0) == {2: None}
    assert not live.runs(("F", 2))
    assert not live.runs(("B", 2))
    with pytest.raises(KeyError, match="nothing is left of micro-batch 2"):
        live[2]


def test_an_evaluation_behind_a_step_that_was_made_stays(replica: Replica) -> None:
    live = LiveBatches(replica, SAMPLES)
    assert live.stop(0, 1) == {-2: None}  # samples of the step itself have passed all stages
    assert live.runs(("E", 0))
    assert not live.runs(("E", 1))


def test_shapes_are_sure_once_the_steps_before_are_decided(replica: Replica) -> None:
    # micro-batch 2 has a sample of step 1 of adapter a, whose step 0 is the first of the program, and of b the second
    assert LiveBatches(replica, SAMPLES).steps_before(PROGRAM) == {0: 0, 1: 0, 2: 2, -1: 1, -2: 3}
