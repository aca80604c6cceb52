"""What the replicas of a plan record where each is a run of its own into one folder, and how it is joined.

Adapters, checkpoints and logs have names of their own and stand in the output folder; a file that would be of all
replicas, such as `trace.json`, each writes into a folder of its own. Joined, the output folder is as one run leaves it.
Needs no torch.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cappuccino.files import Record, parse_model, read_json, write_atomically
from cappuccino.plan import Plan
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent, read_events
from cappuccino.runtime.monitoring.requests import RUN

RECORDS = "replicas"
"""Folder of the records, in that of the results."""
TRACE, LOSSES, EVALUATIONS = "trace.json", "losses.json", "evaluations.json"
_ORIGIN = "record.json"


class RecordOrigin(Record):
    """What a record is of."""

    plan_sha256: str
    """The plan that its replica is in."""


def record_folders(out: Path) -> list[Path]:
    """Return the folders of all records."""
    return sorted(p for p in (out / RECORDS).iterdir() if p.is_dir()) if (out / RECORDS).is_dir() else []


def record_place(out: Path, replica: int) -> Path:
    """Return where the record of a replica is, by its id."""
    return out / RECORDS / f"replica-{replica}"


def begin_record(out: Path, plan: Plan, replica: int, *, resume: bool) -> Path:
    """Return the folder for a replica's record, made ready.

    Parameters
    ----------
    out
        Folder of the results.
    plan
        What the replica is of.
    replica
        Its id.
    resume
        Whether it goes on from what is in `out`: its events then begin with those of its adapters so far.
    """
    folder = record_place(out, replica)
    origin = RecordOrigin(plan_sha256=plan.digest)
    if resume:
        join_records(out, plan)
    if not resume or _origin(folder) != origin:
        shutil.rmtree(folder, ignore_errors=True)
        adapters = next(r.adapters for r in plan.replicas if r.id == replica)
        events = [e for e in read_events(out / METRICS) if e.adapter in adapters] if resume else []
        _write_events(folder / METRICS, events)
        write_atomically(folder / _ORIGIN, origin.model_dump_json() + "\n")
    return folder


def drop_records(out: Path) -> None:
    """Remove all records."""
    shutil.rmtree(out / RECORDS, ignore_errors=True)


def join_records(out: Path, plan: Plan) -> None:
    """Write from the records, and from what was joined before, the files of the whole plan.

    Several may do so at the same time: each looks again once it has written, so that the last one has seen all.

    Parameters
    ----------
    out
        Folder of the results.
    plan
        Whose adapters the files are of.

    Raises
    ------
    InputError
        When a record is malformed, or a file cannot be written.
    """
    seen: object = None
    while record_folders(out) and seen != (now := _ended(out)):
        seen = now
        _join(out, plan)


def _ended(out: Path) -> dict[Path, tuple[int, int] | None]:
    """Return what changes when a replica ends: the files that it writes then, and the one that goes."""
    found: dict[Path, tuple[int, int] | None] = {}
    for folder in record_folders(out):
        for name in (TRACE, LOSSES, EVALUATIONS, RUN):
            try:
                state = (folder / name).stat()
            except FileNotFoundError:
                found[folder / name] = None
            else:
                found[folder / name] = state.st_mtime_ns, state.st_size
    return found


def _join(out: Path, plan: Plan) -> None:
    names = [*(name for r in plan.replicas for name in r.adapters), *plan.done]
    folders = record_folders(out)
    own = RecordOrigin(plan_sha256=plan.digest)
    folders.sort(key=lambda folder: _origin(folder) == own)  # what was recorded of this plan is the last word
    events: dict[str, list[MetricEvent]] = {}
    for file in (out / METRICS, *(folder / METRICS for folder in folders)):
        found: dict[str, list[MetricEvent]] = {}
        for event in read_events(file):
            found.setdefault(event.adapter, []).append(event)
        events |= found
    _write_events(out / METRICS, [event for name in dict.fromkeys(names) for event in events.get(name, [])])
    for file_name in (LOSSES, EVALUATIONS):
        figures: dict[str, Any] = {}
        for figure in _contents(out, folders, file_name):
            figures |= figure
        if figures:
            ordered = {name: figures[name] for name in dict.fromkeys(names) if name in figures}
            write_atomically(out / file_name, json.dumps(ordered, indent=2) + "\n")
    traces = [read_json(f / TRACE) for f in folders if _origin(f) == own and (f / TRACE).is_file()]
    if traces:
        write_atomically(out / TRACE, json.dumps(_joined_trace(traces)) + "\n")


def _contents(out: Path, folders: list[Path], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield what the files of one name hold."""
    for file in (out / name, *(folder / name for folder in folders)):
        if file.is_file():
            yield read_json(file)


def _joined_trace(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """Return traces of unlike replicas as one."""
    other = dict(traces[0]["otherData"])
    references = {r: s for trace in traces for r, s in trace["otherData"].get("reference_time_s", {}).items()}
    if references:
        other["reference_time_s"] = references
    events = [event for trace in traces for event in trace["traceEvents"]]
    return traces[0] | {"traceEvents": events, "otherData": other}


def _origin(folder: Path) -> RecordOrigin | None:
    file = folder / _ORIGIN
    return parse_model(RecordOrigin, read_json(file), file) if file.is_file() else None


def _write_events(file: Path, events: list[MetricEvent]) -> None:
    write_atomically(file, "".join(event.model_dump_json() + "\n" for event in events))
