"""What a stage's program says before it runs; needs no torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from cappuccino.plan import Operation, Replica
from cappuccino.runtime.data.samples import AdapterSamples

Neighbour = Literal["previous", "next"]
Exchange = tuple[Neighbour, int]
"""With which neighbour, and the `key` of the forward whose activations or gradients it is."""


def key(operation: Operation) -> int:
    """Return what tells the forwards of a program apart: micro-batches count from 0, evaluations from -1 down."""
    return ~operation[1] if operation[0] == "E" else operation[1]


def completion_proofs(previous_program: Sequence[Operation] | None) -> dict[Exchange, list[Exchange]]:
    """Return which activations received prove which gradients arrived.

    gloo never reports a send as complete without waiting. Activations prove the gradients arrived whose backwards the
    previous stage ran before that forward; likewise, the gradient of a micro-batch proves that its activations arrived,
    and those evaluated before them.

    Returns
    -------
    dict
        By (neighbour, micro-batch) received, the (neighbour, micro-batch) sent before.
    """
    proofs: dict[Exchange, list[Exchange]] = defaultdict(list)
    unproven: list[Exchange] = []
    for operation in previous_program or ():
        if operation[0] == "B":
            unproven.append(("previous", operation[1]))
        elif operation[0] in ("F", "E"):
            proofs["previous", key(operation)].extend(unproven)
            unproven = []
    return dict(proofs)


def fullest_moment(program: Sequence[Operation], tokens: Mapping[int, int]) -> list[int]:
    """Return the micro-batches that are forwarded and not yet backwarded when they have the most tokens.

    Parameters
    ----------
    program
        Of a stage.
    tokens
        By micro-batch.
    """
    held: list[int] = []
    fullest: list[int] = []
    most = 0
    for operation in program:
        if operation[0] == "F":
            held.append(operation[1])
            now = sum(tokens[m] for m in held)
            if now > most:
                fullest, most = list(held), now
        elif operation[0] == "B":
            held.remove(operation[1])
    return fullest


def steps_by_last_backward(
    program: Sequence[Operation], replica: Replica, samples: Sequence[AdapterSamples]
) -> dict[int, list[tuple[int, int]]]:
    """Return by micro-batch the (adapter, step) that have all their gradients once its backward is done.

    Parameters
    ----------
    program
        Of a stage.
    replica
        Whose it is.
    samples
        By position in the replica's adapters.
    """
    last: dict[tuple[int, int], int] = {}
    for operation in program:
        if operation[0] == "B":
            for adapter, number in replica.micro_batches[operation[1]].samples:
                last[adapter, samples[adapter].step(number)] = operation[1]
    completed: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (adapter, step), micro_batch in sorted(last.items()):
        completed[micro_batch].append((adapter, step))
    return completed
