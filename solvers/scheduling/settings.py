"""Everything about the search on one replica that could be set otherwise.

Where nothing else is said, a value was found by hand on the instances of the library, and its neighbours do about as
well; `python benchmarks/marks.py --set scheduling.NAME=VALUE` shows what another one brings.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulingSettings:
    """Constants of construction, annealing and CP-SAT windows."""

    # construction by list scheduling with packing on the fly
    targets: tuple[float, ...] = (2.0, 4.0, 1.0, 3.0, 1.5, 2.5, 6.0, 0.7, 5.0, 1.25, 3.5, 1.75)
    """Work aimed at per micro-batch, in multiples of the launch-bound work, in the order they are tried. Below 1 the
    launch overhead is more than half, beyond 6 the bubbles of short steps are."""
    loads: tuple[float, ...] = (1.0, 2.0, 4.0, 0.0, 0.5)
    """How many micro-batches a step is expected to wait for, per stage; the first one with every target, as below."""
    critical_urgencies: tuple[float, ...] = (0.0, 0.7, 1.5, 0.3)
    """How long stages wait for the adapter with the longest path, in multiples of the launch-bound work."""
    critical_targets: tuple[float, ...] = (1.0, 0.5, 0.3, 0.75)
    """Its target, relative to that of the others."""
    fills: tuple[float, ...] = (0.75, 0.9, 0.5)
    """Part of the target below which a micro-batch is filled with samples of other adapters."""
    patiences: tuple[float, ...] = (0.0, 0.25)
    """How long a stage that could start an F waits for a B, in multiples of the launch-bound work."""
    overshoot: float = 1.1
    """How far above the target filling up may lead."""
    noise: float = 0.25
    """Largest deviation of the priorities in repeated constructions."""
    noisy_targets: tuple[float, ...] = (0.9, 1.1, 1.0, 0.95, 1.05)
    """Factors on the best target in repeated constructions."""

    # shares of the time left when a phase begins; the CP-SAT windows get the rest
    construction_share: float = 0.15
    annealing_share: float = 0.8
    repacking_share: float = 0.3
    least_pause_s: float = 1.0
    """Least time between two reports of the annealing, seconds: to build a long schedule takes its time."""

    # annealing
    hot: float = 0.1
    """First temperature, in multiples of the launch-bound work."""
    cold: float = 0.003
    """Last temperature, likewise."""
    moves_between_clocks: int = 500
    """Moves between two readings of the clock: some milliseconds."""
    whole: int = 240
    """Micro-batches up to which a schedule is annealed as a whole; a move costs time in proportion to them."""
    window: int = 40
    """Micro-batches that may change in a window of a longer one."""
    lookahead: int = 5
    """Fixed micro-batches behind a window, per stage."""
    spare: float = 0.25
    """Slots for further micro-batches, relative to those there are."""
    least_window_s: float = 0.1
    """Least time for a window, seconds."""
    moves_per_batch: int = 100
    """Moves in a window for each of its micro-batches where moves limit the search."""
    move_shares: tuple[float, ...] = (0.26, 0.10, 0.30, 0.05, 0.07, 0.09)
    """How often a micro-batch is shifted or swapped, samples are moved or exchanged, a micro-batch is split, merged;
    the rest of the moves changes an urgency."""
    urgencies: tuple[float, ...] = (0.0, 0.1, 0.3, 0.7, 1.5)
    """Urgencies tried, in multiples of the launch-bound work."""
    reach: int = 8
    """How far in the order a micro-batch or a sample is moved at most."""

    # CP-SAT windows
    repacked_batches: tuple[int, int] = (2, 4)
    """Fewest and most micro-batches repacked together."""
    packing_preference: float = 0.05
    """Standard deviation of the random preferences that make packings differ, relative to a sample's work."""
    window_operations: tuple[int, int] = (24, 64)
    """Fewest and most operations in a window of the job shop: about what CP-SAT solves in a second."""


DEFAULT = SchedulingSettings()
