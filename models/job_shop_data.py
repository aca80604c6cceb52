"""What the job shop of a window is given: integers of grids of time and memory.

Times before the window are earliest starts, times after it tails: the longest path from the end of an operation through
everything behind the window.
"""

from dataclasses import dataclass
from typing import Literal

from cappuccino.models.replica_data import CurveData, SampleData, Way

Kind = Literal["F", "B"]
Step = tuple[int, int]
"""Adapter, optimizer step."""


@dataclass(frozen=True)
class WindowOperation:
    """One operation inside the window."""

    job: int
    kind: Kind
    stage: int
    duration: int
    """Of a job that is packed anew, what comes on top of the time of its micro-batch: optimizer steps."""
    earliest: int
    """Start that everything before the window allows."""
    tail: int
    """From the end of this operation to the end of the schedule, at least, whatever the window does."""
    start: int
    """Start in the schedule to be improved."""

    @property
    def label(self) -> str:
        """Role and index, for the names in the model."""
        return f"{'forward' if self.kind == 'F' else 'backward'}[{self.stage},{self.job}]"


@dataclass(frozen=True)
class HeldMemory:
    """What a stage holds during the window, in tokens."""

    stage: int
    capacity: int
    from_before: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded before the window and backwarded in it."""
    within: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded and backwarded in the window."""
    beyond: tuple[tuple[int, int], ...]
    """(job, tokens) forwarded in the window and backwarded after it."""


@dataclass(frozen=True)
class WindowPacking:
    """Jobs that share out their samples anew; all their operations are inside the window."""

    jobs: tuple[int, ...]
    """In the order of their forwards, which they keep; one may end up without samples."""
    samples: tuple[SampleData, ...]
    places: tuple[int, ...]
    """By sample, where in `jobs` it is now."""
    max_tokens: int
    """Of a micro-batch."""
    curves: dict[Way, tuple[CurveData, ...]]
    """Of the time of a micro-batch."""
    lag: tuple[int, int]
    """Of a transfer: at least, and per `SCALE` tokens."""
    after: dict[Step, tuple[int, ...]]
    """By step, the operations on the first stage that it comes after."""
    before: dict[Step, tuple[int, ...]]
    """By step, the operations on the first stage that come after its last backward."""


@dataclass(frozen=True)
class WindowData:
    """All that the model needs."""

    operations: tuple[WindowOperation, ...]
    precedences: tuple[tuple[int, int, int], ...]
    """(i, j, lag): operation j starts at least `lag` after the end of operation i."""
    fixed_order: tuple[tuple[Kind, int, int], ...]
    """(kind, k, l): the operations of job k come before those of job l on every stage; other pairs are free."""
    memory: tuple[HeldMemory, ...]
    """Stages where memory can bind."""
    makespan: int
    """Makespan of the schedule to be improved: the horizon."""
    packing: WindowPacking | None = None
    """None: all micro-batches stay as they are."""


@dataclass(frozen=True)
class WindowSolution:
    """Something better than the schedule at hand."""

    makespan: int
    starts: tuple[int, ...]
    """By operation; those of jobs without samples mean nothing."""
    places: tuple[int, ...] | None
    """By sample, where in the jobs of the packing it is; None where nothing was packed."""
