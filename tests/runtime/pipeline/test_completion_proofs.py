from cappuccino.runtime.pipeline.communication import completion_proofs


def test_a_gradient_proves_the_activations_arrived() -> None:
    program = [("F", 0), ("F", 1), ("B", 1), ("B", 0), ("S", 0, 0)]
    assert completion_proofs(program, None) == {("next", 1): [("next", 1)], ("next", 0): [("next", 0)]}


def test_activations_prove_the_gradients_that_the_previous_stage_used_before() -> None:
    # The stage before runs B 0 and B 2 before F 3: when the activations of 3 arrive, both gradients have.
    previous = [("F", 0), ("F", 1), ("F", 2), ("B", 0), ("B", 2), ("S", 0, 0), ("F", 3), ("B", 1), ("B", 3)]
    proofs = completion_proofs([("F", 0)], previous)
    assert {key: value for key, value in proofs.items() if value} == {
        ("previous", 3): [("previous", 0), ("previous", 2)]
    }
