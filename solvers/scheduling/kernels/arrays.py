"""What the compiled searches work on: every array of a schedule under way.

Legend: A adapters, K optimizer steps, N samples, M micro-batches, C slots for micro-batches (more than there are, for
splits), G stages, D kinds of stages (those of one kind take equally long), J curves, V evaluations.
"""

from typing import NamedTuple

import numpy as np


class StageCosts(NamedTuple):
    """The cost model of a pipeline's stages as numbers: curves, transfer and limits."""

    curves: np.ndarray
    """Floor (s), work per token (s), work per square (s) and power of the curves of forward and backward, shape
    (2, J, 4); adapters add to the first."""
    shares: np.ndarray
    """How many times stages of a kind have what a curve is of, shape (D, J)."""
    transfer_s: float
    transfer_token_s: float
    max_tokens: int
    padded: bool


class BusiestStage(NamedTuple):
    """About what a micro-batch takes on the stage that a token of a large one keeps busy longest."""

    forward_floor_s: float
    forward_power: float
    forward_part: float
    """Of forward and backward work together."""
    backward_floor_s: float
    backward_power: float


class Shape(NamedTuple):
    """What a micro-batch holds, and what its adapters add to floors and works of the first curves, seconds."""

    size: int
    """Samples."""
    tokens: int
    """Without padding."""
    squares: float
    """Sum of squared lengths."""
    longest: int
    """Tokens of the longest sample."""
    forward_floor_s: float
    forward_work_s: float
    """By sample instead of by token where samples are padded."""
    backward_floor_s: float
    backward_work_s: float
    """Likewise."""


