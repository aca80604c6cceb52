"""What a run may change in the index: a bound never stands above an objective, and better figures replace worse."""

from cappuccino.library.records import (
    TOLERANCE,
    BestKnown,
    ContradictionError,
    Entry,
    EntryResult,
)


def require_no_contradiction(entry: Entry, value: float, bound: float | None, reference: float | None = None) -> None:
    """Compare checked objectives and a proven bound with each other and with what is known of the entry.

    Parameters
    ----------
    value, bound
        Of a run.
    reference
        Objective of the baseline's plan, where it has one that obeys the entry's options.

    Raises
    ------
    ContradictionError
        When a bound stands above an objective.
    """
    known = entry.best_known
    bounds = {
        "the best-known bound": known.bound.value if known and known.bound else None,
        "this run's bound": bound,
    }
    objectives = {
        "this run's checked objective": value,
        "the best-known objective": known.objective.value if known else None,
        "the checked objective of the reference": reference,
    }
    for what, low in bounds.items():
        for other, high in objectives.items():
            if low is not None and high is not None and low > high * (1 + TOLERANCE):
                message = f'entry "{entry.name}": {what} {low:.8g} stands above {other} {high:.8g}'
                raise ContradictionError(f"{message}; one of them is wrong: find out which before either is kept")


def updated_entry(entry: Entry, run: EntryResult) -> Entry:
    """Return the entry with the least objective and the largest bound of what is known and what the run found.

    Figures that were found with other costs are replaced.

    Raises
    ------
    ContradictionError
        When known and found figures contradict each other.
    """
    objective, bound = run.finding(run.value), None if run.bound is None else run.finding(run.bound)
    known = None if entry.stale(run.costs) else entry.best_known
    require_no_contradiction(entry.model_copy(update={"best_known": known}), run.value, run.bound, run.reference.value)
    if known is not None:
        if known.objective.value <= objective.value * (1 + TOLERANCE):
            objective = known.objective
        if known.bound is not None and (bound is None or known.bound.value >= bound.value * (1 - TOLERANCE)):
            bound = known.bound
    return entry.model_copy(
        update={
            "costs": dict(run.costs),
            "best_known": BestKnown.of(objective, bound),
            "reference": run.reference,
        }
    )
