"""What packing on the fly works on: the steps open, their parts, and what guides it.

Legend: A adapters, N samples, P the most parts of a step.
"""

from typing import NamedTuple

import numpy as np

from cappuccino.solvers.scheduling.kernels.arrays import BusiestStage, StageCosts


class PackingRule(NamedTuple):
    """What guides packing on the fly."""

    target_work_s: float
    """Work of a micro-batch that is aimed at."""
    fill: float = 0.75
    """A micro-batch with less than this fraction of the target is filled with samples of other adapters."""
    load: float = 0.0
    """How many micro-batches of the target size a step is expected to wait for, per stage behind the first."""
    critical_target: float = 1.0
    """Target for the adapter with the longest path, relative to that of the others."""
    critical_urgency_s: float = 0.0
    """How long a stage that could start something else waits for that adapter's micro-batches."""
    overshoot: float = 1.1
    """How far above the target filling up may lead."""
    round_robin: bool = False
    """Adapters take turns instead, with parts that are given, one micro-batch of each in flight."""


class Evaluations(NamedTuple):
    """Evaluation micro-batches, adapter by adapter and step by step, as `Source` has them."""

    begins: np.ndarray
    forward_s: np.ndarray
    tokens: np.ndarray
    transfer_s: np.ndarray


class Source(NamedTuple):
    """Forms micro-batches; an inactive one has none to give."""

    active: bool
    rule: PackingRule
    busiest: BusiestStage
    costs: StageCosts
    max_tokens: int
    """As the costs have it: they are costly to reach into."""
    padded: bool
    """Likewise."""
    added: np.ndarray
    """What each adapter adds to its micro-batches (floors) and tokens (works), seconds, in the order of `Shape`, shape
    (A, 4)."""
    optimizer_s: float
    """One optimizer step of one adapter on one stage."""
    stages: int
    first_sample: np.ndarray
    """By adapter, shape (A,)."""
    batch_size: np.ndarray
    """Samples of a step by adapter, shape (A,)."""
    num_steps: np.ndarray
    """By adapter, shape (A,)."""
    length: np.ndarray
    """Tokens by sample, shape (N,)."""
    work_s: np.ndarray
    """Forward plus backward work by sample on a stage of the busiest kind, shape (N,)."""
    heaviest: np.ndarray
    """Places in a step by falling work, step by step, shape (N,)."""
    place: np.ndarray
    """Part by sample where it is given, in the order in which parts lead micro-batches, shape (N,); -1: it is not."""
    bias: np.ndarray
    """Factor on the priority of a step, shape (A, steps)."""
    rest_s: np.ndarray
    """Least time of an adapter's steps from step j on, shape (A, steps + 1)."""
    critical: np.ndarray
    """The adapter with the longest path, shape (1,)."""
    turn: np.ndarray
    """The adapter whose turn it is, shape (1,)."""
    step: np.ndarray
    """Open step by adapter, shape (A,)."""
    parts: np.ndarray
    """Parts of the open step by adapter, shape (A,)."""
    waiting: np.ndarray
    """Those of them not handed out, shape (A,)."""
    running: np.ndarray
    """Those handed out and not yet backwarded, shape (A,)."""
    part_of: np.ndarray
    """Part by sample, shape (N,)."""
    part_work_s: np.ndarray
    """Shape (A, P), as the following ones."""
    part_tokens: np.ndarray
    part_size: np.ndarray
    part_longest: np.ndarray
    part_rank: np.ndarray
    """Micro-batch that holds the part; -1: none yet."""
    priority: np.ndarray
    """Room for the priorities of the adapters, shape (A,)."""
    chosen: np.ndarray
    """Part of every adapter in the micro-batch to come, shape (A,); -1: none."""
    formed: np.ndarray
    """Whether `chosen` is up to date, shape (1,)."""
    batch_of: np.ndarray
    """Micro-batch by sample, shape (N,): the result."""
    evaluation_begins: np.ndarray
    """By adapter and step, where its evaluation micro-batches begin, and the end, shape (A, steps + 1)."""
    evaluation_s: np.ndarray
    """Forward times of evaluation micro-batches by kind of stage, shape (E, D)."""
    evaluation_tokens: np.ndarray
    """Shape (E,)."""
    evaluation_transfer_s: np.ndarray
    """Shape (E,)."""
    evaluation_next: np.ndarray
    """By adapter, the next one to hand out, shape (A,)."""
    evaluation_end: np.ndarray
    """By adapter, the one behind the last to hand out before the next step opens, shape (A,)."""
    chosen_evaluation: np.ndarray
    """The evaluation micro-batch to come, shape (1,); -1: none."""


def new_source(
    rule: PackingRule,
    busiest: BusiestStage,
    costs: StageCosts,
    added: np.ndarray,
    optimizer_s: float,
    stages: int,
    first_sample: np.ndarray,
    batch_size: np.ndarray,
    num_steps: np.ndarray,
    length: np.ndarray,
    work_s: np.ndarray,
    heaviest: np.ndarray,
    place: np.ndarray,
    bias: np.ndarray,
    evaluations: Evaluations,
    active: bool = True,
) -> Source:
    """Return a source that has formed nothing yet; parameters as the fields of `Source`."""
    adapters, samples = len(batch_size), len(length)
    steps, parts = int(num_steps.max(initial=0)), int(batch_size.max(initial=0))
    given = (
        active, rule, busiest, costs, costs.max_tokens, costs.padded, added, optimizer_s, stages, first_sample,
        batch_size, num_steps, length, work_s, heaviest, place, bias,
    )  # fmt: skip
    by_adapter = (np.zeros(adapters, np.int64) for _ in range(4))
    by_part = (np.zeros((adapters, parts), np.int64) for _ in range(4))
    return Source._make(
        (
            *given,
            np.zeros((adapters, steps + 1)),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
            *by_adapter,
            np.zeros(samples, np.int64),
            np.zeros((adapters, parts)),
            *by_part,
            np.zeros(adapters),
            np.zeros(adapters, np.int64),
            np.zeros(1, np.int64),
            np.zeros(samples, np.int64),
            *evaluations,
            np.zeros(adapters, np.int64),
            np.zeros(adapters, np.int64),
            np.full(1, -1),
        )
    )


_INTEGERS, _REALS = np.zeros(0, np.int64), np.zeros(0)
NO_SOURCE = new_source(
    PackingRule(1.0), BusiestStage(0.0, 1.0, 0.5, 0.0, 1.0),
    StageCosts(np.zeros((2, 1, 4)), np.ones((1, 1)), 0.0, 0.0, 0, False), np.zeros((0, 4)), 0.0, 0,
    _INTEGERS, _INTEGERS, _INTEGERS, _INTEGERS, _REALS, _INTEGERS, _INTEGERS, np.zeros((0, 0)),
    Evaluations(np.zeros((0, 1), np.int64), np.zeros((0, 1)), _INTEGERS, _REALS), active=False,
)  # fmt: skip
"""The source of schedules whose micro-batches are known."""
