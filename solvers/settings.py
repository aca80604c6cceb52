"""Everything about planning that could be set otherwise: a dataclass for each package of the solvers.

Where nothing else is said, a value was found by trying some on the library's instances, and its neighbours do about as
well; `python benchmarks/marks.py --set scheduling.max_shift=4` plans the marks with another one. Tolerances of
arithmetic are no settings and stand where they are used.
"""

from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cappuccino.errors import InputError
from cappuccino.solvers.budget import Budget


class Method(StrEnum):
    """What schedules replicas."""

    AUTO = "auto"
    """Local search and CP-SAT."""
    CP_SAT = "cp-sat"
    """CP-SAT alone, from a greedy schedule."""
    SEARCH = "search"
    """Local search alone."""


@dataclass(frozen=True)
class SchedulingSettings:
    """The search on one replica: construction, annealing, CP-SAT on the whole and on windows."""

    method: Method = Method.AUTO

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

    # shares of the time left when a phase begins
    construction_share: float = 0.15
    annealing_share: float = 0.8
    windows_share: float = 1.0
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
    max_shift: int = 8
    """How far in the order a micro-batch or a sample is moved at most."""

    # CP-SAT on whole replicas
    whole_samples: int = 12
    """Samples up to which a replica is solved as a whole."""
    whole_share: float = 0.3
    """Part of the time left that it may take."""
    whole_effort: float = 5.0
    """Its limit where there is no limit of time, in CP-SAT's deterministic seconds."""

    # CP-SAT windows
    window_operations: tuple[int, int] = (24, 160)
    """Fewest and most operations in a window of the job shop: the most is about what CP-SAT solves in a second."""
    packed_batches: tuple[int, ...] = (0, 2, 3, 4)
    """How many of its micro-batches are packed anew at most."""


