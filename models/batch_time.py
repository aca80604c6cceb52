"""How long a micro-batch takes whose samples a model chooses: alike in all CP-SAT models.

Indices as of the models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from cappuccino.models.replica_data import ROUNDING, SCALE, WHOLE, CurveData, SampleData, Way, tangents


@dataclass(frozen=True)
class OpenBatch:
    """A micro-batch whose samples are chosen."""

    index: int
    """For the names in the model."""
    used: cp_model.IntVar
    """Whether it has samples."""
    inside: Sequence[cp_model.IntVar]
    """By sample, whether it is in."""
    has: Mapping[int, Sequence[cp_model.IntVar]]
    """By adapter and optimizer step, whether a sample of it is in; of an adapter, one step at most."""


def add_batch_time(
    model: cp_model.CpModel,
    batch: OpenBatch,
    way: Way,
    samples: Sequence[SampleData],
    curves: Sequence[CurveData],
    more: Mapping[int, int],
    horizon: int,
    ratios: Sequence[Sequence[float] | None],
) -> dict[int, cp_model.IntVar]:
    """Add `time[w,c,b] >= alpha work + beta floor` for the tangents (alpha, beta) of every curve.

    The work is that of the samples inside, the floor the curve's and those of the adapters inside. A stage adds shares
    up: `duration[w,s,b] >= sum_c share[s,c] time[w,c,b] + more[s] used[b]`.

    Parameters
    ----------
    curves
        Of the way.
    more
        By stage, what it does besides, on the grid of time.
    horizon
        No time is above it.
    ratios
        By curve, where tangents touch it, as of `tangents`.

    Returns
    -------
    dict
        Duration by stage.
    """
    times = []
    for c, curve in enumerate(curves):
        work = sum(x.work[way][c] * inside for x, inside in zip(samples, batch.inside, strict=True))
        floor = curve.floor * batch.used + sum(curve.adapter_floor[a] * sum(has) for a, has in batch.has.items())
        time = model.new_int_var(0, horizon, f"time[{way},{c},{batch.index}]")
        for alpha, beta in tangents(curve.power, ratios[c]):
            model.add(SCALE * time >= alpha * work + beta * floor - ROUNDING)
        times.append(time)
    durations = {}
    for s, besides in more.items():
        durations[s] = model.new_int_var(0, horizon, f"duration[{way},{s},{batch.index}]")
        parts = sum(curve.shares[s] * time for curve, time in zip(curves, times, strict=True))
        model.add(WHOLE * durations[s] >= parts + WHOLE * besides * batch.used - WHOLE + 1)
    return durations
