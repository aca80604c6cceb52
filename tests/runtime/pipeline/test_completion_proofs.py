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


def test_a_gradient_proves_that_what_was_evaluated_before_its_activations_arrived() -> None:
    program = [("F", 0), ("B", 0), ("S", 0, 0), ("E", 0), ("E", 1), ("F", 1), ("B", 1), ("S", 0, 1), ("E", 2)]
    assert completion_proofs(program, None) == {
        ("next", 0): [("next", 0)],
        ("next", 1): [("next", -1), ("next", -2), ("next", 1)],  # nothing proves the last one but the end
    }
    proofs = completion_proofs([("E", 0)], [("F", 0), ("B", 0), ("S", 0, 0), ("E", 0)])
    assert proofs == {("previous", 0): [], ("previous", -1): [("previous", 0)]}
