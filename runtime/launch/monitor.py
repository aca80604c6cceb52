"""What a run leaves in its output folder while it goes on: the events of all replicas, and logs; needs no torch."""

import math
from collections.abc import Callable
from pathlib import Path

from cappuccino.errors import InputError
from cappuccino.files import require_folder
from cappuccino.instance import Instance
from cappuccino.runtime.launch.lines import LineReader, LineWriter
from cappuccino.runtime.launch.metrics import METRICS, MetricEvent, ReplicaStart

LOGS, TENSORBOARD, TRACE, LOSSES = "logs", "tensorboard", "trace.json", "losses.json"


def require_free_names(instance: Instance) -> None:
    """Refuse adapters whose folder would be another file or folder of a run."""
    for adapter in instance.adapters:
        if adapter.name in (LOGS, TENSORBOARD, TRACE, LOSSES, METRICS):
            field = f'name of adapter "{adapter.name}"'
            raise InputError(instance.source, field, "is the name of another result of a run", "call it otherwise")


class RunMonitor:
    """Collects the events of a run's replicas.

    Parameters
    ----------
    out
        Output folder of the run, which is made; events and logs of an earlier run are removed.
    on_event
        Called with every event.

    Raises
    ------
    InputError
        When the folder cannot be written.
    """

    def __init__(self, out: Path, on_event: Callable[[MetricEvent], None] | None = None) -> None:
        self.logs = out / LOGS
        """Folder for what the stages print: one file `replica-R-stage-S.log` each."""
        self.losses: dict[str, list[float]] = {}
        """By adapter, the loss of every step so far; NaN where it was not finite."""
        self._on_event = on_event
        self._origin: float | None = None
        self._readers: list[LineReader] = []
        require_folder(self.logs)
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            for log in self.logs.glob("replica-*-stage-*.log"):
                log.unlink()
            (out / METRICS).unlink(missing_ok=True)
            self._writer = LineWriter(out / METRICS)
        except OSError as error:
            raise InputError(out, "", f"cannot be written ({error.strerror})", "name another folder") from error

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
        for event in sorted(events, key=lambda e: e.time_s):
            self._tell(event.model_copy(update={"time_s": event.time_s - (self._origin or 0.0)}))

    def _tell(self, event: MetricEvent) -> None:
        self._writer.write(event)
        if event.kind == "train":
            self.losses.setdefault(event.adapter, []).append(math.nan if event.loss is None else event.loss)
        if self._on_event is not None:
            self._on_event(event)

    def close(self) -> None:
        """Take over what is left and give the file back."""
        self.collect()
        self._writer.close()
