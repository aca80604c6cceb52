"""What a run leaves in its output folder while it goes on: the events of all replicas, and logs; needs no torch."""

import math
from collections.abc import Callable
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.files import require_folder, write_atomically
from cappuccino.instance import Instance
from cappuccino.runtime.checkpoint.progress import CHECKPOINTS
from cappuccino.runtime.monitoring.lines import LineReader, LineWriter
from cappuccino.runtime.monitoring.metrics import METRICS, MetricEvent, ReplicaStart, read_events
from cappuccino.runtime.monitoring.requests import RUN, STOP, fulfilled
from cappuccino.runtime.pipeline.stopping import Stop

LOGS, TENSORBOARD = "logs", "tensorboard"
TRACE, LOSSES, EVALUATIONS = "trace.json", "losses.json", "evaluations.json"


_TAKEN = (CHECKPOINTS, LOGS, TENSORBOARD, TRACE, LOSSES, EVALUATIONS, METRICS, RUN, STOP)


def require_free_names(instance: Instance) -> None:
    """Refuse adapters whose folder would be another file or folder of a run."""
    for adapter in instance.adapters:
        if adapter.name in _TAKEN:
            field = f'name of adapter "{adapter.name}"'
            raise InputError(instance.source, field, "is the name of another result of a run", "call it otherwise")


class RunMonitor:
    """Collects the events of a run's replicas.

    Parameters
    ----------
    out
        Output folder of the run, which is made.
    on_event
        Called with every event, those of an earlier run first.
    goes_on
        Whether an event of an earlier run in this folder is one of this run, too; without it, events and logs of an
        earlier run are removed.

    Raises
    ------
    InputError
        When the folder cannot be written.
    """

    def __init__(
        self,
        out: Path,
        on_event: Callable[[MetricEvent], None] | None = None,
        goes_on: Callable[[MetricEvent], bool] | None = None,
    ) -> None:
        self.logs = out / LOGS
        """Folder for what the stages print: one file `replica-R-stage-S.log` each."""
        self.evaluations: dict[str, dict[int, float]] = {}
        """By adapter and step, the loss on its evaluation data behind that step; NaN where it was not finite."""
        self.stops: dict[str, Stop] = {}
        """By adapter that was stopped before its last step, how."""
        self._out, self._on_event = out, on_event
        self._origin: float | None = None
        self._readers: list[LineReader] = []
        require_folder(self.logs)
        file = out / METRICS
        earlier = [event for event in read_events(file) if goes_on(event)] if goes_on else []
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            if goes_on is None:
                for log in self.logs.glob("replica-*-stage-*.log"):
                    log.unlink()
            write_atomically(file, "".join(event.model_dump_json() + "\n" for event in earlier))
            self._writer = LineWriter(file)
        except OSError as error:
            raise InputError(out, "", f"cannot be written ({error.strerror})", "name another folder") from error
        for event in earlier:
            self._tell(event)

    def follow(self, file: Path) -> None:
        """Collect what a replica will write to a file."""
        self._readers.append(LineReader(file))

    def collect(self) -> None:
        """Take over what the replicas wrote since the last call."""
        events = []
        for reader in self._readers:
            for line in reader.read():
                if line.startswith(b'{"began_s"'):
                    began = ReplicaStart.model_validate_json(line).began_s
                    self._origin = began if self._origin is None else self._origin
                else:
                    events.append(MetricEvent.model_validate_json(line))
        for raw in sorted(events, key=lambda e: e.time_s):
            event = raw.model_copy(update={"time_s": raw.time_s - (self._origin or 0.0)})
            self._writer.write(event)
            if event.kind == "stop":
                fulfilled(self._out, event.adapter)
            self._tell(event)

    def _tell(self, event: MetricEvent) -> None:
        if event.kind == "eval":
            loss = math.nan if event.loss is None else event.loss
            self.evaluations.setdefault(event.adapter, {})[event.step] = loss
        if event.kind == "stop" and event.reason is not None:
            self.stops[event.adapter] = Stop(event.step, event.reason)
        if self._on_event is not None:
            self._on_event(event)

    def close(self) -> None:
        """Take over what is left and give the file back."""
        self.collect()
        self._writer.close()
