from types import SimpleNamespace

from helpers.builders import make_replica

from cappuccino.runtime.pipeline.program import completion_proofs, fullest_moment, steps_by_last_backward


def test_activations_prove_the_gradients_that_the_previous_stage_used_before() -> None:
    # The stage before runs B 0 and B 2 before F 3: when the activations of 3 arrive, both gradients have.
    previous = [("F", 0), ("F", 1), ("F", 2), ("B", 0), ("B", 2), ("S", 0, 0), ("F", 3), ("B", 1), ("B", 3)]
    proofs = completion_proofs(previous)
    assert {key: value for key, value in proofs.items() if value} == {
        ("previous", 3): [("previous", 0), ("previous", 2)]
    }


def test_an_evaluation_proves_gradients_as_other_activations_do() -> None:
    proofs = completion_proofs([("F", 0), ("B", 0), ("S", 0, 0), ("E", 0)])
    assert proofs == {("previous", 0): [], ("previous", -1): [("previous", 0)]}
    assert completion_proofs(None) == {}


def test_the_fullest_moment_is_the_one_with_the_most_tokens() -> None:
    program = [("F", 0), ("F", 1), ("B", 0), ("F", 2), ("B", 1), ("B", 2), ("F", 3), ("B", 3)]
    assert fullest_moment(program, {0: 5, 1: 5, 2: 4, 3: 1}) == [0, 1]
    assert fullest_moment(program, {0: 3, 1: 5, 2: 4, 3: 1}) == [1, 2]
    assert fullest_moment(program, {0: 3, 1: 5, 2: 4, 3: 10}) == [3]


def test_steps_have_their_gradients_after_the_last_backward_of_the_stage() -> None:
    program = [("F", 0), ("F", 1), ("B", 1), ("B", 0), ("S", 0, 0), ("F", 2), ("B", 2), ("S", 1, 0), ("S", 0, 1)]
    replica = make_replica([[(0, 0), (1, 0)], [(0, 1)], [(0, 2), (0, 3), (1, 1)]], [program], ("a", "b"))
    samples = [SimpleNamespace(step=lambda number: number // 2)] * 2
    assert steps_by_last_backward(program, replica, samples) == {0: [(0, 0)], 2: [(0, 1), (1, 0)]}