EMPTY = Shape(0, 0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


class BatchTable(NamedTuple):
    """The micro-batches of a replica; arrays of shape (M,) but where they say otherwise."""

    forward_s: np.ndarray
    """By kind of stage, shape (M, D)."""
    backward_s: np.ndarray
    """Likewise."""
    transfer_s: np.ndarray
    tokens: np.ndarray


class StepTable(NamedTuple):
    """Which optimizer steps the micro-batches of a replica are of; steps are numbered adapter by adapter."""

    begins: np.ndarray
    """Where the steps of each micro-batch begin, and the end, shape (M + 1,)."""
    steps: np.ndarray
    """Step numbers, micro-batch by micro-batch."""
    first: np.ndarray
    """Whether a step is its adapter's first, bool, shape (K,)."""
    last: np.ndarray
    """Whether it is the last, bool, shape (K,)."""
    clipped: np.ndarray
    """Whether it waits for the gradient norm over all stages, bool, shape (K,)."""
    evaluated: np.ndarray
    """By micro-batch, the step behind which it is evaluated, no B following its F, shape (M,); -1: it is trained."""


class Machine(NamedTuple):
    """The stages of a replica."""

    kinds: np.ndarray
    """By stage, which kind it is, shape (G,)."""
    working_gib: float
    """Per token of the running micro-batch."""
    held_gib: float
    """Per token forwarded and not yet backwarded."""
    room_gib: float
    """For both."""
    patience_s: float
    """How long a stage that could start an F waits for a B instead: B's free memory and open the next steps."""


class Jobs(NamedTuple):
    """Micro-batches by rank, arrays of shape (M,) or longer but where they say otherwise."""

    forward_s: np.ndarray
    """By kind of stage, shape (M, D) or longer."""
    backward_s: np.ndarray
    """Likewise."""
    transfer_s: np.ndarray
    tokens: np.ndarray
    needed: np.ndarray
    """Last rank whose B must be done on the first stage before the F; -1: none."""
    waits_s: np.ndarray
    """Optimizer time before the F."""
    urgency_s: np.ndarray
    """How long a stage that could start something else waits for this micro-batch."""
    evaluation: np.ndarray
    """Not negative where the micro-batch is evaluated: no B follows its F, and nothing of it is held; shape (M,)."""


class State(NamedTuple):
    """How far every stage has come."""

    free_s: np.ndarray
    """When a stage is free, shape (G,)."""
    forwards: np.ndarray
    """F's done, shape (G,)."""
    backwards: np.ndarray
    """B's done, shape (G,)."""
    held_tokens: np.ndarray
    """Shape (G,)."""
    forward_end_s: np.ndarray
    """Shape (G, M)."""
    backward_end_s: np.ndarray
    """Shape (G, M)."""
    operations: np.ndarray
    """Rank k for the F of the k-th micro-batch, ~k for its B, shape (G, 2 M)."""


class Window(NamedTuple):
    """Samples and steps of successive micro-batches; an adapter's samples stand next to each other."""

    length: np.ndarray
    """Tokens by sample, shape (N,)."""
    step: np.ndarray
    """Step by sample, shape (N,)."""
    previous: np.ndarray
    """The same adapter's step before, shape (K,); -1 where it is not in the window."""
    waits_s: np.ndarray
    """Optimizer time before the step's first F, shape (K,)."""
    adapter: np.ndarray
    """Position of the adapter by step, shape (K,)."""
    added: np.ndarray
    """What a step's adapter adds, as `Source.added` has it, shape (K, 4)."""
    group: np.ndarray
    """By slot, which evaluation it belongs to, shape (C,); -1: it is trained."""
    behind: np.ndarray
    """By evaluation, the step that it follows, shape (V,); -1 where it is not in the window."""
    ahead: np.ndarray
    """By evaluation, the same adapter's next step, likewise."""
    group_waits_s: np.ndarray
    """Optimizer time before the evaluation's first F, shape (V,)."""


class PackedOrder(NamedTuple):
    """Which micro-batch every sample is in and in which order the micro-batches run."""

    batch_of: np.ndarray
    """Slot by sample, shape (N,)."""
    order: np.ndarray
    """Slot by rank, shape (C,)."""
    forward_s: np.ndarray
    """By slot and kind of stage, shape (C, D)."""
    backward_s: np.ndarray
    """Likewise."""
    transfer_s: np.ndarray
    """By slot, shape (C,), as the following ones."""
    tokens: np.ndarray
    urgency_s: np.ndarray
    """How long a stage that could start something else waits for the micro-batch."""
    number: np.ndarray
    """How many micro-batches there are, shape (1,)."""


class Links(NamedTuple):
    """Room for the dependencies between micro-batches."""

    rank: np.ndarray
    """By slot, shape (C,)."""
    first: np.ndarray
    """First rank by step, shape (K,)."""
    last: np.ndarray
    """Last rank by step, shape (K,)."""
    group_first: np.ndarray
    """First rank by evaluation, shape (V,)."""


class MoveRule(NamedTuple):
    """What guides the annealing's moves."""

    shares: np.ndarray
    """How often each kind of move is made, summed up, in the order of `moves`; the rest changes an urgency."""
    urgencies: np.ndarray
    """Urgencies tried, in multiples of the launch-bound work."""
    max_shift: int
    """How far in the order a micro-batch or a sample is moved at most."""
    launch_bound_s: float
    """Work of a micro-batch at which it leaves the launch-bound floor: the unit of urgency."""


def empty_state(stages: int, count: int) -> State:
    """Return the state before the first operation, with room for `count` micro-batches."""
    counters = (np.zeros(stages, np.int64) for _ in range(3))
    ends = (np.zeros((stages, count)) for _ in range(2))
    return State._make((np.zeros(stages), *counters, *ends, np.zeros((stages, 2 * count), np.int64)))


def empty_jobs(count: int, kinds: int) -> Jobs:
    """Return room for micro-batches by rank, on stages of so many kinds."""
    forward, backward = np.zeros((count, kinds)), np.zeros((count, kinds))
    reals, integers = (np.zeros(count) for _ in range(3)), (np.zeros(count, np.int64) for _ in range(2))
    return Jobs._make((forward, backward, next(reals), *integers, *reals, np.full(count, -1)))