@dataclass(frozen=True)
class AllocationSettings:
    """Which columns there are, what to expect of them, and which are scheduled."""

    # columns and bounds
    most_sets: int = 2**12
    """Sets of adapters up to which every one becomes a column: those of 12 adapters that are all different."""
    most_exact: int = 20_000
    """Columns up to which the set partitioning is solved exactly for the bound: some seconds of HiGHS."""
    packed_steps_per_s: float = 200.0
    """Optimizer steps for which path bounds look at every packing, in all places together, for each second of the time
    limit: a tenth of it."""
    least_bound_time_s: float = 1.5
    """Time for proving a bound, however little there is, seconds."""

    # column generation
    smoothing: float = 0.7
    """Weight of the best prices so far in those that columns are sought for (Wentges)."""
    columns_per_place: int = 6
    """Sought in every round."""
    patience: int = 40
    """Rounds without progress of bound and relaxation before giving up."""
    progress: float = 2e-5
    """Relative change that counts as progress."""
    ceiling: float = 3.0
    """Most that an adapter is paid at first, in multiples of what it costs alone; where that binds, as much more."""
    most_raises: int = 8
    """How often; beyond, the bound is valid still, and weak."""
    table_size: int = 2**22
    """Entries of the knapsack's table, which decide how fine its grid of shares is."""
    cells: tuple[int, int] = (2**11, 2**14)
    """Fewest and most cells of the grid."""
    extension: float = 2.0
    """How far the grid goes beyond the longest path, in multiples of the largest share."""

    nodes_per_set: int = 200
    """Decisions that may be looked at, for each set that there is room for, in listing all sets within a slack."""
    tie_gap: float = 0.01
    """How closely GPU time is minimised among partitions of one makespan or one cost."""

    # partitions to begin with
    fill_levels: tuple[float, ...] = (1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
    """Makespans to fill replicas up to, in multiples of the least that the pool could allow."""
    room_to_deadline: tuple[float, ...] = (1.0, 0.98, 0.95, 0.9, 0.85, 0.75)
    """Parts of a deadline to fill replicas up to: schedules end above their bounds."""
    spare_replicas: float = 1.2
    """Replicas that adapters are dealt to, at most, in multiples of those that would do if work were divisible."""
    bisections: int = 12
    """Steps towards the least makespan."""

    # what makespan to expect of a column that nobody has scheduled
    bubble: float = 0.08
    """Excess over the bound, per stage beyond the first, where the longest path is as long as the work takes."""
    slack_power: float = 3.0
    """How fast the excess falls with path / work where there is more work."""
    path_power: float = 1.5
    """How fast it falls with work / path where there is less."""
    friction: float = 0.0012
    """Excess per stage however much work there is."""
    prior_weight: float = 0.3
    """Weight of these rules against a schedule of a replica that is alike in everything."""
    other_path: float = 0.3
    """Weight of a schedule where another adapter has the longest path."""
    other_costs: float = 0.05
    """Weight of a schedule on another type of GPU, or with another recomputation."""
    alike_tightness: float = 0.15
    """Difference of path over work at which a schedule still counts."""
    alike_depth: float = 0.25
    """Difference of the logarithm of the depth, likewise."""
    optimism: float = 0.9
    """Factor on the expected excess once there is a plan, so that columns are tried."""
    caution: float = 1.3
    """The same before there is one that meets the deadline, and"""
    more_caution: float = 1.25
    """on that, whenever a choice has missed it."""

    # choosing columns
    most_columns: int = 2500
    """Columns that a set partitioning is solved over, the most promising ones: a second of HiGHS or two."""
    gains: tuple[float, ...] = (0.35, 0.25, 0.15, 0.05)
    """Part of the distance between a schedule and its bound that more effort closes, about: after the first attempt
    and so on to the last one, from which on a missed deadline counts as missed. With less effort it is less."""
    effort_s: float = 0.1
    """Time per sample and core in which effort brings what `gains` says, seconds."""
    tie_price: float = 1e-6
    """What a second of a free replica counts where replicas are compared one by one, relative to the cheapest other."""
    nearly_equal: float = 2e-3
    """Partitions whose objectives differ relatively by less are equally good: the shorter one is taken."""
    bound_share: float = 0.3
    """What bounds and candidates may take of the allocator's time."""
    selection_share: float = 0.1
    """What one choice of columns may take of the time left."""

    # scheduling columns
    first_attempt: Budget = Budget(seconds=None, constructions=64, moves=8000, windows=0)
    """Search on a column that is chosen for the first time; no moves where there are too many columns."""
    first_moves_s: float = 1.0
    """Time for the moves of a first attempt where time is limited, seconds."""
    moves_share: float = 0.3
    """Of the time left, what moves may take, or they are left out."""
    first_attempt_share: float = 0.5
    """Of the time left, what first attempts at all columns of a choice may take."""
    pace_s: float = 5e-5
    """What one construction takes a sample, seconds, until it has been measured."""
    further_attempts: tuple[tuple[float, Budget], ...] = (
        (0.04, Budget(seconds=None, constructions=1, moves=20000, windows=0)),
        (0.1, Budget(seconds=None, constructions=1, moves=60000, windows=0)),
        (0.25, Budget(seconds=None, constructions=1, moves=150000, windows=0)),
    )
    """Further attempts where makespans bind: the part of the allocator's time they take, and their limits without."""
    most_alone: int = 32
    """Kinds of adapters up to which each is scheduled on its own, to see what sharing saves."""

    @property
    def all_attempts(self) -> int:
        """Attempts after which a column is left to the improvement of the whole plan."""
        return len(self.gains)


@dataclass(frozen=True)
class PlannerSettings:
    """How the time of a plan is divided, and the settings of the packages."""

    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    allocation: AllocationSettings = field(default_factory=AllocationSettings)
    allocation_share: float = 0.4
    """Part of the time that may go into choosing replicas before the chosen ones are improved."""
    allocation_share_by_makespan: float = 0.5
    """The same where makespans count, so that which adapters share a replica matters more."""
    baseline_share: float = 0.1
    """Of the time left when replicas have been chosen, what scheduling the baselines' may take."""
    least_baseline_s: float = 2.0
    """Seconds that it may take in any case; half of the time left at most."""
    first_improvement_share: float = 0.3
    """There, part of the time left that goes into improving them before they are chosen again."""
    second_allocation_share: float = 0.5
    """There, part of the time left after it for choosing again."""
    first_plan_share: float = 0.6
    """Of the time, what looking for a plan that meets a deadline may take before another way is tried."""
    improvement_share: float = 0.92
    """Part of the time left that goes into improving replicas; the rest shows what sharing saves, one by one."""
    separation_share: float = 0.5
    """Of that rest, what separating adapters that had better not share may take."""
    moves_per_iteration: int = 2000
    """Moves of the local search for each iteration of a search without a time limit."""
    round_share: float = 0.3
    """Of the time left, what a round of improvements may take where the makespan counts."""
    sharing_effort: Budget = Budget(seconds=None, constructions=24, moves=4000, windows=0)
    """Search on each separate run and on each replica without one of its adapters."""


DEFAULT = PlannerSettings()


def with_method(method: Method) -> PlannerSettings:
    """Return the usual settings with another method for replicas."""
    return replace(DEFAULT, scheduling=replace(DEFAULT.scheduling, method=method))


def with_changes(settings: PlannerSettings, changes: Sequence[str]) -> PlannerSettings:
    """Return the settings with some set otherwise, each given as `NAME=VALUE` or `PACKAGE.NAME=VALUE`.

    Values are Python literals; budgets cannot be given.

    Raises
    ------
    InputError
        When there is no such setting, or the value is of another kind than its own.
    """
    for change in changes:
        name, text = (part.strip() for part in change.partition("=")[::2])
        package, _, last = name.rpartition(".")
        known = vars(getattr(settings, package, None) if package in ("scheduling", "allocation") else settings)
        numbers = {n: v for n, v in known.items() if isinstance(v, (int, float, tuple))}
        if package not in ("", "scheduling", "allocation") or last not in numbers:
            remedy = f"name one of {', '.join(f'{package}.{n}'.lstrip('.') for n in numbers)}"
            raise InputError("settings", name, "is no setting", remedy)
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        old = numbers[last]
        if isinstance(old, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(old):
            raise InputError("settings", name, f'"{text}" is not of its kind', f"give something like {old}")
        inner = settings if not package else getattr(settings, package)
        changed = replace(inner, **{last: value})
        settings = changed if isinstance(changed, PlannerSettings) else replace(settings, **{package: changed})
    return settings
